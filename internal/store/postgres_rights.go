package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// This file refuses a database that the role of DATABASE_URL cannot use, and
// says which right is missing and which statement grants it. It asks the
// catalogs: the server's own messages are in the language of the server.
// docs/postgres.md lists the rights.

// tableRights are the rights that a node needs, by table.
var tableRights = map[string][]string{
	"rooms":            {"SELECT", "INSERT", "UPDATE"},
	"messages":         {"SELECT", "INSERT", "DELETE"},
	"message_ids":      {"SELECT", "INSERT", "DELETE"},
	"commits":          {"SELECT", "INSERT", "DELETE"},
	"meta":             {"SELECT", "UPDATE"},
	"retention":        {"SELECT", "UPDATE"},
	"goose_db_version": {"SELECT"},
}

// functionRights are the functions that a server's administrator may have taken
// from PUBLIC.
var functionRights = []string{
	"pg_control_system()", "pg_current_wal_lsn()", "pg_current_wal_flush_lsn()", "pg_last_wal_replay_lsn()", "pg_walfile_name(pg_lsn)",
}

// checkRights connects once and returns an operatorError for the first thing
// that would keep the service from working. migrating says that missing
// migrations will be applied.
func checkRights(ctx context.Context, c *pgx.ConnConfig, migrating bool) error {
	conn, err := pgx.ConnectConfig(ctx, c.Copy())
	if err != nil {
		return openError(err, c)
	}
	defer conn.Close(ctx) //nolint:errcheck // it has only read
	for _, check := range []func(context.Context, *pgx.Conn) error{checkWritable, checkFunctions, checkSearchPath, checkTables} {
		if err := check(ctx, conn); err != nil {
			return openError(err, c)
		}
	}
	if migrating {
		if err := checkMigrationRights(ctx, conn); err != nil {
			return openError(err, c)
		}
	}
	return nil
}

