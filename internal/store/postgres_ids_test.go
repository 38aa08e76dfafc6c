package store

import (
	"strings"
	"testing"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// An import, or a cut-over to a logical replica, has brought the rows of a table and not
// the state of its sequence.
func TestNewRoomsAreStoredAfterAnImport(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode()
	for i := range 5 {
		n.mustPublish(numbered("room", i), "1", "x")
	}
	f.exec(`ALTER TABLE rooms ALTER COLUMN id RESTART WITH 1`)
	if p := n.mustPublish("new", "1", "x"); p.Seq != 1 {
		t.Errorf("in a new room: %+v", p)
	}
	f.exec(`ALTER TABLE rooms ALTER COLUMN id RESTART WITH 3`)
	batch := []*message.Publication{
		{Draft: message.Draft{Room: "room-1", From: "ann", ID: "2"}, Opaque: make(chan struct{})},
		{Draft: message.Draft{Room: "batch", From: "ann", ID: "2"}, Opaque: make(chan struct{})},
	}
	if err := n.AppendBatch(t.Context(), batch); err != nil || batch[0].Seq != 2 || batch[1].Seq != 1 {
		t.Errorf("a batch with a new room: %v, %+v, %+v", err, batch[0], batch[1])
	}
	f.startNode().mustPublish("another", "1", "x")
	if got := f.pg.Query(`SELECT count(*), count(DISTINCT id) FROM rooms`); got != "8|8" {
		t.Errorf("rooms and their ids: %s", got)
	}
}

// The service's role may not change the sequence: existing rooms are not affected, and the
// log has the statement for its owner.
func TestARoleThatMayNotAdvanceTheIDsOfRooms(t *testing.T) {
	t.Parallel()
	f := asRole(t)
	(&fixture{t: t, pg: f.pg, url: f.pg.URL()}).migrate()
	f.pg.Exec("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app_" + f.pg.Database())
	logs := new(testkit.Logs)
	n := f.startNode(func(c *Config) { c.Logger = logs.Logger() })
	n.mustPublish("room", "1", "x")
	for i := range 50 { // each attempt takes an id, so that a short lag ends by itself
		n.mustPublish(numbered("room", i), "1", "x")
	}
	f.exec(`ALTER TABLE rooms ALTER COLUMN id RESTART WITH 2`)
	refused, stored := n.append("new", "ann", "1", "x"), n.append("room", "ann", "2", "x")
	if wait(t, refused).Err == nil || wait(t, stored).Err != nil {
		t.Errorf("a new room: %v, another: %v", refused.Err, stored.Err)
	}
	const statement = "run SELECT setval(pg_get_serial_sequence('rooms', 'id'), (SELECT max(id) FROM rooms)) as its owner"
	if !strings.Contains(logs.String(), statement) {
		t.Errorf("not in the log: %s\n%s", statement, logs.String())
	}
	f.exec(`SELECT setval(pg_get_serial_sequence('rooms', 'id'), (SELECT max(id) FROM rooms))`)
	n.mustPublish("new", "1", "x")
}

// The migrations are numbered by a sequence, too.
func TestADatabaseIsMigratedAfterAnImport(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	f.exec(`DROP TABLE retention; ALTER TABLE meta DROP COLUMN min_schema; DELETE FROM goose_db_version WHERE version_id = 2;
		ALTER TABLE goose_db_version ALTER COLUMN id RESTART WITH 1`)
	f.migrate()
	f.startNode().mustPublish("room", "1", "x")
}
