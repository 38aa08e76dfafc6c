package backup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// fillDiskOnUnpack is a beforeRun that fills the disk while a scratch server unpacks
// the base backup.
func fillDiskOnUnpack(service string, p *Program) error {
	if service == "scratch" && strings.Contains(strings.Join(p.Args, " "), "tar -xzf") {
		p.Args = []string{"sh", "-c", "cat > /dev/full"}
	}
	return nil
}

// A scratch server that fails is reported on one line. The backup, its verify result
// and the primary stay as they are, and the scratch server leaves nothing behind.
func TestAFailedScratchServerLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.startNode().Kill()
	s := w.createBackup()
	if _, err := w.repository.Verify(t.Context(), s.Name); err != nil {
		t.Fatal(err)
	}
	before := testkit.ReadFile(t, s.path(verifyResultFile))
	scratchRoot := w.stack.scratchRoot
	for _, tt := range []struct {
		name, says string
		setup      func()
	}{
		{"no container", "the scratch server can't start: ", func() { w.stack.scratchRoot = "/none" }},
		{"a full disk", "No space left on device", func() { w.stack.beforeRun = fillDiskOnUnpack }},
		{"a server that does not start", "the scratch server can't start: ", func() {
			w.stack.beforeRun = func(service string, p *Program) error {
				if service == "scratch" && p.Args[0] == "pg_ctl" && p.Args[1] == "start" {
					p.Args = append(p.Args, "--options=-c shared_buffers=nonsense")
				}
				return nil
			}
		}},
		{"a server that dies", "psql: ", func() {
			w.stack.beforeRun = func(service string, p *Program) error {
				if service == "scratch" && strings.Contains(strings.Join(p.Args, " "), "pg_last_wal_replay_lsn") {
					folder := strings.TrimPrefix(p.Args[1], "PGHOST=")
					return w.stack.exec(t.Context(), nil, w.stack.user, Program{Args: []string{"pg_ctl", "stop", "-s", "-m", "immediate", "-D", folder + "/data"}})
				}
				return nil
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.setup()
			_, err := w.repository.Verify(t.Context(), s.Name)
			w.stack.beforeRun, w.stack.scratchRoot = nil, scratchRoot
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), s.Name) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line that names the backup and says %q", err, tt.says)
			}
			if now, err := os.ReadFile(s.path(verifyResultFile)); err != nil || string(now) != string(before) {
				t.Errorf("the verify result changed: %s, %v", now, err)
			}
			if left, _ := filepath.Glob(scratchRoot + "/*"); len(left) > 0 || !w.pg.Running() {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if _, err := w.repository.Verify(t.Context(), s.Name); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
