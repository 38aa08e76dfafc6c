package backup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fullBench is a bench whose disk fills up while the base backup is unpacked.
func fullBench(service string, p *Program) error {
	if service == "bench" && strings.Contains(strings.Join(p.Args, " "), "tar -xzf") {
		p.Args = []string{"sh", "-c", "cat > /dev/full"}
	}
	return nil
}

// What keeps a scratch server from being is one line; the backup, the proof that
// it has and the primary stay as they are, and nothing is left of the bench.
func TestAScratchServerThatCanNotBe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve().Kill()
	s := w.create()
	if _, err := w.vault.Verify(t.Context(), s.Name); err != nil {
		t.Fatal(err)
	}
	proof, err := os.ReadFile(s.path(proofFile))
	if err != nil {
		t.Fatal(err)
	}
	benches := w.site.benchRoot
	for _, tt := range []struct {
		name, says string
		spoil      func()
	}{
		{"no container", "the scratch server can't start: ", func() { w.site.benchRoot = "/none" }},
		{"a full disk", "No space left on device", func() { w.site.spoil = fullBench }},
		{"a server that does not come up", "the scratch server can't start: ", func() {
			w.site.spoil = func(service string, p *Program) error {
				if service == "bench" && p.Args[0] == "pg_ctl" && p.Args[1] == "start" {
					p.Args = append(p.Args, "--options=-c shared_buffers=nonsense")
				}
				return nil
			}
		}},
		{"a server that dies at work", "psql: ", func() {
			w.site.spoil = func(service string, p *Program) error {
				if service == "bench" && strings.Contains(strings.Join(p.Args, " "), "pg_last_wal_replay_lsn") {
					folder := strings.TrimPrefix(p.Args[1], "PGHOST=")
					return w.site.exec(t.Context(), nil, w.site.user, Program{Args: []string{"pg_ctl", "stop", "-s", "-m", "immediate", "-D", folder + "/data"}})
				}
				return nil
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.spoil()
			_, err := w.vault.Verify(t.Context(), s.Name)
			w.site.spoil, w.site.benchRoot = nil, benches
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), s.Name) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line that names the backup and says %q", err, tt.says)
			}
			if now, err := os.ReadFile(s.path(proofFile)); err != nil || string(now) != string(proof) {
				t.Errorf("the proof that was there: %s, %v", now, err)
			}
			if left, _ := filepath.Glob(benches + "/*"); len(left) > 0 || !w.pg.Running() {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if _, err := w.vault.Verify(t.Context(), s.Name); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
