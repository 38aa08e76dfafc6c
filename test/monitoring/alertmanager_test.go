package monitoring

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"switchyard/internal/testkit"
)

const (
	alertmanagerDir     = root + "/monitoring/alertmanager"
	alertmanagerPackage = "prometheus-alertmanager"
)

// A webhookReceiver receives the notifications of Alertmanager, and records which
// alert came for which receiver.
type webhookReceiver struct {
	mu       sync.Mutex
	notified map[string]bool // receiver and alert, with a space between
}

func (h *webhookReceiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var message struct {
		Receiver string
		Alerts   []struct{ Labels map[string]string }
	}
	if err := json.NewDecoder(r.Body).Decode(&message); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range message.Alerts {
		h.notified[message.Receiver+" "+a.Labels["alertname"]] = true
	}
}

func (h *webhookReceiver) wasNotified(what string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.notified[what]
}

// startAlertmanager starts Alertmanager as the stack does, with secrets of the test's
// own and short waits.
func startAlertmanager(t *testing.T, secrets map[string]string) (url string, process *testkit.Process) {
	t.Helper()
	program, err := testkit.FindProgram("prometheus-alertmanager", alertmanagerPackage)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := testkit.TempDir("alertmanager", nil)
	if err != nil {
		t.Fatal(err)
	}
	config := strings.NewReplacer("group_wait: 30s", "group_wait: 1s", "group_wait: 10s", "group_wait: 1s", "group_wait: 5m", "group_wait: 1s").
		Replace(read(t, alertmanagerDir+"/alertmanager.yml"))
	files := map[string]string{"config.yml": config}
	for name, text := range secrets {
		files[name] = text
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script, err := filepath.Abs(alertmanagerDir + "/start")
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", testkit.FreePort())
	p, err := testkit.Start(testkit.Program{
		Path: "/bin/sh", Dir: dir,
		Args: []string{script, "--web.listen-address=" + addr, "--cluster.listen-address=", "--storage.path=" + dir + "/data"},
		Env:  []string{"PROGRAM=" + program, "SECRETS=" + dir, "CONFIG=" + dir + "/config.yml", "FILLED=" + dir + "/filled.yml"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + addr, p
}

func post(ctx context.Context, url, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Close = true
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, res.Status)
	}
	return nil
}

// Alertmanager notifies by severity, at the URLs of the secrets, and not of alerts that
// only follow from a greater one.
func TestAlertsAreRoutedBySeverity(t *testing.T) {
	t.Parallel()
	team, deadman := &webhookReceiver{notified: map[string]bool{}}, &webhookReceiver{notified: map[string]bool{}}
	hooks, dead := httptest.NewServer(team), httptest.NewServer(deadman)
	defer hooks.Close()
	defer dead.Close()
	url, p := startAlertmanager(t, map[string]string{
		"alert_webhook_url": hooks.URL + "/hook?key=a&b=%7C\n", "alert_deadman_url": dead.URL,
	})
	var alerts []string
	for _, a := range []string{
		`"alertname":"Watchdog","severity":"info"`,
		`"alertname":"ServiceDown","severity":"critical","job":"redis","instance":"a"`,
		`"alertname":"StandbyBehind","severity":"warning"`,
		`"alertname":"PostgresDown","severity":"critical"`,
		`"alertname":"BackupTooOld","severity":"warning"`,
		`"alertname":"ClientErrors","severity":"info"`,
	} {
		alerts = append(alerts, `{"labels":{`+a+`}}`)
	}
	body := "[" + strings.Join(alerts, ",") + "]"
	testkit.EventuallyNil(t, "Alertmanager to take alerts", func() error {
		if err := post(t.Context(), url+"/api/v2/alerts", body); err != nil {
			return fmt.Errorf("%w; it printed\n%s", err, p.Output())
		}
		return nil
	})
	for _, what := range []string{"page ServiceDown", "page PostgresDown", "team BackupTooOld", "team ClientErrors"} {
		testkit.Eventually(t, what, func() bool { return team.wasNotified(what) })
	}
	testkit.Eventually(t, "the Watchdog", func() bool { return deadman.wasNotified("deadman Watchdog") })
	if team.wasNotified("team StandbyBehind") || team.wasNotified("page StandbyBehind") {
		t.Error("StandbyBehind was notified though the primary is down")
	}
	if team.wasNotified("team Watchdog") || len(deadman.notified) != 1 {
		t.Errorf("the Watchdog came to the wrong receiver: %v, %v", team.notified, deadman.notified)
	}
}

// Without URLs Alertmanager starts, and says that it notifies nobody. With a malformed
// URL it does not start.
func TestAlertmanagerWithoutOrWithBadURLs(t *testing.T) {
	t.Parallel()
	url, p := startAlertmanager(t, map[string]string{"alert_webhook_url": ""})
	testkit.EventuallyNil(t, "Alertmanager to take alerts", func() error { return post(t.Context(), url+"/api/v2/alerts", "[]") })
	for _, want := range []string{"no alert is sent to anyone", "no one notices when the monitoring itself fails"} {
		if !strings.Contains(p.Output(), want) {
			t.Errorf("it does not say that %s:\n%s", want, p.Output())
		}
	}
	for _, bad := range []string{"hooks.example.com/x", "https://hooks.example.com/'}", "https://hooks.example.com/a b"} {
		_, p := startAlertmanager(t, map[string]string{"alert_webhook_url": bad})
		if err := p.Wait(t.Context()); err == nil || !strings.Contains(p.Output(), "alert_webhook_url") || strings.Contains(p.Output(), "example") {
			t.Errorf("%s: %v; it printed\n%s", bad, err, p.Output())
		}
	}
}

// Inhibitions and routes name alerts that exist.
func TestAlertmanagerNamesExistingAlerts(t *testing.T) {
	t.Parallel()
	defined := map[string]bool{}
	for _, r := range rules(t) {
		defined[r.Alert] = true
	}
	text := read(t, alertmanagerDir+"/alertmanager.yml")
	for rest := text; ; {
		_, after, found := strings.Cut(rest, "alertname=")
		if !found {
			break
		}
		quoted, tail, _ := strings.Cut(strings.TrimLeft(after, `~"`), `"`)
		for name := range strings.SplitSeq(quoted, "|") {
			if !defined[name] {
				t.Errorf("alertmanager.yml names %q, and there is no such alert", name)
			}
		}
		rest = tail
	}
}
