package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const testList = `looked: 2026-12-01
programs:
  redis: {image: redis, parts: 3, source: https://example.com/redis}
  postgres: {image: postgres, parts: 2, source: https://example.com/postgres}
  grafana: {image: grafana/grafana, parts: 3, source: https://example.com/grafana}
elsewhere:
  golang: govulncheck looks at it
advisories:
  redis:
  - {id: CVE-1, affected: "< 6.2.20, >= 7.0 < 7.2.11, >= 8.2 < 8.2.2", effect: a script runs code, source: https://example.com/1}
  - {id: CVE-2, affected: ">= 8.0", effect: nobody repairs it, source: https://example.com/2}
  postgres:
  - {id: CVE-3, affected: ">= 15 < 15.4, >= 16.0 < 16.0.1", effect: a row is shown, source: https://example.com/3}
  grafana:
  - {id: CVE-4, affected: "<= 11.6.1", effect: a page runs a script, source: https://example.com/4}
`

// ref returns the reference of an image. It is put together, because a test holds all files
// with a reference to the versions of deploy/images.yml.
func ref(repository, tag string) string { return repository + ":" + tag }

// day is the day after the list was looked through.
var day = time.Date(2026, 12, 2, 0, 0, 0, 0, time.UTC)

// images runs the verb images on a list and a file of images at a time.
func images(t *testing.T, now time.Time, list, file string, refs ...string) (code int, stdout, stderr string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"list": list, "images": file} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs strings.Builder
	code = run(&out, &errs, now, append([]string{"images", "-list", filepath.Join(dir, "list"), "-images", filepath.Join(dir, "images")}, refs...))
	return code, out.String(), errs.String()
}

// An image is compared by its tag, whatever stands around the version.
func TestImagesAreComparedWithTheList(t *testing.T) {
	for image, want := range map[string]string{
		ref("redis", "7.0.15-alpine"):                       "CVE-1: a script runs code; fixed in 7.2.11; https://example.com/1",
		ref("redis", "6.2.19"):                              "fixed in 6.2.20",
		ref("redis", "6.2.20"):                              "none of 2 known on 2026-12-01",
		ref("redis", "6.9.0"):                               "none of 2 known",
		ref("redis", "7.2.10"):                              "fixed in 7.2.11",
		ref("redis", "7.2.11"):                              "none of 2 known",
		ref("redis", "7.2.11-rc1"):                          "fixed in 7.2.11",
		ref("redis", "8.2.2"):                               "CVE-2: nobody repairs it; fixed in no version",
		ref("docker.io/library/redis", "7.2.10@sha256:0ab"): "fixed in 7.2.11",
		ref("postgres", "15.3-alpine"):                      "CVE-3: a row is shown; fixed in 15.4",
		ref("postgres", "15.4-alpine"):                      "none of 1 known",
		ref("postgres", "15.20-alpine"):                     "none of 1 known",
		ref("postgres", "14.9"):                             "none of 1 known",
		ref("grafana/grafana", "11.6.1"):                    "CVE-4: a page runs a script; fixed after 11.6.1",
		ref("grafana/grafana", "11.6.1-security-01"):        "fixed after 11.6.1",
		ref("grafana/grafana", "11.6.2"):                    "none of 1 known",
		// What can't be compared must not pass.
		ref("postgres", "15"):              "no exact version, which can't be compared: see https://example.com/postgres",
		ref("redis", "7.2"):                "no exact version",
		ref("redis", "alpine"):             "no exact version",
		"redis":                            "no exact version",
		"redis@sha256:0ab":                 "no exact version",
		ref("localhost:5000/redis", "7.0"): "the list does not have this program",
		ref("switchyard", "v1.2.3"):        "the list does not have this program",
		ref("golang", "1.26"):              "govulncheck looks at it",
	} {
		code, out, errs := images(t, day, testList, "", image)
		wantCode := exitNone
		if strings.Contains(want, "fixed") || strings.Contains(want, "no exact version") {
			wantCode = exitFinding
		}
		if code != wantCode || !strings.HasPrefix(out, image+": ") || !strings.Contains(out, want) || errs != "" || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: exit %d, %q, %q, want %d and %q", image, code, out, errs, wantCode, want)
		}
	}
}

