package backup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

// fakeDocker puts a docker into PATH that logs its arguments and runs the script
// of the first answer whose shell pattern matches them. calls returns the log.
func fakeDocker(t *testing.T, answers ...[2]string) (calls func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	script := "#!/bin/sh\necho \"$*\" >> " + log + "\ncase \"$*\" in\n"
	for _, a := range answers {
		script += a[0] + ") " + a[1] + " ;;\n"
	}
	script += "*) echo unexpected: \"$*\" >&2; exit 1 ;;\nesac\n"
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() string {
		b := testkit.ReadFile(t, log)
		return string(b)
	}
}

// newStack returns a stack in a new folder.
func newStack(t *testing.T) Compose {
	return Compose{&stack.Stack{Dir: t.TempDir(), File: stack.DefaultFile, Project: "yard"}}
}

const someConfig = `{"services":{
 "postgres":{"image":"postgres:18","environment":{"PGDATA":"/var/lib/postgresql/18/docker"},"volumes":[{"type":"bind","source":"/srv/backups","target":"/backups"},{"type":"volume","source":"postgres","target":"/var/lib/postgresql"},{"type":"bind","source":"/etc/yard/postgres","target":"/etc/postgresql"}]},
 "node_exporter":{"volumes":[{"type":"bind","source":"/","target":"/host/root"},{"type":"bind","source":"/proc","target":"/host/proc"}]},
 "traefik":{"volumes":[{"type":"bind","source":"/etc/yard","target":"/etc/traefik"}]}},
 "secrets":{"key":{"file":"/etc/keys/tls"}}}`

func TestTheFoldersOfABackupAreReadFromTheComposeFile(t *testing.T) {
	fakeDocker(t, [2]string{`*"config --format json"`, `echo '` + strings.ReplaceAll(someConfig, "\n", "") + `'`})
	c := newStack(t)
	if dir, err := c.BackupDir(t.Context()); err != nil || dir != "/srv/backups" {
		t.Errorf("backups in %q, %v", dir, err)
	}
	files, err := c.ConfigPaths(t.Context())
	want := strings.Join([]string{"/etc/keys/tls", "/etc/yard", c.Dir}, " ")
	if err != nil || strings.Join(files, " ") != want {
		t.Errorf("files %v, want %s; %v", files, want, err)
	}
}

func TestSizesAreReadable(t *testing.T) {
	for size, want := range map[Bytes]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 3 << 30: "3.0 GiB"} {
		if size.String() != want {
			t.Errorf("%d: %s, want %s", int64(size), size, want)
		}
	}
}

// A scratch server has no network, and of the host only the backups, read-only.
// Those of killed commands are removed first.
func TestAScratchServerIsIsolated(t *testing.T) {
	calls := fakeDocker(t,
		[2]string{`*"config --format json"`, `echo '` + strings.ReplaceAll(someConfig, "\n", "") + `'`},
		[2]string{`"ps -aq --filter label=switchyard.bench=yard"`, `echo old`},
		[2]string{`*"ps -aq postgres"`, `echo c0ffee`},
		[2]string{`"rm -fv"*`, `:`}, [2]string{`"run -d"*`, `:`}, [2]string{`"exec -i"*`, `:`})
	c := newStack(t)
	for _, scratch := range []bool{true, false} {
		b, err := c.ScratchServer(t.Context(), scratch)
		if err != nil {
			t.Fatal(err)
		}
		if live := b.Paths().LiveData; (live == "") != scratch || !scratch && live != "/var/lib/postgresql/18/docker" {
			t.Errorf("scratch %v: %+v", scratch, b.Paths())
		}
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	made := calls()
	for _, want := range []string{
		"rm -fv old\n", "--network none --cap-drop ALL --security-opt no-new-privileges:true --read-only",
		"-v /var/lib/postgresql -v /srv/backups:/backups:ro postgres:18 86400", "--volumes-from c0ffee postgres:18 86400",
	} {
		if !strings.Contains(made, want) {
			t.Errorf("no %q in\n%s", want, made)
		}
	}
	if n := strings.Count(made, "rm -fv yard-bench-"); n != 2 {
		t.Errorf("%d scratch servers were removed, want 2:\n%s", n, made)
	}
}
