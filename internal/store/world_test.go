package store

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// patience bounds every wait of a test; nothing should need it.
const patience = 20 * time.Second

// theLog is what both dialects promise.
type theLog interface {
	Start(settled func([]*message.Publication))
	Append(*message.Publication)
	AppendBatch(context.Context, []*message.Publication) error
	ListRooms(ctx context.Context, prefix string, after message.Room, limit int) ([]message.RoomInfo, bool, error)
	Read(context.Context, message.Range) (message.Page, error)
	Commits(context.Context, message.Cursor) (message.Commits, error)
	Heads(context.Context, []message.Room) (message.Epoch, []message.Head, error)
	Check() error
	Close(context.Context) error
	prune(context.Context) error
	retention() *retention
}

// A world is a fresh, migrated database of one dialect.
type world struct {
	t     *testing.T
	url   string
	pg    *testkit.PG // nil on SQLite
	nodes int         // how many nodes may share it in a test
}

// inEachWorld runs a story on both dialects.
func inEachWorld(t *testing.T, story func(t *testing.T, w *world)) {
	t.Run("postgres", func(t *testing.T) { story(t, postgresWorld(t, testkit.Postgres(t))) })
	t.Run("sqlite", func(t *testing.T) { story(t, sqliteWorld(t)) })
}

func postgresWorld(t *testing.T, pg *testkit.PG) *world {
	t.Helper()
	w := &world{t: t, url: pg.URL(), pg: pg, nodes: 2}
	w.migrate()
	if laterSchema != "" {
		w.migrateLater(laterSchema)
	}
	return w
}

func sqliteWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, url: "sqlite:" + filepath.Join(t.TempDir(), "odd #name?100%.db"), nodes: 1}
	w.migrate()
	if laterSchema != "" {
		w.migrateLater(laterSchema)
	}
	return w
}

func (w *world) migrate() {
	w.t.Helper()
	if err := Migrate(w.t.Context(), w.url); err != nil {
		w.t.Fatal(err)
	}
}

// open opens the log as one more node.
func (w *world) open(change ...func(*Config)) (theLog, error) {
	c := Config{
		URL: w.url, Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
		// A busy machine may take longer than the default for what is to be stored.
		AppendTimeout: time.Minute,
	}
	for _, f := range change {
		f(&c)
	}
	if w.pg != nil {
		p, err := OpenPostgres(w.t.Context(), c)
		if err != nil {
			return nil, err
		}
		return p, nil
	}
	s, err := OpenSQLite(w.t.Context(), c)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// exec runs SQL beside the log: the hand of fate.
func (w *world) exec(query string) {
	w.t.Helper()
	if w.pg != nil {
		w.pg.Exec(query)
		return
	}
	path, _ := sqlitePath(w.url)
	db, err := sql.Open("sqlite", sqliteURI(path, "rw", "_txlock=immediate"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
}

// poison has the database refuse messages whose data are "poison".
func (w *world) poison() {
	w.t.Helper()
	if w.pg != nil {
		w.exec(`ALTER TABLE messages ADD CHECK (data <> 'poison'::bytea)`)
		return
	}
	w.exec(`CREATE TRIGGER poison BEFORE INSERT ON messages WHEN CAST(NEW.data AS TEXT) = 'poison'
		BEGIN SELECT RAISE(ABORT, 'poisoned'); END`)
}

// A node is an opened log with a listener that keeps the contract of settled.
type node struct {
	theLog
	t  *testing.T
	mu sync.Mutex
	in map[message.Room]bool // settled is being called for it
}

// node opens and starts a node that is closed with the test.
func (w *world) node(change ...func(*Config)) *node {
	w.t.Helper()
	n := w.idle(change...)
	n.start()
	return n
}

// idle opens a node that does not commit yet.
func (w *world) idle(change ...func(*Config)) *node {
	w.t.Helper()
	l, err := w.open(change...)
	if err != nil {
		w.t.Fatal(err)
	}
	n := &node{theLog: l, t: w.t, in: map[message.Room]bool{}}
	w.t.Cleanup(n.close)
	return n
}

func (n *node) close() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		n.t.Errorf("close: %v", err)
	}
}

func (n *node) start() { n.Start(n.settled) }

func (n *node) settled(pubs []*message.Publication) {
	room := pubs[0].Room
	n.mu.Lock()
	if n.in[room] {
		n.t.Errorf("settled is called twice at once for %s", room)
	}
	n.in[room] = true
	n.mu.Unlock()
	for i, p := range pubs {
		if p.Room != room {
			n.t.Errorf("one call of settled has rooms %s and %s", room, p.Room)
		}
		if i > 0 && p.Seq < pubs[i-1].Seq {
			n.t.Errorf("settled out of order: %d after %d", p.Seq, pubs[i-1].Seq)
		}
	}
	n.mu.Lock()
	n.in[room] = false
	n.mu.Unlock()
	for _, p := range pubs {
		close(p.Owner.(chan struct{}))
	}
}

// append hands a publication over without waiting for it.
func (n *node) append(room, from, id, data string) *message.Publication {
	p := &message.Publication{
		Draft: message.Draft{Room: message.Room(room), ID: id, From: from, Data: []byte(data)},
		Owner: make(chan struct{}),
	}
	n.Append(p)
	return p
}

// wait returns a publication once it is settled.
func wait(t *testing.T, p *message.Publication) *message.Publication {
	t.Helper()
	select {
	case <-p.Owner.(chan struct{}):
	case <-time.After(patience):
		t.Fatalf("%s of %s was never settled", p.ID, p.Room)
	}
	return p
}

// publish is append and wait.
func (n *node) publish(room, from, id, data string) *message.Publication {
	n.t.Helper()
	return wait(n.t, n.append(room, from, id, data))
}

// stored publishes what must succeed.
func (n *node) stored(room, id, data string) *message.Publication {
	n.t.Helper()
	p := n.publish(room, "ann", id, data)
	if p.Err != nil {
		n.t.Fatalf("publish %s: %v", id, p.Err)
	}
	return p
}

// all reads a whole room and fails on a hole.
func (n *node) all(room string) []message.Message {
	n.t.Helper()
	var all []message.Message
	for more := true; more; {
		page, err := n.Read(n.t.Context(), message.Range{
			Room: message.Room(room), After: message.Seq(len(all)), Limit: 100, MaxBytes: 1 << 20})
		if err != nil {
			n.t.Fatal(err)
		}
		for _, m := range page.Messages {
			if want := message.Seq(len(all) + 1); m.Seq != want {
				n.t.Fatalf("room %s has %d where %d should be", room, m.Seq, want)
			}
			all = append(all, m)
		}
		if more = page.More; !more && page.Head != message.Seq(len(all)) {
			n.t.Fatalf("room %s: head is %d and %d messages are there", room, page.Head, len(all))
		}
	}
	return all
}

// epoch returns the epoch that readers see.
func (n *node) epoch() message.Epoch {
	n.t.Helper()
	c, err := n.Commits(n.t.Context(), 0)
	if err != nil {
		n.t.Fatal(err)
	}
	return c.Epoch
}

// eventually polls a condition and fails with what it said last.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func numbered(prefix string, n int) string { return fmt.Sprintf("%s-%d", prefix, n) }
