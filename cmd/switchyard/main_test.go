package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// switchyard runs the command, and returns its exit code and output.
func switchyard(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(ctx, args, &out, &err)
	return code, out.String(), err.String()
}

func TestVerifyChecksAService(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	file := filepath.Join(t.TempDir(), "history.jsonl")
	code, out, errs := switchyard(t.Context(), "verify", "--url", s.SocketURL(),
		"--clients", "6", "--rate", "50", "--duration", "1s", "--cut", "100ms", "--history", file)
	if code != 0 || !strings.HasPrefix(out, "Clean:") || errs != "" {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	if !strings.Contains(out, "in 6 rooms") {
		t.Errorf("want as many rooms as clients by default:\n%s", out)
	}

	// The written history gets the same verdict later.
	code, again, errs := switchyard(t.Context(), "verify", "--check", file, "--json")
	var report struct {
		Verdict string
		Acked   int
		Faults  map[string]int
	}
	if err := json.Unmarshal([]byte(again), &report); err != nil || code != 0 || errs != "" {
		t.Fatalf("exit %d, %v\n%s%s", code, err, again, errs)
	}
	if report.Verdict != "clean" || report.Acked < 7 || len(report.Faults) != len(load.AllFaults) {
		t.Errorf("%+v", report)
	}

	// A history without one of the deliveries is found wrong.
	history := testkit.ReadFile(t, file)
	lines := strings.SplitAfter(string(history), "\n")
	for i, line := range lines {
		if strings.Contains(line, `"event":"deliver"`) {
			lines[i] = ""
			break
		}
	}
	if err := os.WriteFile(file, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs = switchyard(t.Context(), "verify", "--check", file)
	if code != 1 || !strings.HasPrefix(out, "Wrong: 1 lost.") || !strings.Contains(out, "never got it") || errs != "" {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

func TestLoadMeasuresAService(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	code, out, errs := switchyard(t.Context(), "load", "--url", s.SocketURL(), "--clients", "4", "--rooms", "1", "--duration", "3s", "--json")
	var got struct {
		Clients    int
		AcksPerSec float64                      `json:"acks_per_second"`
		Latency    struct{ Count, P99 float64 } `json:"publish_to_delivery"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || errs != "" {
		t.Fatalf("exit %d, %v\n%s%s", code, err, out, errs)
	}
	if got.Clients != 4 || got.AcksPerSec <= 0 || got.Latency.Count == 0 {
		t.Errorf("%+v of %s", got, out)
	}
	code, out, _ = switchyard(t.Context(), "load", "--url", s.SocketURL(), "--clients", "2", "--rooms", "1", "--rate", "100", "--duration", "3s")
	if code != 0 || !strings.Contains(out, "acked") || !strings.Contains(out, "p99.9") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

// An interrupted verify still prints its report.
func TestAnInterruptedVerifyStillReports(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		defer cancel()
		published := regexp.MustCompile(`websocket_messages_received_total\{type="publish"\} \d{2}`)
		for tick := time.NewTicker(10 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			if published.MatchString(metrics(ctx, s)) {
				return
			}
		}
	}()
	code, out, errs := switchyard(ctx, "verify", "--url", s.SocketURL(), "--clients", "4", "--rate", "100", "--duration", "1h")
	if code != 0 || !strings.HasPrefix(out, "Clean:") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

// The report is printed although the history could not be written, and the exit
// code is 1.
func TestAFullDiskFailsTheHistory(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	code, out, errs := switchyard(t.Context(), "verify", "--url", s.SocketURL(),
		"--clients", "2", "--rate", "50", "--duration", "300ms", "--history", "/dev/full")
	if code != 1 || !strings.HasPrefix(out, "Clean:") || !strings.Contains(errs, "--history: write a history: write /dev/full: no space left") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

func metrics(ctx context.Context, s *testkit.Server) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+"/metrics", nil)
	if err != nil {
		return ""
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return string(b)
}

// Each mistake is reported in one line with the flag and the bound, and with exit
// code 2.
func TestWrongUsage(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"--clients must be 1 or more, not 0":            {"verify", "--clients", "0"},
		"--clients must be 1 to 15000, not 20000":       {"load", "--clients", "20000"},
		"--rooms must be 1 to 100, not 101":             {"verify", "--rooms", "101"},
		"--rate must be 0 to 1000000 a second, not -1":  {"verify", "--rate", "-1"},
		"--rate must be 0 to 1000000 a second, not NaN": {"verify", "--rate", "NaN"},
		"--duration must be 1ms to 24h, not 0s":         {"verify", "--duration", "0"},
		"--duration must be 0s to 24h0m0s, not 25h0m0s": {"load", "--duration", "25h"},
		"--size must be 24 to 1048576, not 1":           {"verify", "--size", "1"},
		"--cut must be 0s to 1h0m0s, not -1s":           {"verify", "--cut", "-1s"},
		"--settle must be":                              {"verify", "--settle", "2h"},
		"--ramp-up must be":                             {"verify", "--ramp-up", "2h"},
		"--prefix must be":                              {"verify", "--prefix", "a b"},
		"--max-events must be 2000 to 100000000, not 5": {"verify", "--max-events", "5"},
		`"localhost" is not a ws:// or wss:// URL`:      {"verify", "--url", "localhost"},
		"can't connect to ws://127.0.0.1:1/ws":          {"verify", "--url", "ws://127.0.0.1:1/ws"},
		"--history: open /no/such/folder/h":             {"verify", "--history", "/no/such/folder/h"},
		"--token-file: open /no/such/file":              {"verify", "--token-file", "/no/such/file"},
		"--token-file: " + empty + " has no token":      {"verify", "--token-file", empty},
		"--check: open /no/such/file":                   {"verify", "--check", "/no/such/file"},
		"it is empty":                                   {"verify", "--check", empty},
		"no other flag has a meaning":                   {"verify", "--check", empty, "--rate", "5"},
		`unknown command "deploi"`:                      {"deploi"},
		`unknown command "now" for "switchyard verify"`: {"verify", "now"},
		"accepts 1 arg(s), received 0":                  {"deploy"},
		"docker-compose.prod.yml is not in /nowhere":    {"deploy", "v2", "--dir", "/nowhere"},
		"a color is blue or green, not \"red\"":         {"switch", "red"},
		"replicas are a number, not \"many\"":           {"scale", "many"},
		"--every must be 500ms or more, not 1ms":        {"status", "--every", "1ms"},
		"--last must be 1 or more, not 0":               {"history", "--last", "0"},
		"unknown flag: --speed":                         {"load", "--speed", "1"},
		`invalid argument "many" for "--clients" flag`:  {"verify", "--clients", "many"},
	} {
		code, out, errs := switchyard(t.Context(), args...)
		if code != 2 || !strings.Contains(errs, want) || !strings.HasPrefix(errs, "switchyard") {
			t.Errorf("%q: exit %d, want %q in:\n%s%s", args, code, want, out, errs)
		}
		if strings.Count(errs, "\n") != 1 || out != "" {
			t.Errorf("%q: more than one line:\n%s%s", args, out, errs)
		}
	}
}

func TestTheVersionIsPrinted(t *testing.T) {
	if code, out, _ := switchyard(t.Context(), "--version"); code != 0 || out != "switchyard version dev\n" {
		t.Errorf("exit %d\n%s", code, out)
	}
}

func TestTheProgressLine(t *testing.T) {
	got := progressLine(load.Progress{Elapsed: 3 * time.Second, Published: 10, Acked: 9, Delivered: 90})
	if got != "publishing 3 s: 10 published, 9 acked, 90 delivered" {
		t.Error(got)
	}
	got = progressLine(load.Progress{Elapsed: time.Minute, Failed: 1, Reconnects: 2, Moves: 3, Ending: true})
	if got != "settling 60 s: 0 published, 0 acked, 0 delivered, 1 failed, 2 reconnects, 3 moves" {
		t.Error(got)
	}
	if isTerminal(new(bytes.Buffer)) {
		t.Error("a buffer is no terminal")
	}
	device, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if !isTerminal(device) { // a character device, as a terminal is
		t.Error("a device is no terminal")
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if isTerminal(file) {
		t.Error("a file is no terminal")
	}
}
