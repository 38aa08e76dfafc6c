package sharedstate

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// withStalledRedis runs a test in virtual time, on a node whose Redis accepts
// connections and commands but never answers.
func withStalledRedis(t *testing.T, run func(t *testing.T, p *testNode)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &testNode{reg: prometheus.NewRegistry(), logs: new(testkit.Logs)}
		var mu sync.Mutex
		var serverEnds []net.Conn
		ended := false
		dial := func(context.Context, string, string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if ended {
				return nil, net.ErrClosed
			}
			clientEnd, serverEnd := net.Pipe()
			serverEnds = append(serverEnds, serverEnd)
			go func() { _, _ = io.Copy(io.Discard, serverEnd) }()
			return clientEnd, nil
		}
		n, err := OpenRedis(Config{
			Node: "node-a", Redis: &redis.UniversalOptions{Addrs: []string{"127.0.0.1:6379"}, Dialer: dial},
			Registerer: p.reg, Logger: p.logs.Logger(),
		})
		if err != nil {
			t.Fatal(err)
		}
		p.Node = n
		n.Start(Hooks{Status: p.reportStatus, Notify: p.onEvent})
		run(t, p)
		// The library closes a connection under a lock that its reader holds, which
		// would stop the clock of the bubble. So the connections break first.
		mu.Lock()
		ended = true
		for _, conn := range serverEnds {
			_ = conn.Close()
		}
		mu.Unlock()
		synctest.Wait()
		if err := n.Close(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute) // until the library has given up its attempts to dial
	})
}

// A client that connects waits for a Redis that does not answer no longer than
// docs/shared-state.md says: 500 ms, and as long again in the queue. Once the node has
// noticed, clients do not wait at all.
func TestHandshakesDoNotWaitForAStalledRedis(t *testing.T) {
	withStalledRedis(t, func(t *testing.T, p *testNode) {
		secret, s := p.New("ada")
		resumeMany := func(count int) time.Duration {
			began := time.Now()
			var all sync.WaitGroup
			for range count {
				all.Go(func() {
					if _, ok, err := p.Resume(t.Context(), secret, "ada"); ok || !errors.Is(err, message.ErrSharedStateUnavailable) {
						t.Errorf("resume: %v, %v; want ErrSharedStateUnavailable", ok, err)
					}
				})
			}
			all.Wait()
			return time.Since(began)
		}
		if took := resumeMany(1000); took < 500*time.Millisecond || took > time.Second {
			t.Errorf("the first handshakes waited %v, want 500 ms to 1 s", took)
		}
		if took := resumeMany(1000); took != 0 {
			t.Errorf("later handshakes waited %v, want none", took)
		}
		if got := p.trySave(t, s, false); got != message.SaveFailed || p.Up() {
			t.Errorf("save: %v; up %v", saveResults[got], p.Up())
		}
		if got := p.logs.Count("Redis can't be reached"); got != 1 {
			t.Errorf("the outage is logged %d times, want 1:\n%s", got, p.logs)
		}
	})
}