// openError returns an operatorError unchanged, and an error of the driver on
// one line that names the setting, and the right if one is missing.
func openError(err error, c *pgx.ConnConfig) error {
	var refused *operatorError
	if errors.As(err, &refused) {
		return refused
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Severity == "FATAL" { // the connection was refused
		role, database := quote(c.User), quote(c.Database)
		switch {
		case pg.Code == "42501":
			return missing("the role "+role+" may not connect to the database "+database, "GRANT CONNECT ON DATABASE "+database+" TO "+role)
		case pg.Code == "28000" && strings.Contains(pg.Message, "not permitted to log in"):
			return missing("the role "+role+" may not log in", "ALTER ROLE "+role+" LOGIN")
		case pg.Code == "3D000":
			return missing("there is no database "+database, "CREATE DATABASE "+database+" OWNER "+role)
		case pg.Code == tooManyConnections:
			return &operatorError{"DATABASE_URL: the server has too few connections for this node, which needs DATABASE_LANES + 2 (" + pg.Message +
				"): raise the CONNECTION LIMIT of the role or of the database, or max_connections, or lower DATABASE_MAX_CONNS on all nodes"}
		}
	}
	return fmt.Errorf("DATABASE_URL does not name a usable PostgreSQL server: %s", strings.Join(strings.Fields(err.Error()), " "))
}

// missing returns the refusal for a missing right, with the statement that
// grants it.
func missing(what, statement string) error {
	return &operatorError{"DATABASE_URL: " + what + ": run " + statement}
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// checkWritable refuses a standby, and transactions that are read-only.
func checkWritable(ctx context.Context, conn *pgx.Conn) error {
	var replica bool
	var readOnly, source, role, database string
	err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), setting, source, current_user, current_database()
		FROM pg_settings WHERE name = 'default_transaction_read_only'`).Scan(&replica, &readOnly, &source, &role, &database)
	if err != nil {
		return fmt.Errorf("read the server's settings: %w", err)
	}
	if err := checkServerSettings(replica, "", "", ""); err != nil {
		return err
	}
	if readOnly != "on" {
		return nil
	}
	remedy := "set default_transaction_read_only = off in postgresql.conf"
	switch source {
	case "database":
		remedy = "run ALTER DATABASE " + quote(database) + " RESET default_transaction_read_only"
	case "user":
		remedy = "run ALTER ROLE " + quote(role) + " RESET default_transaction_read_only"
	case "database user":
		remedy = "run ALTER ROLE " + quote(role) + " IN DATABASE " + quote(database) + " RESET default_transaction_read_only"
	}
	return &operatorError{fmt.Sprintf("DATABASE_URL: transactions of the role %s in the database %s are read-only: %s", quote(role), quote(database), remedy)}
}

// checkFunctions refuses a role that may not call what identifies the server.
func checkFunctions(ctx context.Context, conn *pgx.Conn) error {
	var function, role string
	err := conn.QueryRow(ctx, `SELECT f, current_user FROM unnest($1::text[]) f
		WHERE NOT has_function_privilege(f, 'EXECUTE') LIMIT 1`, functionRights).Scan(&function, &role)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the rights to functions: %w", err)
	}
	return missing("the role "+quote(role)+" may not call "+function, "GRANT EXECUTE ON FUNCTION "+function+" TO "+quote(role)+" as a superuser")
}

// checkSearchPath refuses a search_path without a schema that can be used. A
// schema without USAGE is passed over by the server as if it did not exist, so
// the tables would be made in the next one.
func checkSearchPath(ctx context.Context, conn *pgx.Conn) error {
	var path, role string
	var current *string
	err := conn.QueryRow(ctx, `SELECT current_setting('search_path'), current_schema(), current_user`).Scan(&path, &current, &role)
	if err != nil {
		return fmt.Errorf("read the search_path: %w", err)
	}
	first := ""
	for name := range strings.SplitSeq(path, ",") {
		name = strings.ReplaceAll(strings.Trim(strings.TrimSpace(name), `"`), `""`, `"`)
		if name == "$user" {
			name = role
		}
		if first == "" {
			first = name
		}
		var usable bool
		err := conn.QueryRow(ctx, `SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = $1`, name).Scan(&usable)
		switch {
		case errors.Is(err, pgx.ErrNoRows): // as "$user" usually is
		case err != nil:
			return fmt.Errorf("read the rights to schemas: %w", err)
		case !usable:
			return missing("the role "+quote(role)+" may not use the schema "+quote(name), "GRANT USAGE ON SCHEMA "+quote(name)+" TO "+quote(role))
		}
	}
	switch {
	case current != nil:
		return nil
	case first == "":
		return &operatorError{"DATABASE_URL: the search_path is empty: set one with ?search_path= in the URL, or run ALTER ROLE " + quote(role) + " SET search_path = public"}
	}
	return missing("the search_path ("+path+") names no schema that exists", "CREATE SCHEMA "+quote(first)+" AUTHORIZATION "+quote(role))
}

// sqlTableRights returns the first table whose rows are hidden from the role by
// row-level security, or on which a right is missing.
const sqlTableRights = `
SELECT n.nspname, c.relname, t.right, current_user
FROM (SELECT * FROM unnest($1::text[], $2::text[]) AS t (name, "right")) t
JOIN pg_class c ON c.oid = to_regclass(t.name)
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE CASE WHEN t.right = 'RLS' THEN row_security_active(c.oid) ELSE NOT has_table_privilege(c.oid, t.right) END
ORDER BY c.relname, t.right LIMIT 1`

// checkTables refuses tables on which a right is missing. Tables that do not
// exist yet are made by the migration.
func checkTables(ctx context.Context, conn *pgx.Conn) error {
	var names, rights []string
	for name, needed := range tableRights {
		for _, right := range append(slices.Clone(needed), "RLS") {
			names, rights = append(names, quote(name)), append(rights, right)
		}
	}
	var schema, table, right, role string
	err := conn.QueryRow(ctx, sqlTableRights, names, rights).Scan(&schema, &table, &right, &role)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the rights to tables: %w", err)
	}
	table = pgx.Identifier{schema, table}.Sanitize()
	if right == "RLS" {
		return missing("row-level security may hide rows of "+table+" from the role "+quote(role),
			"ALTER TABLE "+table+" DISABLE ROW LEVEL SECURITY, or ALTER ROLE "+quote(role)+" BYPASSRLS")
	}
	return missing("the role "+quote(role)+" has no right "+right+" on "+table,
		"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "+quote(schema)+" TO "+quote(role))
}

// checkMigrationRights refuses a role that may not apply the missing migrations.
func checkMigrationRights(ctx context.Context, conn *pgx.Conn) error {
	var migrated bool
	// Migrations look for their table in the current schema only.
	err := conn.QueryRow(ctx, `SELECT to_regclass(quote_ident(current_schema()) || '.goose_db_version') IS NOT NULL`).Scan(&migrated)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if migrated {
		var version int64
		if err := conn.QueryRow(ctx, sqlVersion).Scan(&version); err != nil {
			return fmt.Errorf("read the schema's version: %w", err)
		}
		if version >= latestVersion("postgres") {
			return nil
		}
	}
	const asOwner = ", or run `server migrate` as a role that has it"
	var schema, role, owner string
	var create, owned bool
	err = conn.QueryRow(ctx, `SELECT current_schema(), current_user, has_schema_privilege(current_schema(), 'CREATE'),
			coalesce(pg_get_userbyid(c.relowner), ''), coalesce(pg_has_role(c.relowner, 'USAGE'), true)
		FROM (SELECT to_regclass(quote_ident(current_schema()) || '.meta') AS meta) m LEFT JOIN pg_class c ON c.oid = m.meta`).Scan(&schema, &role, &create, &owner, &owned)
	switch {
	case err != nil:
		return fmt.Errorf("read the rights to the schema: %w", err)
	case !create:
		return missing("the role "+quote(role)+" may not create tables in the schema "+quote(schema),
			"GRANT CREATE ON SCHEMA "+quote(schema)+" TO "+quote(role)+asOwner)
	case !owned:
		return missing("the tables belong to the role "+quote(owner)+", and "+quote(role)+" may not migrate them",
			"GRANT "+quote(owner)+" TO "+quote(role)+asOwner)
	case migrated:
		return advanceIDs(ctx, conn, "goose_db_version")
	}
	return nil
}
