// Package migrations holds the schema of the log, with a folder for each
// dialect. A released file never changes, not even a comment in it. A new file
// only adds to the schema, since during a deploy the old binary runs on the new
// schema; docs/migrations.md has the rules.
package migrations

import "embed"

// FS holds postgres/*.sql and sqlite/*.sql, in goose's format.
//
//go:embed postgres/*.sql sqlite/*.sql
var FS embed.FS
