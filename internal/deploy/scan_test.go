package deploy

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

// runScan runs the check scan of an image.
func runScan(ctx context.Context, t *testing.T, p *Preflight, image stack.Image) CheckResult {
	t.Helper()
	facts, err := p.collect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := p.checks(image)
	scan := all[slices.IndexFunc(all, func(c checks.Check) bool { return c.Name == "scan" })]
	if limit := p.limit(scan); limit != p.Settings.ScanLimit {
		t.Errorf("the scan may take %v, want scan_limit", limit)
	}
	return p.runCheck(ctx, scan, facts)
}

// recordedImages are the images of the recorded stack other than the colors'.
var recordedImages = []string{
	"prom/alertmanager:v0.25.0", "prom/blackbox-exporter:v0.23.0", "grafana/grafana:11.6.0", "prom/node-exporter:v1.5.0",
	"postgres:15.20-alpine", "prometheuscommunity/postgres-exporter:v0.11.1", "prom/prometheus:v2.42.0", "redis:7.0.15-alpine",
	"oliver006/redis_exporter:v1.45.0", "traefik:v3.7.13",
}

// The scan gets the image to be deployed and each image of the stack once.
func TestTheScanGetsAllImages(t *testing.T) {
	for name, tt := range map[string]struct {
		image         stack.Image
		rejects, text string
		status        string
		want          []string
	}{
		"all fine":          {stack.Image{Ref: "v2"}, "none", "accepts all 12 images", statusOK, append([]string{"v2", "switchyard:e2e"}, recordedImages...)},
		"without an image":  {stack.Image{}, "none", "accepts all 11 images", statusOK, append([]string{"switchyard:e2e"}, recordedImages...)},
		"the same again":    {stack.Image{Ref: "switchyard:e2e"}, "switchyard:e2e", "the scan rejects switchyard:e2e: ", statusFail, append([]string{"switchyard:e2e"}, recordedImages...)},
		"two are rejected":  {stack.Image{Ref: "v2"}, "traefik:v3.7.13|redis:7.0.15-alpine", "rejects redis:7.0.15-alpine: ", statusFail, append([]string{"v2", "switchyard:e2e"}, recordedImages...)},
		"both are named":    {stack.Image{Ref: "v2"}, "traefik:v3.7.13|redis:7.0.15-alpine", "rejects traefik:v3.7.13: ", statusFail, append([]string{"v2", "switchyard:e2e"}, recordedImages...)},
		"the new one":       {stack.Image{Ref: "v2"}, "v2", "rejects v2: ", statusFail, append([]string{"v2", "switchyard:e2e"}, recordedImages...)},
		"the old one":       {stack.Image{Ref: "v2"}, "switchyard:e2e", "rejects switchyard:e2e, which the deploy replaces", statusWarn, append([]string{"v2", "switchyard:e2e"}, recordedImages...)},
		"the one that runs": {stack.Image{}, "switchyard:e2e", "rejects switchyard:e2e: ", statusFail, append([]string{"switchyard:e2e"}, recordedImages...)},
	} {
		t.Run(name, func(t *testing.T) {
			p := recordedPreflight(t, nil, nil)
			log := filepath.Join(t.TempDir(), "images")
			p.ScanCommand = script(t, `echo "$*" >>`+log+"\ncase $1 in "+tt.rejects+") echo CVE-1 >&2; exit 1 ;; esac")
			got := runScan(t.Context(), t, p, tt.image)
			if got.Status != tt.status || !strings.Contains(got.Text, tt.text) {
				t.Errorf("%+v, want %s and %q", got, tt.status, tt.text)
			}
			scanned := strings.Fields(string(testkit.ReadFile(t, log)))
			slices.Sort(scanned)
			slices.Sort(tt.want)
			if !slices.Equal(scanned, tt.want) {
				t.Errorf("scanned %v, want %v", scanned, tt.want)
			}
		})
	}
}

// A compose file that can't be read does not make the scan pass.
func TestTheScanFailsWithoutTheListOfImages(t *testing.T) {
	p := recordedPreflight(t, testkit.DockerOutputs{"config --format json": "Error: services.x: no such key\n"}, nil)
	p.ScanCommand = "true"
	if got := runScan(t.Context(), t, p, stack.Image{Ref: "v2"}); got.Status != statusFail || !strings.Contains(got.Text, "no such key") {
		t.Errorf("%+v", got)
	}
}

// scan_limit bounds the scans of all images together, and what was not scanned is named.
func TestScanLimitBoundsAllScansTogether(t *testing.T) {
	p := recordedPreflight(t, nil, nil)
	p.Settings.ScanLimit = 300 * time.Millisecond
	p.ScanCommand = "exec " + script(t, "case $1 in prom/alertmanager*) exec sleep 600 ;; v2) exit 1 ;; esac")
	got := runScan(t.Context(), t, p, stack.Image{Ref: "v2"})
	for _, want := range []string{"rejects v2: ", "not scanned: prom/alertmanager:v0.25.0, ", "traefik:v3.7.13", "no result within 300ms"} {
		if got.Status != statusFail || !strings.Contains(got.Text, want) {
			t.Errorf("%+v does not say %q", got, want)
		}
	}
}

// Ctrl-C ends a preflight at once, also while the image scan runs, which may take longer than
// any other check.
func TestAnInterruptEndsTheImageScan(t *testing.T) {
	p := recordedPreflight(t, nil, nil)
	begun := filepath.Join(t.TempDir(), "begun")
	p.ScanCommand = "touch " + begun + "; sleep 600; true"
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	ended := make(chan CheckResult, 1)
	go func() { ended <- runScan(ctx, t, p, stack.Image{Ref: "v2", ID: "sha256:new"}) }()
	testkit.Eventually(t, "the scan to begin", func() bool { _, err := os.Stat(begun); return err == nil })
	interrupt()
	if got := testkit.Receive(t, "the end of the scan", ended); got.Status != statusFail {
		t.Errorf("%+v", got)
	}
}

// script writes a shell script and returns its path.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "scan")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
