package deploy

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/stack"
)

// A recordedRequest is a POST that a fakeReceiver received.
type recordedRequest struct {
	path   string
	header http.Header
	body   []byte
}

// fakeReceiver starts a server that records POSTs, and answers the first failFirst
// of them with 502.
func fakeReceiver(t *testing.T, failFirst int) (url string, got func() []recordedRequest) {
	var mu sync.Mutex
	var all []recordedRequest
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		all = append(all, recordedRequest{r.URL.Path, r.Header, body})
		if len(all) <= failFirst {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, func() []recordedRequest {
		mu.Lock()
		defer mu.Unlock()
		return all
	}
}

func TestANotificationIsSignedAndRetried(t *testing.T) {
	url, got := fakeReceiver(t, 2)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("between us\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	records, err := NewHostRecords(&stack.Stack{Dir: dir}, NotificationSettings{Webhook: url + "/hook", SecretFile: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	env := newModelEnv(t)
	records.Clock = env // its sleeps take no time
	n := Notification{At: env.now, Kind: "rollback", Deploy: "d1", Image: "v2", Live: stack.Blue, Text: "v2 was rolled back: it was slow"}
	if err := records.Notify(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	tries := got()
	if len(tries) != 3 {
		t.Fatalf("%d attempts, want 3", len(tries))
	}
	last := tries[2]
	stamp := last.header.Get("X-Switchyard-Timestamp")
	if want := "sha256=" + Sign("between us", stamp, last.body); last.header.Get("X-Switchyard-Signature") != want || stamp != "1795690800" {
		t.Errorf("the signature is %q at %s", last.header.Get("X-Switchyard-Signature"), stamp)
	}
	var decoded Notification
	if err := json.Unmarshal(last.body, &decoded); err != nil || decoded != n {
		t.Error(decoded, err)
	}
	if last.header.Get("X-Switchyard-Notice") != tries[0].header.Get("X-Switchyard-Notice") {
		t.Error("a retry has another id than the first attempt")
	}
}

func TestAFailedNotificationDoesNotStopADeploy(t *testing.T) {
	url, got := fakeReceiver(t, 1000)
	env := newModelEnv(t)
	d := env.deployer(stateFolder(t))
	d.Deps.Records = &HostRecords{Webhook: url, Clock: env}
	var warned []string
	d.Report = func(e Event) {
		if e.Kind == "warn" {
			warned = append(warned, e.Text)
		}
	}
	if _, err := d.Deploy(t.Context(), "v2"); err != nil {
		t.Fatal(err)
	}
	if len(got()) != 3*notifyAttempts || len(warned) != 3 || !strings.Contains(warned[0], "could not be sent: 4 attempts") {
		t.Error(len(got()), warned)
	}
}

func TestGrafanaGetsAnAnnotation(t *testing.T) {
	url, got := fakeReceiver(t, 0)
	records := &HostRecords{Grafana: url + "/", GrafanaToken: "token", Clock: HostClock{}}
	at := time.UnixMilli(1795687200123)
	if err := records.Notify(t.Context(), Notification{At: at, Kind: "switch", Live: stack.Green, Text: "new connections go to green"}); err != nil {
		t.Fatal(err)
	}
	var annotation struct {
		Time int64
		Text string
		Tags []string
	}
	if err := json.Unmarshal(got()[0].body, &annotation); err != nil || got()[0].path != "/api/annotations" {
		t.Fatal(err, got()[0].path)
	}
	if annotation.Time != at.UnixMilli() || strings.Join(annotation.Tags, " ") != "switchyard deploy switch green" || got()[0].header.Get("Authorization") != "Bearer token" {
		t.Errorf("%+v", annotation)
	}
}
