package http

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// Who is refused again and again waits for the answers. Others do not, and a node that
// stops does not wait.
func TestRefusalsOfWhoCallsTooOftenAreLate(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startKeyedNode(t, "", trustLoopback)
		refused := func(address string) time.Duration {
			began := time.Now()
			res, _ := n.request("GET", "/v1/rooms/a/messages", http.Header{"X-Forwarded-For": {address}}, nil)
			if res.StatusCode != http.StatusUnauthorized {
				t.Errorf("a call without a token: %d", res.StatusCode)
			}
			return time.Since(began)
		}
		const atOnce, perSecond, late, atATime = 100, 10, 2 * time.Second, 128 // docs/limits.md
		for i := range atOnce {
			if took := refused("198.51.100.1"); took > 0 {
				t.Fatalf("refusal %d took %v", i, took)
			}
		}
		if took := refused("198.51.100.1"); took != late {
			t.Errorf("one too many took %v", took)
		}
		for i := range perSecond * 2 {
			if took := refused("198.51.100.1"); took > 0 {
				t.Errorf("refusal %d after two seconds took %v", i, took)
			}
		}
		if took := refused("198.51.100.2"); took > 0 {
			t.Errorf("a refusal of another address took %v", took)
		}
		if took := refused("127.0.0.1"); took > 0 {
			t.Errorf("a refusal of who is not counted took %v", took)
		}
		var prompt atomic.Int64
		var all sync.WaitGroup
		for range atATime + 3 {
			all.Go(func() {
				c, err := n.dialRaw(n.addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				began := time.Now()
				_, _ = fmt.Fprintf(c, "GET /v1/rooms/a/messages HTTP/1.1\r\nHost: %s\r\nX-Forwarded-For: 198.51.100.1\r\nConnection: close\r\n\r\n", n.addr)
				answer, _ := io.ReadAll(c)
				if !strings.Contains(string(answer), " 401 ") {
					t.Errorf("answered %q", answer)
				}
				if time.Since(began) < 200*time.Millisecond {
					prompt.Add(1)
				}
			})
		}
		time.Sleep(200 * time.Millisecond) // all are accepted
		if got := prompt.Load(); got != 3 {
			t.Errorf("%d of %d were refused at once, want all that are too many to wait", got, atATime+3)
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Timeout)
		defer cancel()
		if err := n.public.Shutdown(ctx); err != nil || time.Since(began) >= late {
			t.Errorf("the node stopped after %v: %v", time.Since(began), err)
		}
		all.Wait()
	})
}
