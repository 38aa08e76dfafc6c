package backup

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

const shippedDir = "../../deploy/compose/"

// The shipped archive_command archives a segment completely, accepts it a second
// time, and never replaces a file with other content.
func TestTheShippedArchiveCommand(t *testing.T) {
	t.Parallel()
	dir, from := t.TempDir(), filepath.Join(t.TempDir(), "segment")
	const name = "000000010000000000000001"
	archive := func(content string) (string, error) {
		if err := os.WriteFile(from, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "sh", shippedDir+"postgres/archive", from, name)
		cmd.Env = append(cmd.Environ(), "WAL_ARCHIVE="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := archive("some records"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := archive("some records"); err != nil {
		t.Errorf("the same segment again, as after a crash: %v: %s", err, out)
	}
	if out, err := archive("other records"); err == nil || !strings.Contains(out, "is there with other content") {
		t.Errorf("a segment of another database: %v: %s", err, out)
	}
	a, err := readArchive(dir, 16<<20)
	if err != nil || len(a.files) != 1 {
		t.Fatalf("%+v, %v", a, err)
	}
	r, err := a.open(name + gz)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil || b.String() != "some records" {
		t.Errorf("archived: %q, %v", b.String(), err)
	}
	if left, _ := filepath.Glob(dir + "/.*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The shipped compose file has the names and folders that this package assumes.
func TestTheShippedComposeFileMatchesThisPackage(t *testing.T) {
	text := testkit.ReadFile(t, shippedDir+stack.DefaultFile)
	var file struct {
		Name     string
		Services map[string]struct {
			User        string
			Volumes     []string
			Environment map[string]string
			Command     any
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if file.Name != "switchyard" {
		t.Errorf("the stack is called %q; --project says switchyard", file.Name)
	}
	for _, name := range []string{stack.PostgresService, stack.PostgresReplicaService} {
		s := file.Services[name]
		volumes := strings.Join(s.Volumes, " ")
		if s.User != "70:70" || !strings.HasPrefix(s.Environment["PGDATA"], dataMount+"/") ||
			!strings.Contains(volumes, ":"+backupsMount+" ") || !strings.Contains(volumes, name+":"+dataMount) {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if v := strings.Join(file.Services[stack.TraefikService].Volumes, " "); !strings.Contains(v, "acme:"+acmeFolder) {
		t.Errorf("%s: %s", stack.TraefikService, v)
	}
	if v := strings.Join(file.Services["node_exporter"].Volumes, " "); !strings.Contains(v, "/"+metricsFolder+":") {
		t.Errorf("node_exporter does not mount the metrics of backups: %s", v)
	}
	if _, has := file.Services[stack.RedisService]; !has {
		t.Errorf("the service %s is missing", stack.RedisService)
	}
	units, err := filepath.Glob("../../deploy/systemd/*")
	if err != nil || len(units) != 5 {
		t.Errorf("units: %v, %v", units, err)
	}
	for _, path := range units {
		b := testkit.ReadFile(t, path)
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "ExecStart=") && !strings.Contains(line, "/usr/local/bin/switchyard backup") {
				t.Errorf("%s: %s", path, line)
			}
		}
	}
}

// The documented commands to rebuild the standby name the compose file, and no
// service that may be the live primary. The documented script picks the right one.
func TestTheDocumentedRebuildOfTheStandby(t *testing.T) {
	t.Parallel()
	b := testkit.ReadFile(t, "../../docs/backup.md")
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "docker compose ") && !strings.Contains(line, "-f "+stack.DefaultFile) {
			t.Errorf("a command without the compose file: %s", line)
		}
		if (strings.Contains(line, " rm ") || strings.Contains(line, "up -d")) && strings.Contains(line, "postgres") {
			t.Errorf("a command names a server that may be the primary: %s", line)
		}
	}
	_, choose, _ := strings.Cut(string(b), "cd /opt/switchyard/deploy/compose\n")
	choose, _, found := strings.Cut(choose, "```")
	if !found {
		t.Fatal("the document does not find out which server is the standby")
	}
	for record, want := range map[string]string{"": stack.PostgresReplicaService, stack.PostgresService: stack.PostgresReplicaService, stack.PostgresReplicaService: stack.PostgresService, "somebody": ""} {
		dir := t.TempDir()
		if record != "" {
			c := &stack.Stack{Dir: dir}
			if err := os.MkdirAll(filepath.Join(c.StateDir(), "postgres"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.SetPrimary(record); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.CommandContext(t.Context(), "sh", "-c", choose)
		cmd.Dir = dir
		out, err := cmd.Output()
		if got := strings.TrimPrefix(strings.TrimSpace(string(out)), "to be emptied: "); got != want || (err != nil) != (want == "") {
			t.Errorf("with %q recorded: %q, %v; want %q", record, got, err, want)
		}
	}
}
