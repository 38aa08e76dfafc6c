package deploy

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// Bounds of diagnostics and notifications.
const (
	diagnosticsTimeout = 10 * time.Second // for each file
	logTail            = "10000"          // lines
	notifyAttempts     = 4
	notifyTimeout      = 5 * time.Second // for each attempt
	notifyBackoff      = 500 * time.Millisecond
)

// HostRecords implements Records: it writes diagnostics to the host's disk, and
// posts notifications.
type HostRecords struct {
	Stack *stack.Stack
	// Webhook, if set, receives each notification as a POST. Secret, if set, signs
	// it.
	Webhook, Secret string
	// Grafana, if set, is the address that receives an annotation for each
	// notification, with GrafanaToken as bearer token.
	Grafana, GrafanaToken string
	// Client sends the requests; nil means http.DefaultClient.
	Client *http.Client
	Clock  Clock
}

// NewHostRecords returns the HostRecords of the settings, and reads their secrets.
// Paths are relative to the stack's folder.
func NewHostRecords(s *stack.Stack, n NotificationSettings) (*HostRecords, error) {
	h := &HostRecords{Stack: s, Webhook: n.Webhook, Grafana: n.Grafana, Clock: HostClock{}}
	for _, secret := range []struct {
		path string
		into *string
	}{{n.SecretFile, &h.Secret}, {n.GrafanaTokenFile, &h.GrafanaToken}} {
		if secret.path == "" {
			continue
		}
		path := secret.path
		if !filepath.IsAbs(path) {
			path = filepath.Join(s.Dir, path)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("notices: %w", err)
		}
		*secret.into = strings.TrimSpace(string(text))
	}
	return h, nil
}

// SaveDiagnostics writes the diagnostics of each replica of a color. If one of the
// files fails, it still writes the others.
func (h *HostRecords) SaveDiagnostics(ctx context.Context, c stack.Color, folder string) error {
	s, err := h.Stack.Replicas().Inspect(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return fmt.Errorf("save the diagnostics of %s: %w", c, err)
	}
	var errs []error
	for _, r := range s.Replicas[c] {
		errs = append(errs, h.saveReplica(ctx, r, folder))
	}
	return errors.Join(errs...)
}

// saveReplica writes a replica's files: state and log, and if it is reachable its
// metrics, readiness and heap profile.
func (h *HostRecords) saveReplica(ctx context.Context, r stack.Replica, folder string) error {
	var errs []error
	write := func(name string, text []byte, err error) {
		if len(text) > 0 {
			err = errors.Join(err, os.WriteFile(filepath.Join(folder, r.Name+name), text, 0o640))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s%s: %w", r.Name, name, err))
		}
	}
	ctx = context.WithoutCancel(ctx) // each file has its own timeout
	out, err := h.Stack.Docker(ctx, diagnosticsTimeout, "inspect", r.Name)
	write(".state.json", out, err)
	out, err = h.Stack.Tail(ctx, diagnosticsTimeout, r.Name, logTail)
	write(".log", out, err)
	if !r.Reachable {
		return errors.Join(errs...)
	}
	_, out, err = stack.Fetch(ctx, h.Stack.Client, "http://"+r.Address+"/metrics")
	write(".metrics", out, err)
	_, out, err = stack.Fetch(ctx, h.Stack.Client, "http://"+r.Address+"/readyz")
	write(".readyz.json", out, err)
	out, err = h.Stack.Docker(ctx, diagnosticsTimeout, "exec", r.Name, "/server", "profile", "heap")
	write(".heap.pprof", out, err)
	return errors.Join(errs...)
}

// Notify posts a notification, with retries. A receiver verifies the sender by
// X-Switchyard-Signature: sha256= and the HMAC of the timestamp header, a dot and
// the body.
func (h *HostRecords) Notify(ctx context.Context, n Notification) error {
	body, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode a notification: %w", err)
	}
	err = h.annotate(ctx, n)
	if h.Webhook == "" {
		return err
	}
	header := http.Header{"Content-Type": {"application/json"}}
	if h.Secret != "" {
		at := strconv.FormatInt(n.At.Unix(), 10)
		header.Set("X-Switchyard-Timestamp", at)
		header.Set("X-Switchyard-Signature", "sha256="+Sign(h.Secret, at, body))
	}
	header.Set("X-Switchyard-Notice", n.Deploy+"-"+n.Kind) // the same at each attempt
	return errors.Join(err, h.post(ctx, h.Webhook, header, body))
}

// Sign returns the hex signature of a notification.
func Sign(secret, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(timestamp + "."))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// annotate posts a notification as an annotation to Grafana.
func (h *HostRecords) annotate(ctx context.Context, n Notification) error {
	if h.Grafana == "" {
		return nil
	}
	body, err := json.Marshal(map[string]any{
		"time": n.At.UnixMilli(), "text": n.Text, "tags": []string{"switchyard", "deploy", n.Kind, string(n.Live)},
	})
	if err != nil {
		return fmt.Errorf("annotate in Grafana: %w", err)
	}
	header := http.Header{"Content-Type": {"application/json"}}
	if h.GrafanaToken != "" {
		header.Set("Authorization", "Bearer "+h.GrafanaToken)
	}
	return h.post(ctx, strings.TrimSuffix(h.Grafana, "/")+"/api/annotations", header, body)
}

// post posts until the answer is a 2xx, at most notifyAttempts times.
func (h *HostRecords) post(ctx context.Context, url string, header http.Header, body []byte) error {
	var err error
	for try := range notifyAttempts {
		if try > 0 {
			if e := h.Clock.Sleep(ctx, notifyBackoff<<try); e != nil {
				return errors.Join(err, e)
			}
		}
		if err = h.postOnce(ctx, url, header, body); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%d attempts: %w", notifyAttempts, err)
}

func (h *HostRecords) postOnce(ctx context.Context, url string, header http.Header, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = header.Clone()
	client := h.Client
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
	_ = res.Body.Close()
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("POST %s: %s", url, res.Status)
	}
	return nil
}
