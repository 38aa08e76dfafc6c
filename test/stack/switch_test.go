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
	"switchyard/internal/testkit"
)

// A probeResult is the outcome of one handshake of a prober.
type probeResult struct {
	began       time.Duration // since the prober's start
	took        time.Duration
	color, node string // of the replica that welcomed it
	err         error
}

// A prober makes handshakes at a steady rate, until stop.
type prober struct {
	s      *stack
	start  time.Time
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu      sync.Mutex // Protects following.
	results []probeResult
}

// startProber starts a prober that makes rate handshakes a second.
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

// stop ends the prober, and returns all results in the order in which they began.
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

// probeOnce opens a socket, reads the welcome and closes.
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
	// How the close goes does not matter: the connection was welcomed.
	_ = conn.Close(websocket.StatusNormalClosure, "")
	return welcome.Color, welcome.Node, nil
}

// trustForwardedFor has Traefik trust X-Forwarded-For, as behind a CDN: this machine then
// has the 200 addresses of testAddress.
func (s *stack) trustForwardedFor(t *testing.T) {
	t.Helper()
	if err := s.setEnv(map[string]string{"TRUSTED_IPS": "10.0.0.0/8"}); err != nil {
		t.Fatal(err)
	}
	out, err := s.compose("up", "-d", "--wait", "--wait-timeout", "120", "--no-deps", "traefik")
	must(t, out, err)
	testkit.EventuallyNil(t, "both colors up in Traefik", func() error {
		for _, color := range []string{"blue", "green"} {
			if up := s.serversUp(t, color); up != 3 {
				return fmt.Errorf("%d servers of %s are up", up, color)
			}
		}
		return nil
	})
}

// serversUp returns how many servers of a color are up by Traefik's API.
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

// eventuallyWithin is testkit.EventuallyNil with a limit of its own: one that the stack
// must keep, or more than a minute.
func eventuallyWithin(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", limit, what, err)
		}
	}
}

// The live color changes 20 times, by hand as the operations page says, while 500 clients
// of 200 addresses publish and others connect.
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
	t.Logf("20 switches, %d new connections meanwhile: the first on the new color began %v after the rename (median; worst %v), the last on the old one %v (worst %v)",
		handshakes, first[10], first[19], last[10], last[19])
	if first[19] > 100*time.Millisecond {
		t.Errorf("a switch took %v, want at most 100 ms", first[19])
	}
}

// pauseFor lets the length of a measurement pass. Waiting for an event is
// testkit.EventuallyNil's.
func pauseFor(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}
