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
	"switchyard/migrations"
)

// laterSchema, when set, is a folder of migrations of a release to come, which
// each new world gets beside those of this one. Stories do not run in parallel.
var laterSchema string

// migrateLater runs the migrations of a release to come. They are those of this
// one and some more.
func (w *world) migrateLater(folder string) {
	w.t.Helper()
	dialect, name := goose.DialectPostgres, "postgres"
	var db *sql.DB
	if w.pg != nil {
		config, err := pgx.ParseConfig(w.url)
		if err != nil {
			w.t.Fatal(err)
		}
		db = stdlib.OpenDB(*config)
	} else {
		var err error
		dialect, name = goose.DialectSQLite3, "sqlite"
		if db, err = sql.Open("sqlite", sqliteURI(w.path(), "rw", "_txlock=immediate")); err != nil {
			w.t.Fatal(err)
		}
	}
	defer db.Close()
	all := fstest.MapFS{}
	for _, from := range []fs.FS{migrations.FS, os.DirFS("testdata/" + folder)} {
		files, err := fs.Glob(from, name+"/*.sql")
		if err != nil || len(files) == 0 {
			w.t.Fatalf("%d migrations, %v", len(files), err)
		}
		for _, file := range files {
			text, err := fs.ReadFile(from, file)
			if err != nil {
				w.t.Fatal(err)
			}
			all[strings.TrimPrefix(file, name+"/")] = &fstest.MapFile{Data: text}
		}
	}
	provider, err := goose.NewProvider(dialect, db, all, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		w.t.Fatal(err)
	}
	if done, err := provider.Up(w.t.Context()); err != nil || len(done) == 0 {
		w.t.Fatalf("%d migrations were new, %v", len(done), err)
	}
}

// During a deploy the old colour lives on the new schema, and a rollback makes
// it live there again. What users see of it must be all the same.
func TestThisReleaseOnTheSchemaOfALaterOne(t *testing.T) {
	laterSchema = "later"
	defer func() { laterSchema = "" }()
	for name, story := range map[string]func(*testing.T){
		"rooms are numbered":     TestRoomsAreNumberedWithoutHoles,
		"one id wins":            TestOneIDWinsWhoeverSendsItWhere,
		"conflicts":              TestConflictInOneBatch,
		"history":                TestHistoryInPages,
		"heads":                  TestHeadsAndUnknownRooms,
		"the feed":               TestTheFeedTellsWhatWasCommitted,
		"the pruned feed":        TestThePrunedFeedSaysSo,
		"data":                   TestDataComeBackByteForByte,
		"batches":                TestABatchIsStoredWholeAndAnsweredInOrder,
		"conflicts of batches":   TestOneConflictFailsAllOfABatch,
		"lists of rooms":         TestRoomsAreListedInPages,
		"retention":              TestRetentionByBothKeepsWhatBothKeep,
		"a restart":              TestARestartKeepsTheEpoch,
		"plans":                  TestNoPlanReadsAWholeTable,
		"anonymous publications": TestAnonymousUsersAreOneUser,
	} {
		t.Run(name, story)
	}
}

func TestABreakingMigrationKeepsOlderBinariesAway(t *testing.T) {
	inEachWorld(t, func(t *testing.T, w *world) {
		n := w.node()
		n.stored("room", "1", "x")
		n.close()
		w.migrateLater("breaking")
		_, err := w.open()
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Fatalf("open: %v", err)
		}
		for _, says := range []string{"DATABASE_URL", "version 90001", "version 90000 or newer", "built for 2", "start a newer release"} {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%v: does not say %q", err, says)
			}
		}
		// A breaking migration that this release was made ready for.
		w.exec(`UPDATE meta SET min_schema = 2`)
		w.exec(`ALTER TABLE messages RENAME COLUMN author TO sender`)
		w.node().stored("room", "2", "x")
	})
}

// A node that runs when the schema moves away beneath it takes no more
// publications on the connections it makes from then on.
func TestABreakingMigrationBeneathALivingNode(t *testing.T) {
	inEachWorld(t, func(t *testing.T, w *world) {
		if w.pg == nil {
			return // one process a file: nobody migrates beneath it
		}
		n := w.node(func(c *Config) { c.Lanes, c.ConnLifetime, c.AppendTimeout = 1, time.Millisecond, 300*time.Millisecond })
		n.stored("room", "1", "x")
		w.exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (90001, true); UPDATE meta SET min_schema = 90000`)
		eventually(t, "it is refused", func() error {
			if p := n.publish("room", "", "id", "x"); !errors.Is(p.Err, message.ErrUnavailable) {
				return errors.New("it publishes")
			}
			return nil
		})
	})
}

func TestWhichSchemasAreRefused(t *testing.T) {
	for _, c := range []struct {
		is, own, least int64
		says           string
	}{
		{2, 2, 0, ""}, {3, 2, 0, ""}, {3, 2, 2, ""}, {9, 2, 1, ""},
		{1, 2, 0, "version 1 and this binary needs 2: run `server migrate`"},
		{0, 2, 0, "version 0 and this binary needs 2"},
		{3, 2, 3, "version 3, which serves binaries built for version 3 or newer, and this one was built for 2"},
		{9, 4, 7, "version 9, which serves binaries built for version 7 or newer, and this one was built for 4"},
	} {
		err := schemaRefusal(c.is, c.own, c.least)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
