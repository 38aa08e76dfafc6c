package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Which schema a binary runs on, by versions: the number of the last migration
// that was applied, and of the last that the binary has. Rules for migrations
// are in docs/migrations.md.
//
// An older schema is refused: what the binary needs is not there. A newer one
// is what the old colour lives on during a deploy, and what a rollback meets.
// It is fine as long as all its migrations only added. One that did more has
// written into meta.min_schema which version a binary must have at least.

// checkSchemaVersion returns nil when a binary that was built for version own may
// run on a schema of version is that wants at least version least.
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

// checkSchema is asked on each new connection, as the schema may have been
// migrated, or restored, since the last.
func checkSchema(ctx context.Context, conn *pgx.Conn) error {
	var version, minBinary int64
	binary := latestVersion("postgres")
	err := conn.QueryRow(ctx, sqlVersion).Scan(&version)
	if err != nil && sqlState(err) != undefinedTable {
		return fmt.Errorf("read the version of the schema: %w", err)
	}
	if version > binary { // else there is nothing that the binary does not know
		if err := conn.QueryRow(ctx, sqlMinSchema).Scan(&minBinary); err != nil {
			return fmt.Errorf("read what the schema is compatible with: %w", err)
		}
	}
	return checkSchemaVersion(version, binary, minBinary)
}

// checkSchema also refuses what is no database.
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
