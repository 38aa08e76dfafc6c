package store

import (
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
	"switchyard/migrations"
)

// migrateToLaterSchemaIfTested migrates the database further in the tests that
// TestThisReleaseRunsOnALaterSchema runs.
func (f *fixture) migrateToLaterSchemaIfTested() {
	f.t.Helper()
	if strings.HasPrefix(f.t.Name(), "TestThisReleaseRunsOnALaterSchema/") {
		f.migrateToLaterSchema("later")
	}
}

// migrateToLaterSchema runs the migrations of a future release: those of this
// release and those in the folder.
func (f *fixture) migrateToLaterSchema(folder string) {
	f.t.Helper()
	dialect, name := goose.DialectPostgres, "postgres"
	var db *sql.DB
	if f.pg != nil {
		config, err := pgx.ParseConfig(f.url)
		if err != nil {
			f.t.Fatal(err)
		}
		db = stdlib.OpenDB(*config)
	} else {
		var err error
		dialect, name = goose.DialectSQLite3, "sqlite"
		if db, err = sql.Open("sqlite", sqliteURI(f.path(), "_txlock=immediate")); err != nil {
			f.t.Fatal(err)
		}
	}
	defer db.Close()
	all := fstest.MapFS{}
	for _, from := range []fs.FS{migrations.FS, os.DirFS("testdata/" + folder)} {
		files, err := fs.Glob(from, name+"/*.sql")
		if err != nil || len(files) == 0 {
			f.t.Fatalf("%d migrations, %v", len(files), err)
		}
		for _, file := range files {
			text, err := fs.ReadFile(from, file)
			if err != nil {
				f.t.Fatal(err)
			}
			all[strings.TrimPrefix(file, name+"/")] = &fstest.MapFile{Data: text}
		}
	}
	provider, err := goose.NewProvider(dialect, db, all, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		f.t.Fatal(err)
	}
	if done, err := provider.Up(f.t.Context()); err != nil || len(done) == 0 {
		f.t.Fatalf("%d migrations were new, %v", len(done), err)
	}
}

// During a deploy the old color runs on the new schema, and after a rollback it
// does again. Users must not notice.
func TestThisReleaseRunsOnALaterSchema(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"rooms are numbered":     TestRoomsAreNumberedWithoutHoles,
		"one id wins":            TestAnIDIsStoredOnceAcrossNodes,
		"conflicts":              TestConflictInOneBatch,
		"history":                TestHistoryIsReadInPages,
		"heads":                  TestHeadsAndUnknownRooms,
		"the feed":               TestTheFeedReportsCommits,
		"the pruned feed":        TestAPrunedFeedReportsLostCursors,
		"data":                   TestDataIsStoredByteForByte,
		"batches":                TestABatchIsStoredAtomicallyAndInOrder,
		"conflicts of batches":   TestOneConflictFailsTheWholeBatch,
		"lists of rooms":         TestRoomsAreListedInPages,
		"retention":              TestRetentionByBothKeepsWhatBothKeep,
		"a restart":              TestARestartKeepsTheEpoch,
		"plans":                  TestNoPlanReadsAWholeTable,
		"anonymous publications": TestAnonymousUsersAreOneUser,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Run("later", test) // which may itself be parallel
		})
	}
}

func TestABreakingMigrationStopsOlderBinaries(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		n.mustPublish("room", "1", "x")
		n.close()
		f.migrateToLaterSchema("breaking")
		_, err := f.openLog()
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Fatalf("open: %v", err)
		}
		for _, want := range []string{"DATABASE_URL", "version 90001", "version 90000 or newer", "built for 2", "start a newer release"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: does not say %q", err, want)
			}
		}
		// A breaking migration that this release supports already.
		f.exec(`UPDATE meta SET min_schema = 2`)
		f.exec(`ALTER TABLE messages RENAME COLUMN author TO sender`)
		f.startNode().mustPublish("room", "2", "x")
	})
}

// After a breaking migration a running node stores nothing on the connections
// that it opens from then on. On SQLite the node's lock keeps the migration out.
func TestABreakingMigrationUnderARunningNode(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	n := f.startNode(func(c *Config) {
		c.AppendWorkers, c.ConnLifetime, c.AppendTimeout = 1, time.Millisecond, 300*time.Millisecond
	})
	testkit.EventuallyNil(t, "a first message is stored", func() error { return n.publish("room", "", "1", "x").Err })
	f.exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (90001, true); UPDATE meta SET min_schema = 90000`)
	testkit.EventuallyNil(t, "publications are refused", func() error {
		if p := n.publish("room", "", "id", "x"); !errors.Is(p.Err, message.ErrUnavailable) {
			return errors.New("one was stored")
		}
		return nil
	})
}

// An update of the system's C library may change the order of texts, and an index that
// was built in the old order then no longer finds its rows. The order of bytes stays.
func TestNoIndexDependsOnTheSystemsCollation(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	if got := f.pg.Query(`
		SELECT a.attrelid::regclass || '.' || a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indexrelid
		JOIN pg_class c ON c.oid = i.indrelid LEFT JOIN pg_collation l ON l.oid = a.attcollation
		WHERE c.relnamespace = 'public'::regnamespace AND a.attcollation <> 0 AND l.collname <> 'C'`); got != "" {
		t.Errorf("collated otherwise: %s", got)
	}
	if got := f.pg.Query(`SELECT count(*) > 0 FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indexrelid JOIN pg_collation l ON l.oid = a.attcollation WHERE l.collname = 'C' AND i.indrelid = 'rooms'::regclass`); got != "t" {
		t.Error("the index of room names was not found")
	}
}

func TestUnsupportedSchemasAreRefused(t *testing.T) {
	for _, c := range []struct {
		schema, binary, minBinary int64
		want                      string
	}{
		{2, 2, 0, ""}, {3, 2, 0, ""}, {3, 2, 2, ""}, {9, 2, 1, ""},
		{1, 2, 0, "version 1 and this binary needs 2: run `server migrate`"},
		{0, 2, 0, "version 0 and this binary needs 2"},
		{3, 2, 3, "version 3, which serves binaries built for version 3 or newer, and this one was built for 2"},
		{9, 4, 7, "version 9, which serves binaries built for version 7 or newer, and this one was built for 4"},
	} {
		err := checkSchemaVersion(c.schema, c.binary, c.minBinary)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
