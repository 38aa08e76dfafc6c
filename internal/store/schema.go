package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// This file decides which schemas a binary runs on. The version of a schema is
// the number of the last migration that was applied to it. The version of a
// binary is the number of the last migration that it contains.
// docs/migrations.md has the rules for migrations.
//
// A binary refuses an older schema, which lacks something that it needs. It
// meets a newer schema during a deploy, when the old color runs on it, and after
// a rollback. It runs on a newer schema if all newer migrations only add. A
// migration that does more writes the oldest version that a binary must have
// into meta.min_schema.

// checkSchemaVersion returns nil if a binary may run on a schema of the version
// schema, which demands a binary of at least the version minBinary.
func checkSchemaVersion(schema, binary, minBinary int64) error {
	switch {
	case schema < binary:
		return &operatorError{fmt.Sprintf("the schema at DATABASE_URL has version %d and this binary needs %d: run `server migrate`", schema, binary)}
	case binary < minBinary:
		return &operatorError{fmt.Sprintf("the schema at DATABASE_URL has version %d, which serves binaries built for version %d or newer, and this one was built for %d: "+
			"start a newer release, or restore the database from before it was migrated", schema, minBinary, binary)}
	}
	return nil
}

const (
	sqlVersion   = `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`
	sqlMinSchema = `SELECT min_schema FROM meta`
)

// checkSchema runs on each new connection, since the schema may have been
// migrated or restored after the previous one was made.
func checkSchema(ctx context.Context, conn *pgx.Conn) error {
	var version, minBinary int64
	binary := latestVersion("postgres")
	err := conn.QueryRow(ctx, sqlVersion).Scan(&version)
	if err != nil && sqlState(err) != undefinedTable {
		return fmt.Errorf("read the version of the schema: %w", err)
	}
	if version > binary { // otherwise the binary knows all migrations
		if err := conn.QueryRow(ctx, sqlMinSchema).Scan(&minBinary); err != nil {
			return fmt.Errorf("read what the schema is compatible with: %w", err)
		}
	}
	return checkSchemaVersion(version, binary, minBinary)
}

// checkSchema runs when the file is opened. It also refuses a file that is not
// a database.
func (s *SQLite) checkSchema(ctx context.Context) error {
	var tables int
	err := s.write.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE name = 'goose_db_version'`).Scan(&tables)
	if err != nil {
		return &operatorError{fmt.Sprintf("the file of DATABASE_URL (sqlite:%s) cannot be used: %v", s.lockFile.path, err)}
	}
	var version, minBinary int64
	binary := latestVersion("sqlite")
	if tables > 0 {
		if err := s.write.QueryRowContext(ctx, sqlVersion).Scan(&version); err != nil {
			return fmt.Errorf("read the version of the schema: %w", err)
		}
	}
	if version > binary {
		if err := s.write.QueryRowContext(ctx, sqlMinSchema).Scan(&minBinary); err != nil {
			return fmt.Errorf("read what the schema is compatible with: %w", err)
		}
	}
	return checkSchemaVersion(version, binary, minBinary)
}
