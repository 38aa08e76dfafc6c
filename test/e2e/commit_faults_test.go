package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/testkit"
)

// PostgreSQL has committed, and its answer never reaches the node. The next attempt
// with the same id finds what is stored: the publisher's resend where the node died
// or gave up, otherwise the node's own retry. No member receives a message twice.
func TestALostCommitAnswerIsResolvedByID(t *testing.T) {
	t.Parallel()
	pg := testkit.Postgres(t)
	proxy, env := behindProxy(t, pg)
	env["APPEND_TIMEOUT"] = "1s"
	env["RATE_PUBLISH"] = "0" // while the log is not available, the publisher resends without a pause
	a := testkit.StartServer(t, env)
	b := testkit.StartServer(t, map[string]string{"DATABASE_URL": pg.URL()})
	member := dialRaw(t, b)
	member.send(`{"type":"join","room":"orders"}`)
	member.readUntil("joined")
	w := dialRaw(t, a)
	w.publishUntilAcked("orders", "order-0")

	// Only the connection breaks: the node retries, and the publisher waits.
	lost := proxy.DropResponse("order-1", "COMMIT\x00", false)
	if got := w.publishUntilAcked("orders", "order-1"); got["seq"] != json.Number("2") || got["duplicate"] != true {
		t.Errorf("after the node's retry: %v", got)
	}
	requireFault(t, lost)

	// The database stays unreachable: the publisher learns that the outcome is
	// unknown, and resends when the database is back.
	lost = proxy.DropResponse("order-2", "COMMIT\x00", true)
	if got, _ := w.publish("orders", "order-2"); got["code"] != "unavailable" {
		t.Errorf("while the database is unreachable: %v", got)
	}
	requireFault(t, lost)
	if got := storedIDs(pg, "orders"); got != "order-0 order-1 order-2" {
		t.Errorf("stored is %s", got)
	}
	proxy.Refuse(false)
	if got := w.publishUntilAcked("orders", "order-2"); got["seq"] != json.Number("3") || got["duplicate"] != true {
		t.Errorf("after the resend: %v", got)
	}

	// The node dies before it can answer: the publisher resends to another one.
	lost = proxy.DropResponse("order-3", "COMMIT\x00", true)
	w.send(`{"type":"publish","room":"orders","id":"order-3","data":"order-3"}`)
	testkit.Eventually(t, "the answer to be lost", func() bool { return faultOccurred(lost) })
	a.Kill()
	w = dialRaw(t, b)
	if got := w.publishUntilAcked("orders", "order-3"); got["seq"] != json.Number("4") || got["duplicate"] != true {
		t.Errorf("after the resend to another node: %v", got)
	}
	w.publishUntilAcked("orders", "order-4")

	for seq, id := range []string{"order-0", "order-1", "order-2", "order-3", "order-4"} {
		if got := member.readUntil("message"); got["id"] != id || got["seq"] != json.Number(strconv.Itoa(seq+1)) {
			t.Fatalf("the member on the other node got %v as %d", got, seq+1)
		}
	}
}

func faultOccurred(fault <-chan struct{}) bool {
	select {
	case <-fault:
		return true
	default:
		return false
	}
}

// requireFault fails a test whose fault did not happen.
func requireFault(t *testing.T, fault <-chan struct{}) {
	t.Helper()
	if !faultOccurred(fault) {
		t.Fatal("the fault did not happen: the test shows nothing")
	}
}

// Another program's transaction locks the rooms of a batch in the other order.
// PostgreSQL aborts the batch (40P01), and the node commits it again.
func TestADeadlockIsRetried(t *testing.T) {
	t.Parallel()
	pg := testkit.Postgres(t)
	// Shorter, the other transaction has no time to complete the cycle; from the
	// node's own lock_timeout of 2 s on, the batch gives up before the deadlock is found.
	pg.Exec("ALTER DATABASE " + pg.Database() + " SET deadlock_timeout = '1500ms'")
	s := testkit.StartServer(t, map[string]string{"DATABASE_URL": pg.URL(), "API_KEYS": "shop:" + apiKey})
	w := dialRaw(t, s)
	w.publishUntilAcked("a", "0")
	w.publishUntilAcked("z", "0")

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	foreign, err := pgx.Connect(ctx, pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close(context.WithoutCancel(ctx))
	exec := func(statements ...string) {
		t.Helper()
		for _, sql := range statements {
			if _, err := foreign.Exec(ctx, sql); err != nil {
				t.Fatal(err)
			}
		}
	}
	exec("SET deadlock_timeout = '1h'", "BEGIN", "SELECT FROM rooms WHERE name = 'z' FOR UPDATE")
	answer := make(chan string, 1)
	go func() {
		_, body := post(t, s, "/v1/messages", `[{"room":"a","data":1,"id":"1"},{"room":"z","data":1,"id":"1"}]`)
		answer <- body
	}()
	testkit.Eventually(t, "the batch to wait for the other transaction", func() (waits bool) {
		if err := foreign.QueryRow(ctx, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))").Scan(&waits); err != nil {
			t.Fatal(err)
		}
		return waits
	})
	// This statement waits for the batch, which holds a, until PostgreSQL aborts it.
	exec("SELECT FROM rooms WHERE name = 'a' FOR UPDATE", "COMMIT")
	if got := <-answer; strings.Count(got, `"seq":2`) != 2 || strings.Contains(got, "unavailable") {
		t.Errorf("the backend receives %s", got)
	}
	if got := pg.Query(`SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`); got == "0" {
		t.Fatal("there was no deadlock")
	}
	if got := storedIDs(pg, "a") + " " + storedIDs(pg, "z"); got != "0 1 0 1" {
		t.Errorf("stored is %s", got)
	}
}

