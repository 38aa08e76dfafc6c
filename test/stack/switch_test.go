//go:build stack

package stack

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/load"
)

// A probeResult is one handshake of a prober.
type probeResult struct {
	began, took time.Duration // since the prober's start
	color, node string        // who welcomed it
	err         error
}

// A prober makes handshakes without end, at a steady rate, and says how each went.
type prober struct {
	s      *stack
	start  time.Time
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu      sync.Mutex // Protects following.
	results []probeResult
}

// startProber starts a prober of so many handshakes a second.
func (s *stack) startProber(ctx context.Context, rate int) *prober {
	ctx, cancel := context.WithCancel(ctx)
	p := &prober{s: s, start: time.Now(), cancel: cancel}
	p.all.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		slots := make(chan struct{}, 200)
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			slots <- struct{}{}
			p.all.Go(func() {
				defer func() { <-slots }()
				v := probeResult{began: time.Since(p.start)}
				v.color, v.node, v.err = s.probeOnce(context.WithoutCancel(ctx), testAddress(n%200))
				v.took = time.Since(p.start) - v.began
				p.mu.Lock()
				defer p.mu.Unlock()
				p.results = append(p.results, v)
			})
		}
	})
	return p
}

// stop ends it and returns all visits in the order of their begin.
func (p *prober) stop() []probeResult {
	p.cancel()
	p.all.Wait()
	slices.SortFunc(p.results, func(a, b probeResult) int { return int(a.began - b.began) })
	return p.results
}

func failures(results []probeResult) (failed []probeResult) {
	for _, v := range results {
		if v.err != nil {
			failed = append(failed, v)
		}
	}
	return failed
}

// probeOnce opens a socket, hears who is there and goes.
func (s *stack) probeOnce(ctx context.Context, from string) (color, node string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, "wss://"+domain+"/ws", &websocket.DialOptions{
		HTTPClient:   &http.Client{Transport: &http.Transport{DialContext: s.dial, TLSClientConfig: s.tlsConfig(), DisableKeepAlives: true}},
		HTTPHeader:   http.Header{"Authorization": {"Bearer " + s.token("prober")}, "X-Forwarded-For": {from}},
		Subprotocols: []string{"switchyard.v1"},
	})
	if err != nil {
		return "", "", err
	}
	defer conn.CloseNow()
	_, text, err := conn.Read(ctx)
	if err != nil {
		return "", "", fmt.Errorf("no welcome: %w", err)
	}
	var welcome struct{ Type, Color, Node string }
	if err := json.Unmarshal(text, &welcome); err != nil || welcome.Type != "welcome" {
		return "", "", fmt.Errorf("no welcome: %.100s", text)
	}
	// Whatever becomes of it now: the newcomer was welcomed.
	_ = conn.Close(websocket.StatusNormalClosure, "")
	return welcome.Color, welcome.Node, nil
}

// trustForwardedFor has Traefik take the address that a client names for its own, as
// behind a CDN: 200 addresses come from this one machine.
func (s *stack) trustForwardedFor(t *testing.T) {
	t.Helper()
	if err := s.setEnv(map[string]string{"TRUSTED_IPS": "10.0.0.0/8"}); err != nil {
		t.Fatal(err)
	}
	out, err := s.compose("up", "-d", "--wait", "--wait-timeout", "120", "--no-deps", "traefik")
	must(t, out, err)
	eventually(t, 30*time.Second, "both colours up in Traefik", func() error {
		for _, color := range []string{"blue", "green"} {
			if up := s.serversUp(t, color); up != 3 {
				return fmt.Errorf("%d servers of %s are up", up, color)
			}
		}
		return nil
	})
}

// serversUp asks Traefik's API.
func (s *stack) serversUp(t *testing.T, color string) (up int) {
	t.Helper()
	out, err := s.compose("exec", "-T", "traefik", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/api/http/services/app-"+color+"@file")
	if err != nil {
		return 0
	}
	var service struct{ ServerStatus map[string]string }
	if err := json.Unmarshal([]byte(out), &service); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, status := range service.ServerStatus {
		if status == "UP" {
			up++
		}
	}
	return up
}

// eventually asks until the answer is no error.
func eventually(t *testing.T, within time.Duration, what string, ask func() error) {
	t.Helper()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(within); ; <-look.C {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
	}
}

// The colours change 20 times, by hand as the operators' page says, under 500
// clients of 200 addresses who talk, while others come in.
func TestTwentySwitches(t *testing.T) {
	sharedStack.trustForwardedFor(t)
	run := sharedStack.startRun(t, load.Plan{Clients: 500, Rooms: 25, Rate: 200, RampUp: 10 * time.Second}, 200)
	var first, last []time.Duration
	handshakes := 0
	live := "blue"
	for range 20 {
		next := map[string]string{"blue": "green", "green": "blue"}[live]
		p := sharedStack.startProber(t.Context(), 60)
		pauseFor(t, 700*time.Millisecond)
		at := sharedStack.activateColor(t, next).Sub(p.start)
		pauseFor(t, 900*time.Millisecond)
		results := p.stop()
		handshakes += len(results)
		for _, v := range failures(results) {
			t.Errorf("to %s, %v after the rename: %v", next, v.began-at, v.err)
		}
		toNew, fromOld := time.Hour, time.Duration(0)
		for _, v := range results {
			if v.err == nil && v.color == next && v.began >= at {
				toNew = min(toNew, v.began-at)
			}
			if v.err == nil && v.color == live {
				fromOld = max(fromOld, v.began-at)
			}
		}
		first, last = append(first, toNew), append(last, fromOld)
		live = next
	}
	stopAndAssertClean(t, run)
	slices.Sort(first)
	slices.Sort(last)
	t.Logf("20 switches, %d new connections meanwhile: the first on the new colour began %v after the rename (median; worst %v), the last on the old one %v (worst %v)",
		handshakes, first[10], first[19], last[10], last[19])
	if first[19] > 100*time.Millisecond {
		t.Errorf("a switch took %v, 100 ms are allowed", first[19])
	}
}

// pauseFor lets time pass in which things happen elsewhere: a measurement's length,
// never a way to wait for something.
func pauseFor(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}
