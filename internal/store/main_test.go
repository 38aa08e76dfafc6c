package store

import (
	"testing"

	"switchyard/internal/testkit"
)

// TestMain runs more tests at a time than there are cores: most of them only
// wait for a database to flush or to start.
func TestMain(m *testing.M) { testkit.MainParallel(m, 6) }
