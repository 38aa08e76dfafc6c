// Package monitoring tests the configuration of Prometheus, Alertmanager and Grafana
// against the metrics that are really exported, and tests each rule.
package monitoring

import (
	"os/exec"
	"path/filepath"
	"testing"

	"gopkg.in/yaml.v3"

	"switchyard/internal/testkit"
)

// TestMain runs more parallel tests at once than there are cores, unless -parallel
// says otherwise: the longest do not wait for the others.
func TestMain(m *testing.M) { testkit.MainParallel(m, 6) }

const (
	root       = "../.."
	prometheus = root + "/monitoring/prometheus"
)

// A rule is one of Prometheus' rules: it records or alerts.
type rule struct {
	file        string
	Record      string
	Alert       string
	Expr        string
	For         string
	Labels      map[string]string
	Annotations map[string]string
}

func rules(t *testing.T) (all []rule) {
	t.Helper()
	for _, path := range glob(t, prometheus+"/rules/*.yml") {
		var file struct {
			Groups []struct{ Rules []rule }
		}
		decode(t, path, &file)
		for _, g := range file.Groups {
			for _, r := range g.Rules {
				r.file = filepath.Base(path)
				all = append(all, r)
			}
		}
	}
	return all
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v, nothing there", pattern, err)
	}
	return paths
}

func read(t *testing.T, path string) string {
	t.Helper()
	return string(testkit.ReadFile(t, path))
}

// decode reads YAML, of which JSON is a part.
func decode(t *testing.T, path string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, path)), into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// runTool runs a program of a Debian package and returns what it printed.
func runTool(t *testing.T, pkg, program string, args ...string) (string, error) {
	t.Helper()
	path, err := testkit.FindProgram(program, pkg)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	return string(out), err
}
