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
)

// Bounds of what is kept and told.
const (
	diagnosticsTimeout = 10 * time.Second // each piece
	logTail            = "10000"          // lines
	notifyAttempts     = 4
	notifyTimeout      = 5 * time.Second // one try
	notifyBackoff      = 500 * time.Millisecond
)

// HostRecords keeps what people will ask about, and tells them.
type HostRecords struct {
	Compose *Compose
	// Webhook gets each notice by POST; empty: nobody is told. Secret signs it.
	Webhook, Secret string
	// Grafana, if set, gets an annotation of each notice; GrafanaToken is sent as
	// Bearer.
	Grafana, GrafanaToken string
	Client                *http.Client
	Clock                 Clock
}

// NewHostRecords reads what notices need. Paths are relative to dir.
func NewHostRecords(c *Compose, n NotificationSettings, dir string) (*HostRecords, error) {
	b := &HostRecords{Compose: c, Webhook: n.Webhook, Grafana: n.Grafana, Clock: HostClock{}}
	for _, secret := range []struct {
		path string
		into *string
	}{{n.SecretFile, &b.Secret}, {n.GrafanaTokenFile, &b.GrafanaToken}} {
		if secret.path == "" {
			continue
		}
		path := secret.path
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("notices: %w", err)
		}
		*secret.into = strings.TrimSpace(string(text))
	}
	return b, nil
}

// SaveDiagnostics writes what each replica of a color can still tell. What one piece can't
// give does not keep the others from being kept.
func (b *HostRecords) SaveDiagnostics(ctx context.Context, c Color, folder string) error {
	s, err := b.Compose.Inspect(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return fmt.Errorf("keep what %s can tell: %w", c, err)
	}
	var errs []error
	for _, r := range s.Replicas[c] {
		errs = append(errs, b.saveReplica(ctx, r, folder))
	}
	return errors.Join(errs...)
}

func (b *HostRecords) saveReplica(ctx context.Context, r Replica, folder string) error {
	var errs []error
	write := func(name string, text []byte, err error) {
		if len(text) > 0 {
			err = errors.Join(err, os.WriteFile(filepath.Join(folder, r.Name+name), text, 0o640))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s%s: %w", r.Name, name, err))
		}
	}
	ctx = context.WithoutCancel(ctx) // each piece has its bound
	out, err := b.Compose.docker(ctx, diagnosticsTimeout, "inspect", r.Name)
	write(".state.json", out, err)
	out, err = b.Compose.logs(ctx, r.Name)
	write(".log", out, err)
	if !r.Reachable {
		return errors.Join(errs...)
	}
	_, out, err = fetch(ctx, containerClient, "http://"+r.Address+"/metrics")
	write(".metrics", out, err)
	_, out, err = fetch(ctx, containerClient, "http://"+r.Address+"/readyz")
	write(".readyz.json", out, err)
	out, err = b.Compose.docker(ctx, diagnosticsTimeout, "exec", r.Name, "/server", "profile", "heap")
	write(".heap.pprof", out, err)
	return errors.Join(errs...)
}

// logs are a container's last lines.
func (c *Compose) logs(ctx context.Context, name string) ([]byte, error) {
	cmd := command{mergeStderr: true}
	if c.Lock != nil {
		cmd.inheritedFile = c.Lock.file
	}
	return cmd.run(ctx, diagnosticsTimeout, c.Dir, nil, "docker", "logs", "--timestamps", "--tail", logTail, name)
}

// Notify posts a notice, and again when it does not arrive. A receiver knows its
// sender by X-Switchyard-Signature: sha256= and the HMAC of the timestamp
// header, a dot and the body.
func (b *HostRecords) Notify(ctx context.Context, n Notification) error {
	body, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("tell: %w", err)
	}
	err = b.annotate(ctx, n)
	if b.Webhook == "" {
		return err
	}
	header := http.Header{"Content-Type": {"application/json"}}
	if b.Secret != "" {
		at := strconv.FormatInt(n.At.Unix(), 10)
		header.Set("X-Switchyard-Timestamp", at)
		header.Set("X-Switchyard-Signature", "sha256="+Sign(b.Secret, at, body))
	}
	header.Set("X-Switchyard-Notice", n.Deploy+"-"+n.Kind) // the same at each try
	return errors.Join(err, b.post(ctx, b.Webhook, header, body))
}

// Sign is the signature of a notice.
func Sign(secret, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(timestamp + "."))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// annotate marks a notice on the dashboards.
func (b *HostRecords) annotate(ctx context.Context, n Notification) error {
	if b.Grafana == "" {
		return nil
	}
	body, err := json.Marshal(map[string]any{
		"time": n.At.UnixMilli(), "text": n.Text, "tags": []string{"switchyard", "deploy", n.Kind, string(n.Live)},
	})
	if err != nil {
		return fmt.Errorf("mark in Grafana: %w", err)
	}
	header := http.Header{"Content-Type": {"application/json"}}
	if b.GrafanaToken != "" {
		header.Set("Authorization", "Bearer "+b.GrafanaToken)
	}
	return b.post(ctx, strings.TrimSuffix(b.Grafana, "/")+"/api/annotations", header, body)
}

// post posts until a 2xx comes, a few times.
func (b *HostRecords) post(ctx context.Context, url string, header http.Header, body []byte) error {
	var err error
	for try := range notifyAttempts {
		if try > 0 {
			if e := b.Clock.Sleep(ctx, notifyBackoff<<try); e != nil {
				return errors.Join(err, e)
			}
		}
		if err = b.postOnce(ctx, url, header, body); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%d tries: %w", notifyAttempts, err)
}

func (b *HostRecords) postOnce(ctx context.Context, url string, header http.Header, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = header.Clone()
	client := b.Client
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
