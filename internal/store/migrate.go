package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"switchyard/migrations"
)

// migrateLock is the advisory lock under which one node at a time migrates.
const migrateLock = 0x5377_6974_6368 // "Switch"

// Migrate brings the schema at url (postgres://… or sqlite:path) to the version
// of this binary. A newer schema stays as it is. On PostgreSQL, nodes that
// migrate at the same time wait for each other, for a minute at most. A SQLite
// file must not be in use.
func Migrate(ctx context.Context, url string) error {
	if path, ok := sqlitePath(url); ok {
		return migrateSQLite(ctx, path)
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return urlError(err, "postgres://user:password@host:5432/database or sqlite:path")
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(migrateLock), lock.WithLockTimeout(1, 60))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	// A statement that waits for a table makes all later statements on it wait,
	// also those of a publish. So a migration that meets a long lock, such as
	// that of a dump, fails and is run again.
	configureSession(config, map[string]string{"lock_timeout": "5s"}, true, new(atomic.Bool))
	if err := checkRights(ctx, config, true); err != nil {
		return err
	}
	db := stdlib.OpenDB(*config)
	err = migrate(ctx, db, goose.DialectPostgres, "postgres", goose.WithSessionLocker(locker))
	return errors.Join(err, db.Close())
}

// migrate applies the missing migrations of one dialect's folder.
func migrate(ctx context.Context, db *sql.DB, dialect goose.Dialect, folder string, opts ...goose.ProviderOption) error {
	files, err := fs.Sub(migrations.FS, folder)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	provider, err := goose.NewProvider(dialect, db, files, append(opts, goose.WithDisableGlobalRegistry(true))...)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("the database of DATABASE_URL cannot be migrated to this version; use a database that only Switchyard uses, or repair its schema: %w", err)
	}
	return nil
}

// latestVersion returns the version of a dialect's last embedded migration.
func latestVersion(folder string) int64 {
	var newest int64
	files, _ := fs.Glob(migrations.FS, folder+"/*.sql")
	for _, file := range files {
		if v, err := goose.NumericComponent(file); err == nil {
			newest = max(newest, v)
		}
	}
	return newest
}

// sqlitePath returns the path of sqlite:path or sqlite://path.
func sqlitePath(url string) (string, bool) {
	path, ok := strings.CutPrefix(url, "sqlite:")
	if rest, slashes := strings.CutPrefix(path, "//"); slashes {
		path = rest
	}
	return path, ok
}

// A PendingMigration is a migration that a database does not have yet.
type PendingMigration struct {
	Version int64  `json:"version"`
	Name    string `json:"name"` // of its file
	// Breaking is 0 for a migration that only adds. Otherwise it is the oldest
	// version that a binary must have been built for to run on the schema.
	Breaking int64 `json:"breaking"`
}

// breakingHeader is the line that marks a migration as breaking.
var breakingHeader = regexp.MustCompile(`(?m)^-- switchyard: breaking (\d+)$`)

// Pending returns the migrations of this binary that the PostgreSQL database at
// url does not have yet. It changes nothing.
func Pending(ctx context.Context, url string) ([]PendingMigration, error) {
	if _, ok := sqlitePath(url); ok {
		return nil, errors.New("a SQLite file is migrated when the service starts: its pending migrations cannot be listed")
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, urlError(err, "postgres://user:password@host:5432/database")
	}
	configureSession(config, nil, true, new(atomic.Bool))
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, openError(err, config)
	}
	defer conn.Close(ctx) //nolint:errcheck // it has only read
	current := int64(0)
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('goose_db_version') IS NOT NULL`).Scan(&exists); err != nil {
		return nil, fmt.Errorf("read the schema's version: %w", err)
	}
	if exists {
		err := conn.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&current)
		if err != nil {
			return nil, fmt.Errorf("read the schema's version: %w", err)
		}
	}
	return pendingAfter(current)
}

// pendingAfter returns this binary's migrations above a version, in order.
func pendingAfter(current int64) ([]PendingMigration, error) {
	files, err := fs.Glob(migrations.FS, "postgres/*.sql")
	if err != nil {
		return nil, fmt.Errorf("read the migrations: %w", err)
	}
	pending := []PendingMigration{}
	for _, file := range files {
		version, err := goose.NumericComponent(file)
		if err != nil || version <= current {
			continue
		}
		text, err := fs.ReadFile(migrations.FS, file)
		if err != nil {
			return nil, fmt.Errorf("read the migrations: %w", err)
		}
		p := PendingMigration{Version: version, Name: strings.TrimPrefix(file, "postgres/")}
		if m := breakingHeader.FindSubmatch(text); m != nil {
			p.Breaking, _ = strconv.ParseInt(string(m[1]), 10, 64)
		}
		pending = append(pending, p)
	}
	return pending, nil
}
