package backup

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A restore restores the configuration, the certificates and the sessions in
// Redis, but not the state folder.
func TestConfigurationAndRedisAreRestored(t *testing.T) {
	t.Parallel()
	fx := newFixture(t)
	fx.startRedis("--appendonly", "yes")
	dir := t.TempDir()
	fx.stack.files = []string{dir}
	settings, link, key := filepath.Join(dir, "settings"), filepath.Join(dir, "link"), filepath.Join(dir, "certs", "key")
	write := func(path, text string, mode os.FileMode) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
	}
	write(settings, "COLOR=blue\n", 0o640)
	write(key, "secret", 0o400)
	// The record of the primary is no configuration: there may be a promotion after
	// the backup.
	fx.stack.stateDir = filepath.Join(dir, "state")
	record, deleted := filepath.Join(fx.stack.stateDir, "postgres", "primary"), filepath.Join(fx.stack.stateDir, "current.json")
	write(record, "postgres\n", 0o644)
	write(deleted, "{}", 0o644)
	if err := os.Symlink("settings", link); err != nil {
		t.Fatal(err)
	}
	fx.stack.acmeDir = t.TempDir()
	write(filepath.Join(fx.stack.acmeDir, "acme.json"), "{}", 0o600)
	fx.startNode().Kill()
	fx.createBackup()
	write(filepath.Join(fx.stack.acmeDir, "acme.json"), "", 0o600)
	write(settings, "COLOR=purple\n", 0o640)
	write(record, "postgres_replica\n", 0o644)
	removeFile(t, deleted)
	if err := errors.Join(os.RemoveAll(filepath.Dir(key)), os.Remove(link)); err != nil {
		t.Fatal(err)
	}
	fx.stack.redis.Do(t, "SET", "session", "bob")

	if _, err := fx.repository.Restore(t.Context(), RestoreRequest{Redis: true}); err == nil || !strings.Contains(err.Error(), "needs --replace") {
		t.Errorf("a restore of Redis without Replace: %v", err)
	}
	out, err := fx.repository.Restore(t.Context(), RestoreRequest{Configuration: true, Redis: true, Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Configuration) != 3 {
		t.Errorf("%v were written, want 3 files", out.Configuration)
	}
	for path, want := range map[string]string{settings: "COLOR=blue\n", link: "COLOR=blue\n", key: "secret", filepath.Join(fx.stack.acmeDir, "acme.json"): "{}"} {
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if b, err := os.ReadFile(record); err != nil || string(b) != "postgres_replica\n" {
		t.Errorf("the record of the primary became %q, %v", b, err)
	}
	if _, err := os.Stat(deleted); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal of a deploy that ended is back: %v", err)
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("the key: %v, %v", info, err)
	}
	var kept []string
	n, err := readConfiguration(out.ReplacedArchive, func(h *tar.Header, b []byte) error { kept = append(kept, string(b)); return nil })
	if err != nil || n != 1 || kept[0] != "COLOR=purple\n" {
		t.Errorf("the replaced files: %q, %v", kept, err)
	}
	if got := fx.stack.redis.Do(t, "GET", "session"); got != "ann" {
		t.Errorf("the session is %q", got)
	}
	again, err := fx.repository.Restore(t.Context(), RestoreRequest{Configuration: true})
	if err != nil || len(again.Configuration) != 0 || again.ReplacedArchive != "" {
		t.Errorf("a second restore, when no file differs: %+v, %v", again, err)
	}
}
