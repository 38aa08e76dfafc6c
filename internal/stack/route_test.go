package stack

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"switchyard/internal/testkit"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares text with a file of testdata, or writes it there with -update.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := testkit.ReadFile(t, path)
	if !bytes.Equal(got, want) {
		t.Errorf("the text differs from %s:\n%s", name, got)
	}
}

// newTraefik returns a Traefik with blue live.
func newTraefik(t *testing.T) *Traefik { return &Traefik{Dir: testkit.TraefikDir(t)} }

// A switch writes a color's file as it is, a canary the live color's file with
// weights, and both are read as the same route again.
func TestARouteIsReadAsItWasWritten(t *testing.T) {
	f := newTraefik(t)
	for name, r := range map[string]Route{
		"blue.yml": {Live: Blue}, "green.yml": {Live: Green},
		"canary-blue-10.yml": {Live: Blue, SharePercent: 10}, "canary-green-50.yml": {Live: Green, SharePercent: 50},
	} {
		if err := f.SetRoute(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		text := testkit.ReadFile(t, f.ActivePath())
		golden(t, name, text)
		if got, err := f.Route(t.Context()); err != nil || got != r {
			t.Errorf("%s is read as %v, %v", name, got, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(f.Dir, "staging")); err != nil || len(left) != 0 {
		t.Error("the folder staging is not empty:", left, err)
	}
}

// A file that is truncated anywhere is never read as another route.
func TestATruncatedRouteFileIsRejected(t *testing.T) {
	for _, name := range []string{"blue.yml", "canary-blue-10.yml"} {
		text := testkit.ReadFile(t, filepath.Join("testdata", name))
		whole, err := parseRoute(text)
		if err != nil {
			t.Fatal(err)
		}
		for n := range text {
			if got, err := parseRoute(text[:n]); err == nil && got != whole {
				t.Fatalf("%d bytes of %s are read as %v", n, name, got)
			} else if err != nil && !errors.Is(err, errRoute) {
				t.Fatal(err)
			}
		}
	}
}

func TestInvalidRoutes(t *testing.T) {
	for says, text := range map[string]string{
		"it is empty":                     "",
		"name both colors":                "http: {routers: {a: {service: app-blue}, b: {service: app-green}}}",
		"no router names":                 "http: {routers: {a: {service: other}}}",
		"router a names no service":       "http: {routers: {a: {rule: x}}}",
		"app-canary needs both colors":    "http: {routers: {a: {service: app-canary}}}",
		"must be 1 to 99 and make 100":    "http: {routers: {a: {service: app-canary}}, services: {app-canary: {weighted: {services: [{name: app-blue, weight: 100}, {name: app-green, weight: 0}]}}}}",
		"needs both colors with weights":  "http: {routers: {a: {service: app-canary}}, services: {app-canary: {weighted: {services: [{name: app-blue, weight: 50}, {name: app-blue, weight: 50}]}}}}",
		"did not find expected":           "http: {routers: {a: {service: [",
		"cannot unmarshal":                "http: [routers]",
		"app-canary needs both colors wi": "http: {routers: {a: {service: app-canary}}, services: {app-canary: {weighted: {services: [{name: app-blue}, {name: app-green}]}}}}",
	} {
		if r, err := parseRoute([]byte(text)); !errors.Is(err, errRoute) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is read as %v, %v", text, r, err)
		}
	}
}

func FuzzParseRoute(f *testing.F) {
	for _, name := range []string{"blue.yml", "green.yml", "canary-blue-10.yml"} {
		text := testkit.ReadFile(f, filepath.Join("testdata", name))
		f.Add(text)
		f.Add(text[:len(text)/2])
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRoute(text)
		if err != nil {
			if !errors.Is(err, errRoute) {
				t.Fatal(err)
			}
			return
		}
		if _, err := ParseColor(string(r.Live)); err != nil || r.SharePercent < 0 || r.SharePercent > 99 {
			t.Fatalf("read as %+v", r)
		}
	})
}

// A color's file that routes to the other color does not become active.yml.
func TestAColorFileForTheOtherColorIsRefused(t *testing.T) {
	f := newTraefik(t)
	testkit.CopyFile(t, filepath.Join("testdata", "blue.yml"), filepath.Join(f.Dir, "green.yml"))
	if err := f.SetRoute(t.Context(), Route{Live: Green}); err == nil || !strings.Contains(err.Error(), "green.yml must route to live-green") {
		t.Error(err)
	}
	if r, err := f.Route(t.Context()); err != nil || r.Live != Blue {
		t.Error(r, err)
	}
}

// A color's file of another release, whose services are unknown, does not become
// active.yml.
func TestAColorFileWithUnknownServicesIsRefused(t *testing.T) {
	f := newTraefik(t)
	list := filepath.Join(f.Dir, "dynamic", "services.yml")
	text := testkit.ReadFile(t, list)
	for says, text := range map[string]string{
		"green.yml routes to live-green, which": strings.ReplaceAll(string(text), "    live-green:", "    live-other:"),
		"services.yml: ":                        "http: [",
	} {
		if err := os.WriteFile(list, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := f.SetRoute(t.Context(), Route{Live: Green}); err == nil || !strings.Contains(err.Error(), says) {
			t.Error(err)
		}
	}
	if r, err := f.Route(t.Context()); err != nil || r.Live != Blue {
		t.Error(r, err)
	}
}

func TestAFullDiskLeavesTheOldRoute(t *testing.T) {
	f := newTraefik(t)
	green := filepath.Join(f.Dir, "green.yml")
	text, err := os.ReadFile(green)
	if err == nil {
		err = os.WriteFile(green, append(text, "# "+strings.Repeat("x", fullDisk)+"\n"...), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := onAFullDisk(t, func() error { return f.SetRoute(t.Context(), Route{Live: Green}) }); !errors.Is(err, syscall.EFBIG) {
		t.Error(err)
	}
	if r, err := f.Route(t.Context()); err != nil || r.Live != Blue {
		t.Error(r, err)
	}
}

func TestSetServersListsReplicasOneToN(t *testing.T) {
	f := newTraefik(t)
	before := testkit.ReadFile(t, filepath.Join(f.Dir, "dynamic", "services.yml"))
	if err := f.SetServers(Blue, 3); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(filepath.Join(f.Dir, "dynamic", "services.yml")); err != nil || !bytes.Equal(before, after) {
		t.Error("the file changed although the list was right", err)
	}
	if err := f.SetServers(Green, 5); err != nil {
		t.Fatal(err)
	}
	after := testkit.ReadFile(t, filepath.Join(f.Dir, "dynamic", "services.yml"))
	golden(t, "services-green-5.yml", after)
	if err := f.SetServers(Green, 3); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(filepath.Join(f.Dir, "dynamic", "services.yml")); err != nil || !bytes.Equal(before, again) {
		t.Errorf("after 5 and 3 replicas the file differs from the first one (%v):\n%s", err, again)
	}
	if _, err := withServers([]byte("http: {services: {app-blue: {loadBalancer: {servers: [{url: 'http://x-app_blue-1:8000'}]}}}}"), Blue, 2); err == nil || !strings.Contains(err.Error(), "on consecutive lines") {
		t.Error(err)
	}
	if err := f.SetServers(Green, 1); err != nil {
		t.Fatal(err)
	}
	after = testkit.ReadFile(t, filepath.Join(f.Dir, "dynamic", "services.yml"))
	if strings.Contains(string(after), "app_green-2") || !strings.Contains(string(after), "app_green-1") {
		t.Error(string(after))
	}
}
