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

// logUnderTest has the methods of both dialects.
type logUnderTest interface {
	Start(onCompleted func([]*message.Publication))
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

// A fixture is a fresh, migrated database of one dialect.
type fixture struct {
	t        *testing.T
	url      string
	pg       *testkit.PG // nil on SQLite
	maxNodes int         // how many nodes may share it in a test
}

// forEachDialect runs a test on both dialects, in parallel with all others.
func forEachDialect(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Helper()
	forEachDialectOn(t, func(t *testing.T) *testkit.PG { t.Helper(); return testkit.Postgres(t) }, test)
}

// forEachDialectAlone runs test with a PostgreSQL server of its own: the feed may be
// incomplete in vain when a transaction of another database ends and pruning passes it.
func forEachDialectAlone(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Helper()
	forEachDialectOn(t, func(t *testing.T) *testkit.PG { t.Helper(); return testkit.StartPostgres(t) }, test)
}

func forEachDialectOn(t *testing.T, postgres func(*testing.T) *testkit.PG, test func(t *testing.T, f *fixture)) {
	t.Helper()
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		test(t, newPostgresFixture(t, postgres(t)))
	})
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		test(t, newSQLiteFixture(t))
	})
}

func newPostgresFixture(t *testing.T, pg *testkit.PG) *fixture {
	t.Helper()
	f := &fixture{t: t, url: pg.URL(), pg: pg, maxNodes: 2}
	f.migrate()
	f.migrateToLaterSchemaIfTested()
	return f
}

func newSQLiteFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, url: "sqlite:" + filepath.Join(t.TempDir(), "odd #name?100%.db"), maxNodes: 1}
	f.migrate()
	f.migrateToLaterSchemaIfTested()
	return f
}

func (f *fixture) migrate() {
	f.t.Helper()
	if err := Migrate(f.t.Context(), f.url); err != nil {
		f.t.Fatal(err)
	}
}

// openLog opens the log as another node.
func (f *fixture) openLog(change ...func(*Config)) (logUnderTest, error) {
	c := Config{
		URL: f.url, Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.NewTextHandler(f.t.Output(), nil)),
		// On a busy machine a commit may take longer than the default.
		AppendTimeout: time.Minute,
	}
	for _, set := range change {
		set(&c)
	}
	if f.pg != nil {
		p, err := OpenPostgres(f.t.Context(), c)
		if err != nil {
			return nil, err
		}
		return p, nil
	}
	s, err := OpenSQLite(f.t.Context(), c)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// exec runs SQL on the database, past the log.
func (f *fixture) exec(query string) {
	f.t.Helper()
	if f.pg != nil {
		f.pg.Exec(query)
		return
	}
	path, _ := sqlitePath(f.url)
	db, err := sql.Open("sqlite", sqliteURI(path, "_txlock=immediate"))
	if err != nil {
		f.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		f.t.Fatalf("%s: %v", query, err)
	}
}

// rejectPoison makes the database refuse messages with the data "poison".
func (f *fixture) rejectPoison() {
	f.t.Helper()
	if f.pg != nil {
		f.exec(`ALTER TABLE messages ADD CHECK (data <> 'poison'::bytea)`)
		return
	}
	f.exec(`CREATE TRIGGER poison BEFORE INSERT ON messages WHEN CAST(NEW.data AS TEXT) = 'poison'
		BEGIN SELECT RAISE(ABORT, 'poisoned'); END`)
}

// A node is an opened log that checks the calls of onCompleted.
type node struct {
	logUnderTest
	t          *testing.T
	mu         sync.Mutex
	completing map[message.Room]bool // onCompleted is running for the room
}

// startNode opens and starts a node that is closed at the end of the test.
func (f *fixture) startNode(change ...func(*Config)) *node {
	f.t.Helper()
	n := f.openNode(change...)
	n.start()
	return n
}

