package backup

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
		return string(testkit.ReadFile(t, log))
	}
}

// newStack returns a stack in a new folder.
func newStack(t *testing.T) *Compose {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, DefaultFile), []byte("services: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := OpenCompose(dir, DefaultFile, "yard")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const someConfig = `{"services":{
 "postgres":{"image":"postgres:15","volumes":[{"type":"bind","source":"/srv/backups","target":"/backups"},{"type":"volume","source":"postgres","target":"/var/lib/postgresql/data"},{"type":"bind","source":"/etc/yard/postgres","target":"/etc/postgresql"}]},
 "node_exporter":{"volumes":[{"type":"bind","source":"/","target":"/host/root"},{"type":"bind","source":"/proc","target":"/host/proc"}]},
 "traefik":{"volumes":[{"type":"bind","source":"/etc/yard","target":"/etc/traefik"}]}},
 "secrets":{"key":{"file":"/etc/keys/tls"}}}`

func TestComposeReadsTheStack(t *testing.T) {
	fakeDocker(t,
		[2]string{`*"config --format json"`, `echo '` + strings.ReplaceAll(someConfig, "\n", "") + `'`},
		[2]string{`"ps -a --filter"*`, `printf 'app_blue running\napp_blue exited\npostgres exited\n'`},
		[2]string{`*"exec -T -e PGUSER=postgres -e PGDATABASE=switchyard postgres"*`, `shift 10; echo "$@"`},
		[2]string{`*"exec -T redis sh -c"*`, `echo 'no such service: redis' >&2; exit 1`})
	c := newStack(t)
	if dir, err := c.BackupDir(t.Context()); err != nil || dir != "/srv/backups" {
		t.Errorf("backups in %q, %v", dir, err)
	}
	files, err := c.ConfigPaths(t.Context())
	want := strings.Join([]string{"/etc/keys/tls", "/etc/yard", c.Dir}, " ")
	if err != nil || strings.Join(files, " ") != want {
		t.Errorf("files %v, want %s; %v", files, want, err)
	}
	services, err := c.Services(t.Context())
	if err != nil || len(services) != 2 || !services["app_blue"] || services["postgres"] {
		t.Errorf("%v, %v", services, err)
	}
	var out bytes.Buffer
	if err := c.Run(t.Context(), PostgresService, Program{Args: []string{"psql", "-c", "SELECT 1"}, Stdout: &out}); err != nil || !strings.Contains(out.String(), "psql -c SELECT 1") {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := c.Run(t.Context(), RedisService, Program{Args: []string{"redis-cli", "ping"}}); !errors.Is(err, ErrNoService) {
		t.Errorf("a service that the stack does not have: %v", err)
	}
}

// Services are stopped with one command, so that no node waits for the drain of
// another.
func TestServicesAreStoppedTogether(t *testing.T) {
	fakeDocker(t,
		[2]string{`*" stop app_blue app_green postgres"`, `:`},
		[2]string{`*" stop redis"`, `echo 'no such container' >&2; exit 1`})
	c := newStack(t)
	if err := c.Stop(t.Context(), "app_blue", "app_green", PostgresService); err != nil {
		t.Error(err)
	}
	if err := c.Stop(t.Context(), RedisService); err == nil || !strings.Contains(err.Error(), "stop redis: ") || !strings.Contains(err.Error(), "no such container") {
		t.Errorf("%v", err)
	}
}

func TestThePrimaryIsRecordedInAFile(t *testing.T) {
	c := newStack(t)
	if name, err := c.Primary(); err != nil || name != PostgresService {
		t.Errorf("without a record: %q, %v", name, err)
	}
	if err := os.MkdirAll(filepath.Join(c.Dir, "state", "postgres"), 0o755); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(c.primaryFile(), c.StateDir()+"/") {
		t.Errorf("%s is outside of the state folder", c.primaryFile())
	}
	if err := c.SetPrimary(PostgresReplicaService); err != nil {
		t.Fatal(err)
	}
	if name, err := c.Primary(); err != nil || name != PostgresReplicaService {
		t.Errorf("%q, %v", name, err)
	}
	if err := c.SetPrimary("somebody"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Primary(); err == nil || !strings.Contains(err.Error(), `names "somebody"`) {
		t.Errorf("%v", err)
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
		if live := b.Paths().LiveData; (live == "") != scratch {
			t.Errorf("scratch %v: %+v", scratch, b.Paths())
		}
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	made := calls()
	for _, want := range []string{
		"rm -fv old\n", "--network none --cap-drop ALL --security-opt no-new-privileges:true --read-only",
		"-v /var/lib/postgresql/data -v /srv/backups:/backups:ro postgres:15 86400", "--volumes-from c0ffee postgres:15 86400",
	} {
		if !strings.Contains(made, want) {
			t.Errorf("no %q in\n%s", want, made)
		}
	}
	if n := strings.Count(made, "rm -fv yard-bench-"); n != 2 {
		t.Errorf("%d scratch servers were removed, want 2:\n%s", n, made)
	}
}

func TestContainersAreReadFromDocker(t *testing.T) {
	fakeDocker(t,
		[2]string{`"ps -aq"*`, `echo a b`},
		[2]string{`"inspect --type container a b"`, `cat <<'E'
