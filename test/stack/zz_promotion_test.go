//go:build stack

package stack

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// Promotion is one command: acked messages are kept, the epoch changes, and the old
// primary refuses to start as one, and becomes a standby once its disk is cleared. This
// is the last test on the shared stack, since files are read in the order of their names.
func TestPromotion(t *testing.T) {
	old, next := sharedStack.servers(t)
	epochs := make(chan message.Epoch, 16)
	c := sharedStack.connect(t, "ada", nil)
	joined, err := c.Join(t.Context(), "promotion", client.Start(), client.Handler{
		Message: func(message.Message) {},
		Gap:     func(g client.Gap) { epochs <- g.Epoch },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Publish(t.Context(), "promotion", json.RawMessage(`"before"`), ""); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, err := sharedStack.run("env", "COMPOSE_PROJECT_NAME="+sharedStack.name, "./promote")
	must(t, out, err)
	t.Logf("promote took %.1f s", time.Since(began).Seconds())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ack, err := c.Publish(ctx, "promotion", json.RawMessage(`"after"`), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the first ack of the new primary came %.1f s after the command", time.Since(began).Seconds())
	if ack.Epoch == joined.Epoch {
		t.Error("the epoch is the same after an asynchronous failover")
	}
	select {
	case epoch := <-epochs:
		if epoch != ack.Epoch {
			t.Errorf("the gap has epoch %s, the ack %s", epoch, ack.Epoch)
		}
	case <-time.After(30 * time.Second):
		t.Error("the client received no gap though its positions are void")
	}
	if n := sharedStack.sql(t, next, `SELECT count(*) FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name = 'promotion'`); n != "2" {
		t.Errorf("%s messages, not 2: a planned promotion loses nothing", n)
	}
	// Starting all services again does not make two primaries.
	_, _ = sharedStack.compose("up", "-d", "--no-deps", old)
	testkit.EventuallyNil(t, "the old primary's refusal", func() error {
		if out := outputOf(sharedStack.compose("logs", "--no-color", "--tail", "20", old)); !strings.Contains(out, "Remove its volume") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	sharedStack.rebuildStandby(t, old)
	testkit.EventuallyNil(t, "the old primary as a standby", func() error {
		if got := sharedStack.sql(t, next, "SELECT application_name, state FROM pg_stat_replication"); got != old+"|streaming" {
			return fmt.Errorf("replication: %s", got)
		}
		return nil
	})
}