// openNode opens a node that does not commit yet.
func (f *fixture) openNode(change ...func(*Config)) *node {
	f.t.Helper()
	l, err := f.openLog(change...)
	if err != nil {
		f.t.Fatal(err)
	}
	n := &node{logUnderTest: l, t: f.t, completing: map[message.Room]bool{}}
	f.t.Cleanup(n.close)
	return n
}

func (n *node) close() {
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Timeout)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		n.t.Errorf("close: %v", err)
	}
}

func (n *node) start() { n.Start(n.completed) }

func (n *node) completed(pubs []*message.Publication) {
	room := pubs[0].Room
	n.mu.Lock()
	if n.completing[room] {
		n.t.Errorf("two calls of onCompleted for %s overlap", room)
	}
	n.completing[room] = true
	n.mu.Unlock()
	for i, p := range pubs {
		if p.Room != room {
			n.t.Errorf("one call of onCompleted has the rooms %s and %s", room, p.Room)
		}
		if i > 0 && p.Seq < pubs[i-1].Seq {
			n.t.Errorf("completed out of order: %d after %d", p.Seq, pubs[i-1].Seq)
		}
	}
	n.mu.Lock()
	n.completing[room] = false
	n.mu.Unlock()
	for _, p := range pubs {
		close(p.Opaque.(chan struct{}))
	}
}

// append appends a publication and does not wait for it.
func (n *node) append(room, from, id, data string) *message.Publication {
	p := &message.Publication{
		Draft:  message.Draft{Room: message.Room(room), ID: id, From: from, Data: []byte(data)},
		Opaque: make(chan struct{}),
	}
	n.Append(p)
	return p
}

// wait returns a publication once it is completed.
func wait(t *testing.T, p *message.Publication) *message.Publication {
	t.Helper()
	testkit.Receive(t, fmt.Sprintf("%s of %s to be completed", p.ID, p.Room), p.Opaque.(chan struct{}))
	return p
}

// publish appends a publication and waits until it is completed.
func (n *node) publish(room, from, id, data string) *message.Publication {
	n.t.Helper()
	return wait(n.t, n.append(room, from, id, data))
}

// mustPublish publishes as ann, and fails the test on an error.
func (n *node) mustPublish(room, id, data string) *message.Publication {
	n.t.Helper()
	p := n.publish(room, "ann", id, data)
	if p.Err != nil {
		n.t.Fatalf("publish %s: %v", id, p.Err)
	}
	return p
}

// readAll reads a whole room and fails on a hole.
func (n *node) readAll(room string) []message.Message {
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
				n.t.Fatalf("room %s has seq %d, want %d", room, m.Seq, want)
			}
			all = append(all, m)
		}
		if more = page.More; !more && page.Head != message.Seq(len(all)) {
			n.t.Fatalf("room %s: its head is %d and it has %d messages", room, page.Head, len(all))
		}
	}
	return all
}

// currentCursor returns a cursor behind all commits of the database.
func (n *node) currentCursor() message.Cursor {
	n.t.Helper()
	start, err := n.Commits(n.t.Context(), "")
	if err != nil || start.Next == "" || len(start.Heads) != 0 || start.Incomplete {
		n.t.Fatalf("without a cursor: %+v, %v", start, err)
	}
	return start.Next
}

// firstCursor returns a cursor before all commits of a PostgreSQL.
func (f *fixture) firstCursor() message.Cursor {
	f.t.Helper()
	return feedCursor{snapshot: "3:3:", origin: f.origin()}.encode()
}

// origin returns the origin of a cursor, "" on SQLite.
func (f *fixture) origin() string {
	f.t.Helper()
	if f.pg == nil {
		return ""
	}
	return f.pg.Query(`SELECT epoch || '/' || fingerprint FROM meta`)
}

// epoch returns the epoch that readers see.
func (n *node) epoch() message.Epoch {
	n.t.Helper()
	c, err := n.Commits(n.t.Context(), "")
	if err != nil {
		n.t.Fatal(err)
	}
	return c.Epoch
}

func numbered(prefix string, n int) string { return fmt.Sprintf("%s-%d", prefix, n) }