[{"Name":"/yard-redis-1","State":{"Status":"exited","ExitCode":137},"RestartCount":2,"Config":{"Labels":{"com.docker.compose.service":"redis"}},"NetworkSettings":{"Networks":{"back":{"IPAddress":""}}}},
 {"Name":"/yard-app_blue-1","State":{"Status":"running","Running":true,"Health":{"Status":"healthy"}},"Config":{"Labels":{"com.docker.compose.service":"app_blue"}},"NetworkSettings":{"Networks":{"b":{"IPAddress":"10.0.0.3"},"a":{"IPAddress":"10.0.0.2"}}}}]
E
`})
	all, err := newStack(t).Containers(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	if c := all[0]; c != (Container{Name: "yard-app_blue-1", Service: "app_blue", Running: true, Status: "running", Health: "healthy", Address: "10.0.0.2"}) {
		t.Errorf("%+v", c)
	}
	if c := all[1]; c.Running || c.Status != "exited with 137" || c.Restarts != 2 {
		t.Errorf("%+v", c)
	}
}

// Output of docker that can't be read is an error that names the cause.
func TestUnreadableContainersAreReported(t *testing.T) {
	for name, tt := range map[string]struct{ script, says string }{
		"docker fails":            {`echo "Error: cannot connect" >&2; exit 1`, "docker inspect: docker: Error: cannot connect"},
		"docker prints no JSON":   {`echo "no JSON"`, "docker inspect: invalid character"},
		"docker prints an error":  {`echo "["; echo "Error: cannot connect" >&2; exit 1`, "docker inspect: docker: Error: cannot connect"},
		"docker prints no object": {`echo "[]"`, "docker inspect: it printed no container"},
	} {
		fakeDocker(t, [2]string{`"ps -aq"*`, `echo a`}, [2]string{`"inspect --type container a"`, tt.script})
		if _, err := newStack(t).Containers(t.Context()); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", name, err, tt.says)
		}
	}
}

func TestWithoutDockerOrAStack(t *testing.T) {
	c := newStack(t)
	t.Setenv("PATH", t.TempDir())
	if _, err := c.Services(t.Context()); err == nil || !strings.Contains(err.Error(), "docker is not installed on this host") {
		t.Errorf("%v", err)
	}
	if _, err := OpenCompose(t.TempDir(), DefaultFile, "yard"); err == nil || !strings.Contains(err.Error(), "name its folder with --dir") {
		t.Errorf("%v", err)
	}
}

// The error of a program has its error output on one line. A program ends with its
// context.
func TestAFailedProgramIsReportedOnOneLine(t *testing.T) {
	t.Parallel()
	l := &localStack{t: t}
	err := l.exec(t.Context(), nil, nil, Program{Args: []string{"sh", "-c", "echo one >&2; echo two >&2; exit 3"}})
	var failed *ProgramError
	if !errors.As(err, &failed) || err.Error() != "sh: one; two" {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := l.exec(ctx, nil, nil, Program{Args: []string{"sleep", "infinity"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	for size, want := range map[Bytes]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 3 << 30: "3.0 GiB"} {
		if size.String() != want {
			t.Errorf("%d: %s, want %s", int64(size), size, want)
		}
	}
}
