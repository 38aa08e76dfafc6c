package store

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// interceptCommits puts a proxy before the database. The returned function
// drops the answer to the COMMIT of the next publication in room: the server
// commits, and the node does not learn of it.
func (f *fixture) interceptCommits() (lose func(room string) <-chan struct{}) {
	f.t.Helper()
	host := fmt.Sprintf("127.0.0.1:%d", f.pg.Port())
	proxy := testkit.NewProxy(f.t, host)
	f.url = strings.Replace(f.url, host, proxy.Addr(), 1)
	return func(room string) <-chan struct{} { return proxy.DropResponse(room, "COMMIT\x00", false) }
}

// requireFault fails the test if its fault has not happened.
func requireFault(t *testing.T, fault <-chan struct{}) {
	t.Helper()
	select {
	case <-fault:
	default:
		t.Fatal("the fault did not happen, so the test proves nothing")
	}
}

// copyTree replaces a file or directory by a copy of another, with its owners.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	for _, args := range [][]string{{"rm", "-rf", to}, {"cp", "-a", from, to}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
}
