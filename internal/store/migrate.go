package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"switchyard/migrations"
)

// migrateLock is the advisory lock under which one node at a time migrates.
const migrateLock = 0x5377_6974_6368 // "Switch"

// Migrate brings the schema at url (postgres://… or sqlite:path) to the version
// of this binary; a newer one stays as it is. On PostgreSQL other nodes that
// migrate at the same time wait for it, for a minute at most; a SQLite file
// must not be in use.
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
	config.ConnectTimeout = connectTimeout
	// A statement that waits for a table makes all later ones wait behind it,
	// publishing too: rather fail while a dump is read, and be run again.
	config.RuntimeParams["lock_timeout"] = "5s"
	db := stdlib.OpenDB(*config)
	if err := db.PingContext(ctx); err != nil {
		return errors.Join(openError(err), db.Close())
	}
	err = migrate(ctx, db, goose.DialectPostgres, "postgres", goose.WithSessionLocker(locker))
	return errors.Join(err, db.Close())
}

// migrate runs what is missing of one dialect's folder.
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
		return fmt.Errorf("the database of DATABASE_URL can't be migrated to this version; name one that is Switchyard's alone, or mend it: %w", err)
	}
	return nil
}

// latest returns the version that the embedded migrations of a dialect end in.
func latest(folder string) int64 {
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
