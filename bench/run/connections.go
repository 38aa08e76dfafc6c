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
	connectionNodes    = 5
	connectionsPerNode = 19000 // a process may open 20,000 descriptors on many machines
)

// manyConnections opens 95,000 connections to five nodes, all in one room, requests
// /healthz all the while, and sends messages to all of them.
func (r *runner) manyConnections(ctx context.Context) error {
	nodes, each := connectionNodes, connectionsPerNode
	if r.opts.quick {
		each = 2000
	}
	targets, err := r.startNodes(ctx, nodes, "")
	if err != nil {
		return err
	}
	health := startHealthProbe(ctx, targets)
	var holders []*heldConnections
	began := time.Now()
	for i, t := range targets {
		before := report.RSS(t.process.pid())
		h, run, err := r.holdConnections(ctx, append(t.args(), "-n", fmt.Sprint(each), "-rooms", "1", "-prefix", "crowd")...)
		if err != nil {
			return err
		}
		defer h.quit()
		holders = append(holders, h)
		run.RSS = report.RSS(t.process.pid()) - before
		run.Server, run.Test = serviceName, fmt.Sprintf("node %d", i+1)
		if err := r.appendResult("crowd", &run); err != nil {
			return err
		}
	}
	fmt.Printf("%d connections after %v\n", nodes*each, time.Since(began).Round(time.Second))
	if err := r.recordHealthz(health, "while they connect"); err != nil {
		return err
	}
	time.Sleep(10 * time.Second)
	var rss int64
	for _, t := range targets {
		rss += report.RSS(t.process.pid())
	}
	fmt.Printf("RSS together %.2f GB\n", float64(rss)/1e9)
	if err := r.recordHealthz(health, "at rest"); err != nil {
		return err
	}
	want := int64(0)
	for range 5 {
		want += int64(each)
		took, err := publishToAll(ctx, holders, want)
		if err != nil {
			return err
		}
		run := report.Run{Scenario: "hold", Protocol: "switchyard", Server: serviceName, Test: "one message to all",
			Connections: nodes * each, Seconds: report.Round(took.Seconds()), RSS: rss}
		if err := r.appendResult("crowd", &run); err != nil {
			return err
		}
		fmt.Printf("one message to all %d: %v\n", nodes*each, took.Round(time.Millisecond))
		time.Sleep(2 * time.Second)
	}
	return r.recordHealthz(health, "while it went out")
}

// recordHealthz prints and keeps the latency of /healthz since the last call.
func (r *runner) recordHealthz(p *healthProbe, when string) error {
	took, failed := p.takeLatency()
	if took == nil {
		return errors.New("/healthz was not requested")
	}
	fmt.Printf("/healthz %s: p50 %.3g ms, p99 %.3g ms, worst %.3g ms of %d, %d failed\n", when, took.P50, took.P99, took.Max, took.N, failed)
	run := report.Run{Scenario: "hold", Protocol: "http", Server: serviceName, Test: "/healthz " + when, Failed: failed, Healthz: took}
	return r.appendResult("crowd", &run)
}

// publishToAll has the first driver publish, and returns the time until the last member
// had the message.
func publishToAll(ctx context.Context, holders []*heldConnections, want int64) (time.Duration, error) {
	holders[0].command("publish")
	deadline := time.Now().Add(30 * time.Second)
	for {
		time.Sleep(300 * time.Millisecond)
		var published, last int64
		complete := true
		for _, h := range holders {
			r, err := h.report()
			if err != nil {
				return 0, err
			}
			published, last = max(published, r.LastPublish), max(last, r.LastArrival)
			complete = complete && r.Delivered >= want
		}
		if complete {
			return time.Duration(last - published), nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return 0, errors.New("a message has not reached every member after 30 s")
		}
	}
}

// startNodes starts nodes on one database and one Redis.
func (r *runner) startNodes(ctx context.Context, n int, cores string) ([]*target, error) {
	url, err := r.database(ctx)
	if err != nil {
		return nil, err
	}
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, fmt.Errorf("%w: install redis-server", err)
	}
	port := freePort()
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	redis, err := r.start(ctx, addr, "", nil, program, "--port", fmt.Sprint(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", r.dir)
	if err != nil {
		return nil, err
	}
	var all []*target
	for range n {
		t, err := r.startService(ctx, url, cores, false, "REDIS_URL=redis://"+addr+"/0")
		if err != nil {
			return nil, err
		}
		t.backingPids = append(t.backingPids, redis.pid())
		all = append(all, t)
	}
	return all, nil
}

// A healthProbe requests every node's /healthz ten times a second. It is safe for
// concurrent use.
type healthProbe struct {
	mu     sync.Mutex
	took   report.Histogram
	failed int
}

func startHealthProbe(ctx context.Context, targets []*target) *healthProbe {
	p := &healthProbe{}
	client := &http.Client{Timeout: 5 * time.Second}
	for _, t := range targets {
		go func() {
			for ctx.Err() == nil {
				p.request(ctx, client, "http://"+t.addr+"/healthz")
				time.Sleep(100 * time.Millisecond)
			}
		}()
	}
	return p
}

func (p *healthProbe) request(ctx context.Context, client *http.Client, url string) {
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

// takeLatency returns the latency since the last call, nil without a request.
func (p *healthProbe) takeLatency() (took *report.Latency, failed int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	took, failed = p.took.Latency(), p.failed
	p.took, p.failed = report.Histogram{}, 0
	return took, failed
}
