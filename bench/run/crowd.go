package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"sync"
	"time"

	"switchyard/bench/report"
)

const (
	crowdNodes = 5
	crowdEach  = 19000 // a process holds 20,000 descriptors here
)

// crowd puts 95,000 connections on five nodes, all in one room, asks /healthz
// all the while, and sends messages to all of them.
func (b *bench) crowd(ctx context.Context) error {
	nodes, each := crowdNodes, crowdEach
	if b.opts.quick {
		each = 2000
	}
	targets, err := b.fleet(ctx, nodes, "")
	if err != nil {
		return err
	}
	health := newProbe(ctx, targets)
	var holders []*holder
	began := time.Now()
	for i, t := range targets {
		before := report.RSS(t.process.pid())
		h, run, err := b.hold(ctx, append(t.args(), "-n", fmt.Sprint(each), "-rooms", "1", "-prefix", "crowd")...)
		if err != nil {
			return err
		}
		defer h.quit()
		holders = append(holders, h)
		run.RSS = report.RSS(t.process.pid()) - before
		run.Server, run.Test = ours, fmt.Sprintf("node %d", i+1)
		if err := b.keep("crowd", &run); err != nil {
			return err
		}
	}
	fmt.Printf("%d connections after %v\n", nodes*each, time.Since(began).Round(time.Second))
	if err := b.healthz(health, "while they connect"); err != nil {
		return err
	}
	time.Sleep(10 * time.Second)
	var rss int64
	for _, t := range targets {
		rss += report.RSS(t.process.pid())
	}
	fmt.Printf("RSS together %.2f GB\n", float64(rss)/1e9)
	if err := b.healthz(health, "at rest"); err != nil {
		return err
	}
	want := int64(0)
	for range 5 {
		want += int64(each)
		took, err := toAll(ctx, holders, want)
		if err != nil {
			return err
		}
		run := report.Run{Scenario: "hold", Protocol: "switchyard", Server: ours, Test: "one message to all",
			Connections: nodes * each, Seconds: report.Round(took.Seconds()), RSS: rss}
		if err := b.keep("crowd", &run); err != nil {
			return err
		}
		fmt.Printf("one message to all %d: %v\n", nodes*each, took.Round(time.Millisecond))
		time.Sleep(2 * time.Second)
	}
	return b.healthz(health, "while it went out")
}

// healthz keeps and tells how /healthz was answered since the last time.
func (b *bench) healthz(p *probe, when string) error {
	took, failed := p.take()
	if took == nil {
		return errors.New("/healthz was not asked")
	}
	fmt.Printf("/healthz %s: p50 %.3g ms, p99 %.3g ms, worst %.3g ms of %d, %d failed\n", when, took.P50, took.P99, took.Max, took.N, failed)
	run := report.Run{Scenario: "hold", Protocol: "http", Server: ours, Test: "/healthz " + when, Failed: failed, Healthz: took}
	return b.keep("crowd", &run)
}

// toAll has the first holder publish, and returns when the last member had it.
func toAll(ctx context.Context, holders []*holder, want int64) (time.Duration, error) {
	holders[0].say("publish")
	deadline := time.Now().Add(30 * time.Second)
	for {
		time.Sleep(300 * time.Millisecond)
		var published, last int64
		whole := true
		for _, h := range holders {
			r, err := h.report()
			if err != nil {
				return 0, err
			}
			published, last = max(published, r.LastPublish), max(last, r.LastArrival)
			whole = whole && r.Delivered >= want
		}
		if whole {
			return time.Duration(last - published), nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return 0, fmt.Errorf("a message is not with everybody after 30 s")
		}
	}
}

// fleet starts nodes on one database and one Redis.
func (b *bench) fleet(ctx context.Context, n int, cores string) ([]*target, error) {
	url, err := b.database(ctx)
	if err != nil {
		return nil, err
	}
	redis, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, fmt.Errorf("%w: install redis-server", err)
	}
	port := freePort()
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	store, err := b.start(ctx, addr, "", nil, redis, "--port", fmt.Sprint(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", b.dir)
	if err != nil {
		return nil, err
	}
	var all []*target
	for range n {
		t, err := b.service(ctx, url, cores, false, "REDIS_URL=redis://"+addr+"/0")
		if err != nil {
			return nil, err
		}
		t.beside = append(t.beside, store.pid())
		all = append(all, t)
	}
	return all, nil
}

// A probe asks every node's /healthz ten times a second.
type probe struct {
	mu     sync.Mutex
	took   report.Histogram
	failed int
}

func newProbe(ctx context.Context, targets []*target) *probe {
	p := &probe{}
	client := &http.Client{Timeout: 5 * time.Second}
	for _, t := range targets {
		go func() {
			for ctx.Err() == nil {
				p.ask(ctx, client, "http://"+t.addr+"/healthz")
				time.Sleep(100 * time.Millisecond)
			}
		}()
	}
	return p
}

func (p *probe) ask(ctx context.Context, client *http.Client, url string) {
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return
	}
	answer, err := client.Do(req)
	ok := err == nil && answer.StatusCode == http.StatusOK
	if err == nil {
		_ = answer.Body.Close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.took.Add(int64(time.Since(began))); !ok {
		p.failed++
	}
}

// take is what was measured since the last time, nil where nothing was asked.
func (p *probe) take() (took *report.Latency, failed int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	took, failed = p.took.Latency(), p.failed
	p.took, p.failed = report.Histogram{}, 0
	return took, failed
}
