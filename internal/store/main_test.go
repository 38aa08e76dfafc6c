package store

import (
	"flag"
	"testing"

	"switchyard/internal/testkit"
)

// TestMain runs more tests at a time than there are cores: most of them only
// wait for a database to flush or to start.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	testkit.Main(m)
}
