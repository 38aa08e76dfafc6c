package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// BenchmarkDeliveryAcrossNodes measures the time from a publish on one node to the
// delivery on the other: 1,000 messages a second in 100 rooms, on two nodes built
// without the race detector, with Redis, after Redis was killed, and without Redis.
func BenchmarkDeliveryAcrossNodes(b *testing.B) {
	for _, with := range []string{"Redis", "Redis dead", "no Redis"} {
		b.Run(with, func(b *testing.B) {
			env := map[string]string{"DATABASE_URL": testkit.StartPostgres(b).URL()}
			killBroker := func() {}
			if with != "no Redis" {
				redis := testkit.StartRedis(b)
				env["REDIS_URL"] = redis.URL()
				if with == "Redis dead" {
					killBroker = redis.Kill
				}
			}
			d := newDeliveryBench(b, env)
			d.warmUp()
			killBroker()
			d.measure()
		})
	}
}

// BenchmarkDeliveryBesideAnOldTransaction measures the same without Redis: undisturbed,
// with a transaction open in another database of the server while half an hour's rows of
// the commit feed were written, and after its end.
func BenchmarkDeliveryBesideAnOldTransaction(b *testing.B) {
	const rows = 30 * 60 * 20 // 20 batches a second
	for _, when := range []string{"undisturbed", "open", "ended"} {
		b.Run(when, func(b *testing.B) {
			pg := testkit.StartPostgres(b)
			d := newDeliveryBench(b, map[string]string{"DATABASE_URL": pg.URL()})
			pg.Exec("CREATE DATABASE elsewhere")
			other, err := pgx.Connect(b.Context(), pg.URLOf("elsewhere"))
			if err != nil {
				b.Fatal(err)
			}
			defer other.Close(context.Background())
			exec := func(sql string) {
				if _, err := other.Exec(b.Context(), sql); err != nil {
					b.Fatalf("%s: %v", sql, err)
				}
			}
			if when != "undisturbed" {
				exec("BEGIN")
				exec("SELECT pg_current_xact_id()")
			}
			insertFeedRows(pg, rows)
			d.warmUp()
			if when == "ended" {
				exec("COMMIT")
			}
			d.measure()
		})
	}
}

// insertFeedRows inserts rows of batches of the last half hour, with transaction ids
// that were given out before.
func insertFeedRows(pg *testkit.PG, rows int) {
	pg.Exec(fmt.Sprintf(`
		CREATE TEMPORARY TABLE burned (i int);
		DO $$ BEGIN
			FOR i IN 1..%[1]d LOOP
				BEGIN
					INSERT INTO burned VALUES (i); -- gives this subtransaction an id
				EXCEPTION WHEN division_by_zero THEN END;
			END LOOP;
		END $$;
		INSERT INTO commits
		SELECT (pg_current_xact_id()::text::bigint + i)::text::xid8, ARRAY['fed-' || i], '{1}',
			clock_timestamp() - interval '30 minutes' * (%[1]d - i) / %[1]d
		FROM burned
		ON CONFLICT DO NOTHING -- the nodes' canaries got some of the ids`, rows))
}

const (
	benchRooms = 100
	benchRate  = 1000
	// benchPublishers share the rooms.
	benchPublishers = 10
)

// A deliveryBench is two nodes with publishers on each. Every room has a member on the
// node that its publisher is not on.
type deliveryBench struct {
	b          *testing.B
	publishers []*client.Client // alternately on the two nodes

	pendingAcks sync.WaitGroup
	mu          sync.Mutex // Protects following.
	sent        map[string]time.Time
	latencies   load.Latencies
}

func newDeliveryBench(b *testing.B, env map[string]string) *deliveryBench {
	b.Helper()
	d := &deliveryBench{b: b, sent: map[string]time.Time{}}
	nodes := []*testkit.Server{testkit.StartPlainServer(b, env), testkit.StartPlainServer(b, env)}
	for i := range benchPublishers {
		d.publishers = append(d.publishers, d.dial(nodes[i%2]))
	}
	for i := range benchRooms {
		member := d.dial(nodes[1-i%2])
		if _, err := member.Join(b.Context(), d.room(i), client.Start(), client.Handler{Message: d.onMessage}); err != nil {
			b.Fatal(err)
		}
	}
	return d
}

// warmUp delivers some messages, which are not measured.
func (d *deliveryBench) warmUp() {
	d.b.Helper()
	for i := range 2 * benchRooms {
		d.publish(i)
	}
	d.waitDelivered()
	d.resetLatencies()
}

// measure publishes benchRate messages a second, and reports how long they took.
func (d *deliveryBench) measure() {
	d.b.Helper()
	began := time.Now()
	for i := 0; d.b.Loop(); i++ {
		// A ticker would skip the publishes that it is late for.
		<-time.After(time.Until(began.Add(time.Duration(i) * time.Second / benchRate)))
		d.publish(i)
	}
	d.waitDelivered()
	for q, unit := range map[float64]string{0.5: "p50-ms", 0.95: "p95-ms", 0.99: "p99-ms", 1: "max-ms"} {
		d.b.ReportMetric(float64(d.latencies.Quantile(q).Microseconds())/1000, unit)
	}
}

func (d *deliveryBench) dial(node *testkit.Server) *client.Client {
	d.b.Helper()
	ctx, cancel := context.WithTimeout(d.b.Context(), 30*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, client.Options{URLs: []string{node.SocketURL()}})
	if err != nil {
		d.b.Fatal(err)
	}
	d.b.Cleanup(c.Close)
	return c
}

func (d *deliveryBench) room(i int) message.Room {
	return message.Room(fmt.Sprintf("room-%d", i%benchRooms))
}

// publish sends message i, from the node that its room's member is not on.
func (d *deliveryBench) publish(i int) {
	d.b.Helper()
	id := client.NewID()
	d.mu.Lock()
	d.sent[id] = time.Now()
	d.mu.Unlock()
	d.pendingAcks.Add(1)
	send := func() error {
		return d.publishers[i%benchPublishers].Send(d.room(i), json.RawMessage(`"a message of some length, as people send them"`), id,
			func(_ client.Ack, err error) {
				defer d.pendingAcks.Done()
				if err != nil {
					d.b.Error(err)
				}
			})
	}
	err := send()
	for errors.Is(err, client.ErrBusy) { // ns/op shows that it falls behind
		<-time.After(time.Millisecond)
		err = send()
	}
	if err != nil {
		d.b.Fatal(err)
	}
}

func (d *deliveryBench) onMessage(m message.Message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.latencies.Add(time.Since(d.sent[m.ID]))
	delete(d.sent, m.ID)
}

func (d *deliveryBench) resetLatencies() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.latencies = load.Latencies{}
}

// waitDelivered waits until every message has been delivered.
func (d *deliveryBench) waitDelivered() {
	d.b.Helper()
	d.pendingAcks.Wait()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); ; <-tick.C {
		d.mu.Lock()
		left := len(d.sent)
		d.mu.Unlock()
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			d.b.Fatalf("%d messages were not delivered", left)
		}
	}
}