// A COMMIT may fail with 40001, by a setting or a trigger of the database: it is
// retried. Here a deferred trigger refuses two of three.
func TestASerializationFailureIsRetried(t *testing.T) {
	t.Parallel()
	pg := testkit.Postgres(t)
	s := testkit.StartServer(t, map[string]string{"DATABASE_URL": pg.URL(), "API_KEYS": "shop:" + apiKey})
	w := dialRaw(t, s)
	w.publishUntilAcked("room", "0")
	pg.Exec(`CREATE SEQUENCE tried`, // a rollback does not reset it
		`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF nextval('tried') % 3 > 0 THEN
				RAISE EXCEPTION 'could not serialize access' USING ERRCODE = 'serialization_failure';
			END IF;
			RETURN NULL;
		END $$`,
		`CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON commits DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION refuse()`)
	for i := 1; i <= 5; i++ {
		if got, _ := w.publish("room", strconv.Itoa(i)); got["type"] != "ack" || got["seq"] != json.Number(strconv.Itoa(i+1)) {
			t.Errorf("publish %d: %v", i, got)
		}
	}
	if _, got := post(t, s, "/v1/messages", `[{"room":"room","data":1,"id":"6"},{"room":"room","data":1,"id":"7"}]`); strings.Count(got, `"seq":`) != 2 {
		t.Errorf("a batch: %s", got)
	}
	if got := pg.Query("SELECT last_value >= 18 FROM tried"); got != "t" {
		t.Error("nothing was refused")
	}
	if got := storedIDs(pg, "room"); got != "0 1 2 3 4 5 6 7" {
		t.Errorf("stored is %s", got)
	}
}

// Four publishers on two nodes publish in one room as fast as they can, while the
// connections of one node to PostgreSQL break again and again. Each publisher is
// acked in the order it sent, and members of both nodes see the same order.
func TestAHotRoomKeepsItsOrderOnTwoNodes(t *testing.T) {
	t.Parallel()
	const each, cutEvery = 250, 50 // messages
	pg := testkit.Postgres(t)
	proxy, env := behindProxy(t, pg)
	env["APPEND_TIMEOUT"] = "60s"
	env["REDIS_URL"] = testkit.StartRedis(t).URL()
	direct := map[string]string{"DATABASE_URL": pg.URL(), "APPEND_TIMEOUT": "60s", "REDIS_URL": env["REDIS_URL"]}
	nodes := []*testkit.Server{testkit.StartServer(t, env), testkit.StartServer(t, direct)}
	var members, publishers []*rawClient
	for i := range 4 {
		m := dialRaw(t, nodes[i%2])
		m.send(`{"type":"join","room":"hot"}`)
		m.readUntil("joined")
		members, publishers = append(members, m), append(publishers, dialRaw(t, nodes[i%2]))
	}
	var working sync.WaitGroup
	acked := make(chan struct{}, len(publishers)*each)
	for p, w := range publishers {
		working.Go(func() {
			for i := range each {
				w.send(fmt.Sprintf(`{"type":"publish","room":"hot","id":"%d-%d","data":%d}`, p, i, i))
			}
		})
		working.Go(func() { expectAcksInOrder(w, p, each, acked) })
	}
	seen := make([]string, len(members))
	for i, m := range members {
		working.Go(func() { seen[i] = m.inOrder(len(publishers) * each) })
	}
	go func() { working.Wait(); close(acked) }()
	n := 0
	for range acked {
		if n++; n%cutEvery == 0 {
			proxy.Cut()
		}
	}
	if proxy.FaultCounts().Cut == 0 {
		t.Error("no connection was cut")
	}
	for i := range seen {
		if seen[i] != seen[0] {
			t.Errorf("member %d saw another order than member 0", i)
		}
	}
}

// expectAcksInOrder reads the acks of a publisher's messages: they come in the order
// sent, with growing seqs. It reports each one on acked.
func expectAcksInOrder(w *rawClient, publisher, n int, acked chan<- struct{}) {
	last := int64(0)
	for i := range n {
		got := w.readUntil("ack", "error")
		number, _ := got["seq"].(json.Number)
		seq, _ := number.Int64()
		if got["id"] != fmt.Sprintf("%d-%d", publisher, i) || seq <= last {
			w.t.Errorf("publisher %d: answer %d is %v, after seq %d", publisher, i, got, last)
			return
		}
		last = seq
		acked <- struct{}{}
	}
}

// inOrder reads n messages, which must have the seqs from 1 on, and returns
// their ids.
func (c *rawClient) inOrder(n int) string {
	var ids strings.Builder
	for i := range n {
		got := c.readUntil("message")
		if got["seq"] != json.Number(strconv.Itoa(i+1)) {
			c.t.Errorf("message %d is %v", i+1, got)
			return ""
		}
		fmt.Fprintln(&ids, got["id"])
	}
	return ids.String()
}