// Every image of the file is named, and one that the list does not know is an error: nobody
// would look at it.
func TestAllPinnedImagesAreNamed(t *testing.T) {
	code, out, _ := images(t, day, testList, "valkey: "+ref("redis", "7.2.11")+"\ndb: "+ref("postgres", "15.3-alpine")+"\nbuild: "+ref("golang", "1.26")+"\n")
	for _, want := range []string{ref("redis", "7.2.11: none"), ref("postgres", "15.3-alpine: CVE-3"), ref("golang", "1.26: govulncheck")} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing:\n%s", want, out)
		}
	}
	if code != exitFinding {
		t.Errorf("exit %d, want %d", code, exitFinding)
	}
	code, _, errs := images(t, day, testList, "other: example.com/other:1.0.0\ndb: "+ref("postgres", "15.3-alpine")+"\n")
	if code != exitError || !strings.Contains(errs, "example.com/other:1.0.0 is neither among the programs nor elsewhere") {
		t.Errorf("exit %d, %q", code, errs)
	}
}

// A list that nobody has looked through for 90 days warns, and counts as it did.
func TestAnOldListWarns(t *testing.T) {
	looked := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	for after, warns := range map[time.Duration]bool{90 * 24 * time.Hour: false, 90*24*time.Hour + time.Minute: true} {
		code, _, errs := images(t, looked.Add(after), testList, "cache: "+ref("redis", "7.2.11")+"\n")
		if code != exitNone || strings.Contains(errs, "was last looked through on 2026-12-01, 90 days ago") != warns {
			t.Errorf("after %v: exit %d, %q", after, code, errs)
		}
	}
}

func TestMistakesInTheListAreErrors(t *testing.T) {
	for says, change := range map[string][2]string{
		"when was the list last looked through": {"looked: 2026-12-01\n", ""},
		"parsing time":                          {"looked: 2026-12-01", "looked: yesterday"},
		"field fixed not found":                 {"effect: a row", "fixed: 1, effect: a row"},
		"there is no program postgres":          {"  postgres: {image: postgres, parts: 2, source: https://example.com/postgres}\n", ""},
		"redis needs an image":                  {"image: redis, parts: 3", "image: redis, parts: 4"},
		`redis: "CVE-1" needs an id`:            {"id: CVE-2", "id: CVE-1"},
		"postgres: \"CVE-3\" needs":             {"source: https://example.com/3", "source: a mail"},
		"want an operator and a version":        {`">= 8.0"`, `">= "`},
		`"8.x" is not a version`:                {`">= 8.0"`, `">= 8.x"`},
		"= is at the wrong place":               {`">= 8.0"`, `"= 8.0"`},
		">= is at the wrong place":              {`">= 8.0"`, `"< 8.0 >= 7.0"`},
		"< is at the wrong place":               {`">= 8.0"`, `"<= 8.0 < 7.0"`},
		"v8.0.0 is above v7.0.0":                {`">= 8.0"`, `">= 8.0 < 7.0"`},
	} {
		list := strings.Replace(testList, change[0], change[1], 1)
		if code, _, errs := images(t, day, list, "", ref("redis", "7.2.11")); list == testList || code != exitError || !strings.Contains(errs, says) {
			t.Errorf("%q: exit %d, %q", says, code, errs)
		}
	}
	for _, args := range [][]string{nil, {"other"}, {"images", "-list", "/nonexistent"}, {"modules", "-other"}} {
		var out, errs strings.Builder
		if code := run(&out, &errs, day, args); code != exitError || errs.String() == "" {
			t.Errorf("%q: exit %d, %q", args, code, &errs)
		}
	}
}

// The shipped list knows all pinned images, and names what was pinned in 2023.
func TestTheShippedListOfAdvisories(t *testing.T) {
	for _, tt := range []struct{ ref, says string }{
		{ref("redis", "7.0.15-alpine"), "CVE-2025-49844: "},
		{ref("valkey/valkey", "8.1.3-alpine"), "CVE-2025-49844: a Lua script uses freed memory, which may run code; fixed in 8.1.4"},
		{ref("postgres", "15.20-alpine"), "none of "},
		{ref("postgres", "15.2-alpine"), "CVE-2025-1094: "},
		{ref("traefik", "v3.3.5"), "CVE-2025-32431: "},
		{ref("grafana/grafana", "11.6.0"), "CVE-2025-4123: "},
		{ref("prom/prometheus", "v2.42.0"), "CVE-2026-42154: "},
		{ref("prom/alertmanager", "v0.25.0"), "CVE-2023-40577: an alert that is posted stores a script in the page; fixed in 0.25.1"},
		{ref("prom/node-exporter", "v1.5.0"), "none of "},
	} {
		var out strings.Builder
		if _, err := checkImages(&out, &out, day, "../../deploy/advisories.yml", "", []string{tt.ref}); err != nil || !strings.Contains(out.String(), tt.ref+": "+tt.says) {
			t.Errorf("%v, want %q:\n%s", err, tt.says, &out)
		}
	}
	var out strings.Builder
	if _, err := checkImages(&out, &out, day, "../../deploy/advisories.yml", "../../deploy/images.yml", nil); err != nil {
		t.Error(err)
	}
}
