package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(int) { http.DefaultClient.CloseIdleConnections() }))
}

// websocketAs is the table of moved modules with the websocket library alone, as a version
// of the new path.
func websocketAs(as string) []movedModule {
	return []movedModule{{"nhooyr.io/websocket", "v1.8.17", "github.com/coder/websocket", as}}
}

// fileDB returns the URL of a database in testdata.
func fileDB(t *testing.T, name string) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return "file://" + dir
}

// modules runs checkModules on a go.mod that requires what moved names.
func modules(t *testing.T, db, goMod string, moved []movedModule) (out string, found bool, err error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "go.mod")
	if err := os.WriteFile(file, []byte(goMod), 0o644); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	found, err = checkModules(t.Context(), &b, db, file, moved)
	return b.String(), found, err
}

const requiresWebsocket = "module m\n\ngo 1.26\n\nrequire nhooyr.io/websocket v1.8.17\n"

// Only an advisory whose range has the version applies; those that end with it, begin
// above it or were withdrawn do not.
func TestAdvisoriesOfAMovedModuleAreFound(t *testing.T) {
	web := httptest.NewServer(http.FileServer(http.Dir("testdata/db")))
	defer web.Close()
	for name, db := range map[string]string{"file": fileDB(t, "db"), "http": web.URL} {
		for as, want := range map[string]string{
			"v1.8.12": "nhooyr.io/websocket v1.8.17 (the code of github.com/coder/websocket v1.8.12): GO-2026-0001, CVE-2026-99999: a made up weakness; fixed in v1.8.13; https://pkg.go.dev/vuln/GO-2026-0001\n",
			"v1.8.11": "GO-2026-0002: one that ends with our version; fixed in v1.8.12;",
			"v1.8.13": "GO-2026-0003: one that begins above our version; fixed in no version;",
		} {
			out, found, err := modules(t, db, requiresWebsocket, websocketAs(as))
			if err != nil || !found || !strings.Contains(out, want) || strings.Count(out, "\n") != 1 {
				t.Errorf("%s, %s: %q, %v, %v, want %q alone", name, as, out, found, err, want)
			}
		}
	}
}

func TestAModuleWithoutAdvisoriesHasNone(t *testing.T) {
	goMod := "module m\n\nrequire old.example.com/m v1.0.0\n"
	for to, want := range map[string]string{"example.com/none": "no advisory of 0 applies", "example.com/unknown": "no advisory of 0 applies"} {
		out, found, err := modules(t, fileDB(t, "db"), goMod, []movedModule{{"old.example.com/m", "v1.0.0", to, "v1.0.0"}})
		if err != nil || found || !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v, %v", to, out, found, err)
		}
	}
	// As for govulncheck, an advisory without versions is about all of them.
	out, found, err := modules(t, fileDB(t, "db"), goMod, []movedModule{{"old.example.com/m", "v1.0.0", "example.com/all", "v1.0.0"}})
	if err != nil || !found || !strings.Contains(out, "GO-2026-0005: one without versions; fixed in no version") {
		t.Errorf("%q, %v, %v", out, found, err)
	}
}

// The events of a range may be in any order, and a range may have holes.
func TestRangesOfAdvisories(t *testing.T) {
	type event = struct{ Introduced, Fixed string }
	r := semverRange{"SEMVER", []event{{Fixed: "1.8.4"}, {Introduced: "1.8.0"}, {Introduced: "0"}, {Fixed: "1.6.0"}}}
	for version, want := range map[string]string{
		"v0.0.0-20200101000000-abcdef012345": "v1.6.0", "v1.5.9": "v1.6.0", "v1.6.0": "", "v1.7.9": "",
		"v1.8.0-rc.1": "", "v1.8.0": "v1.8.4", "v1.8.3": "v1.8.4", "v1.8.4": "", "v1.10.0": "",
	} {
		if hit, fixed := r.contains(version); hit != (want != "") || fixed != want {
			t.Errorf("%s: %v, fixed in %q, want %q", version, hit, fixed, want)
		}
	}
}

// What can't be read is no answer: 4 if it can't be reached, 1 if it is not a database.
func TestExitCodesOfModules(t *testing.T) {
	mod := filepath.Join(t.TempDir(), "go.mod")
	if err := os.WriteFile(mod, []byte("module m\n\nrequire (\n\tnhooyr.io/websocket v1.8.17\n\tgopkg.in/yaml.v3 v3.0.1\n)\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	defer gone.Close()
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for name, tt := range map[string]struct {
		db, says string
		want     int
	}{
		"a finding":       {fileDB(t, "db"), "GO-2026-0001", exitFinding},
		"nobody there":    {closed.URL, "can't be reached", exitUnreachable},
		"not found":       {gone.URL, "can't be reached", exitUnreachable},
		"no folder":       {"file:///nonexistent", "can't be reached", exitUnreachable},
		"no JSON":         {fileDB(t, "bad"), "unexpected end of JSON", exitError},
		"no JSON in one":  {fileDB(t, "broken"), "GO-2026-0002.json", exitError},
		"a path as an id": {fileDB(t, "badid"), "has the id", exitError},
		"another scheme":  {"ftp://vuln.example.com", "want an https, http or file URL", exitError},
	} {
		var stdout, stderr strings.Builder
		code := run(&stdout, &stderr, time.Now(), []string{"modules", "-db", tt.db, "-mod", mod})
		if code != tt.want || !strings.Contains(stdout.String()+stderr.String(), tt.says) {
			t.Errorf("%s: exit %d, want %d and %q\n%s%s", name, code, tt.want, tt.says, &stdout, &stderr)
		}
	}
}

// The table says which code one version has, so another one must be looked at.
func TestTheTableOfMovedModulesFollowsGoMod(t *testing.T) {
	for says, goMod := range map[string]string{
		"is at v1.8.18, the table at v1.8.17": "module m\n\nrequire nhooyr.io/websocket v1.8.18\n",
		"is not required any more: remove it": "module m\n",
		"is replaced":                         requiresWebsocket + "replace nhooyr.io/websocket => ../websocket\n",
	} {
		if _, _, err := modules(t, fileDB(t, "db"), goMod, websocketAs("v1.8.12")); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	// And the shipped table follows the shipped file: none of the fabricated advisories is
	// about the other module of it.
	var b strings.Builder
	if found, err := checkModules(t.Context(), &b, fileDB(t, "db"), "../../go.mod", movedModules); err != nil || !found || !strings.Contains(b.String(), "gopkg.in/yaml.v3 v3.0.1 (the code of go.yaml.in/yaml/v3 v3.0.1): no advisory of 0 applies") {
		t.Errorf("%v, %v\n%s", found, err, &b)
	}
}
