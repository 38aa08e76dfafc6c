// Package migrations holds the schema of the log, a folder a dialect. A
// released file is never changed; each new one only adds, since during a deploy
// the old binary lives on the new schema.
package migrations

import "embed"

// FS holds postgres/*.sql and sqlite/*.sql, in goose's format.
//
//go:embed postgres/*.sql sqlite/*.sql
var FS embed.FS
