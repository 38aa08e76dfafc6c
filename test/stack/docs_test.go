package stack

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// operatorPages are the pages of docs that operators read.
var operatorPages = []string{"operations.md", "monitoring.md", "incidents.md", "runbook.md", "capacity.md", "backup.md"}

// Settings, services and files that the operators' pages name exist.
func TestOperatorPagesNameExistingThings(t *testing.T) {
	var page string
	for _, name := range operatorPages {
		page += read(t, root+"/docs/"+name)
	}
	env := loadEnvExample(t)
	file := loadCompose(t, env)
	settings := map[string]bool{"DATABASE_URL": true, "REDIS_URL": true, "DATABASE_LANES": true, "IMAGE_MIGRATE": true, "HTTP": true, "COMPOSE_FILE": true}
	for name := range env {
		settings[name] = true
	}
	for _, name := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\|").FindAllStringSubmatch(read(t, root+"/docs/configuration.md"), -1) {
		settings[name[1]] = true
	}
	found := 0
	for _, name := range regexp.MustCompile("[`\n ]([A-Z]+(?:_[A-Z]+)+)\\b").FindAllStringSubmatch(page, -1) {
		if found++; !settings[name[1]] {
			t.Errorf("a page names %s, which neither .env.example nor docs/configuration.md has", name[1])
		}
	}
	for _, name := range regexp.MustCompile(`docker compose[^\n]* (?:exec|rm -sf|up -d --wait --no-deps|stop) ([a-z_]+)`).FindAllStringSubmatch(page, -1) {
		if found++; file.Services[name[1]].Image == "" {
			t.Errorf("a page names the service %s, which the compose file lacks", name[1])
		}
	}
	for _, name := range regexp.MustCompile("`((?:postgres|dynamic|staging|secrets)/[a-z_.]+)`").FindAllStringSubmatch(page, -1) {
		found++
		if secret, ok := strings.CutPrefix(name[1], "secrets/"); ok {
			if _, known := file.Secrets[secret]; !known {
				t.Errorf("a page names the secret %s, which the compose file lacks", secret)
			}
			continue
		}
		if _, err := os.Stat(filepath.Join(compose, name[1])); err == nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(traefik, name[1])); err != nil {
			t.Errorf("a page names %s, which does not exist", name[1])
		}
	}
	if found < 30 {
		t.Errorf("only %d names were found on the pages", found)
	}
}

// testFolders has the folders of the packages by which a page names tests.
var testFolders = map[string]string{
	"cmd": "cmd/switchyard", "stack": "test/stack", "e2e": "test/e2e", "monitoring": "test/monitoring",
	"deploy": "internal/deploy", "host": "internal/stack", "backup": "internal/backup", "inspect": "internal/inspect",
}

// Each script and step of the guide has a command and a test, and both exist.
func TestEachScriptHasACommandAndATest(t *testing.T) {
	page := read(t, root+"/docs/predecessor.md")
	commands := map[string]bool{}
	for _, m := range regexp.MustCompile("(?:Use:\\s+|inspectCommand\\()\"([a-z-]+)").FindAllStringSubmatch(sources(t, "cmd/switchyard", false), -1) {
		commands[m[1]] = true
	}
	makefile := read(t, root+"/Makefile")
	tests := map[string]string{}
	for name, folder := range testFolders {
		tests[name] = sources(t, folder, true)
	}
	rows := 0
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| script or step ") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 3 {
			t.Errorf("%d cells: %s", len(cells), line)
			continue
		}
		for _, c := range cells {
			if strings.Trim(c, " –-…?") == "" {
				t.Errorf("an empty cell: %s", line)
			}
		}
		for _, m := range regexp.MustCompile("`switchyard ([a-z-]+)").FindAllStringSubmatch(cells[1], -1) {
			if !commands[m[1]] {
				t.Errorf("there is no command %s: %s", m[1], line)
			}
		}
		for _, m := range regexp.MustCompile("`make ([a-z0-9-]+)").FindAllStringSubmatch(cells[1], -1) {
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("the Makefile has no verb %s: %s", m[1], line)
			}
		}
		for name := range strings.SplitSeq(cells[2], ",") {
			folder, test, _ := strings.Cut(strings.TrimSpace(name), ".")
			if !strings.HasPrefix(test, "Test") || !strings.Contains(tests[folder], "\nfunc "+test+"(") {
				t.Errorf("there is no test %s: %s", strings.TrimSpace(name), line)
			}
		}
	}
	if rows < 50 {
		t.Errorf("only %d rows were found", rows)
	}
}

// sources returns the text of a folder's Go files: of its tests, or of all others.
func sources(t *testing.T, folder string, tests bool) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, folder, "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v", folder, err)
	}
	var b strings.Builder
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") == tests {
			b.WriteString("\n" + read(t, name))
		}
	}
	return b.String()
}
