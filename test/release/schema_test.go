package release

import (
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"switchyard/internal/testkit"
	"switchyard/migrations"
)

// migrateToFuture migrates a database of this release's schema to that of a release
// to come: folder is "later", which only adds, or "breaking".
func migrateToFuture(t *testing.T, url, folder string) {
	t.Helper()
	all := fstest.MapFS{}
	for _, from := range []fs.FS{migrations.FS, os.DirFS("../../internal/store/testdata/" + folder)} {
		files, err := fs.Glob(from, "postgres/*.sql")
		if err != nil || len(files) == 0 {
			t.Fatalf("%d migrations, %v", len(files), err)
		}
		for _, file := range files {
			text, err := fs.ReadFile(from, file)
			if err != nil {
				t.Fatal(err)
			}
			all[strings.TrimPrefix(file, "postgres/")] = &fstest.MapFile{Data: text}
		}
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, all, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	// A migration may deadlock with a running server, and can be run again (docs/migrations.md).
	applied := 0
	testkit.EventuallyNil(t, "the migrations of a later release", func() error {
		done, err := provider.Up(t.Context())
		applied += len(done)
		return err
	})
	if applied == 0 {
		t.Fatal("no migration was applied")
	}
}

// migrate runs this release's migrations, as a deploy does before it starts a server.
func migrate(t *testing.T, url string) {
	t.Helper()
	if code, out := run(t, testkit.BuildServer(t), []string{"DATABASE_URL=" + url}, "migrate"); code != 0 {
		t.Fatalf("migrate: exit %d: %s", code, out)
	}
}

// refusesWithoutRemedy has the releases from before a schema named the releases that
// it serves: they refuse it too, but do not name the remedy.
var refusesWithoutRemedy = map[string]bool{"v0.1.0": true}

// A rollback past a breaking migration fails at once and says why.
func TestOldReleasesRefuseABreakingSchema(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *release) {
		pg := testkit.Postgres(t)
		migrate(t, pg.URL())
		migrateToFuture(t, pg.URL(), "breaking")
		env := []string{"DATABASE_URL=" + pg.URL(), "LISTEN_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0"}
		code, out := run(t, r.server(t), env)
		says := []string{"DATABASE_URL", "built for version 90000 or newer", "start a newer release"}
		if refusesWithoutRemedy[r.name] {
			says = says[:1]
		}
		var refusals []string
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "server: ") {
				refusals = append(refusals, line)
			}
		}
		if code != 1 || len(refusals) != 1 {
			t.Fatalf("exit %d with %d lines that refuse:\n%s", code, len(refusals), out)
		}
		for _, part := range says {
			if !strings.Contains(refusals[0], part) {
				t.Errorf("does not say %q: %s", part, refusals[0])
			}
		}
	})
}
