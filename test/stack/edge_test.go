//go:build stack

package stack

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// connect connects a user through TLS, as a browser does.
func (s *stack) connect(t *testing.T, user string, header http.Header) *client.Client {
	t.Helper()
	c, err := client.New(s.options(user, header))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *stack) options(user string, header http.Header) client.Options {
	token := s.token(user)
	return client.Options{
		URLs: []string{"wss://" + domain + "/ws"}, Header: header,
		HTTPClient: &http.Client{Transport: &http.Transport{DialContext: s.dial, TLSClientConfig: s.tlsConfig(), DisableKeepAlives: true}},
		Token:      func(context.Context) (string, error) { return token, nil },
	}
}

func TestTheWholeStackStartsWithinAMinute(t *testing.T) {
	t.Logf("healthy %.1f s after docker compose up, the first message through all of it after %.1f s", sharedStack.healthyAfter.Seconds(), sharedStack.firstMessageAfter.Seconds())
	if sharedStack.firstMessageAfter > time.Minute {
		t.Errorf("the first message came after %v, a minute is allowed", sharedStack.firstMessageAfter)
	}
}

func TestPageSecurityHeaders(t *testing.T) {
	res, body := sharedStack.get(t, "https://"+domain+"/")
	if res.StatusCode != http.StatusOK || !strings.Contains(body, "<script") {
		t.Fatalf("%s\n%s", res.Status, body)
	}
	for name, want := range map[string]string{
		"Strict-Transport-Security": "max-age=31536000",
		"X-Content-Type-Options":    "nosniff",
		"X-Frame-Options":           "DENY",
		"Referrer-Policy":           "no-referrer",
		"Permissions-Policy":        "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
	} {
		if got := res.Header.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, name := range []string{"Server", "X-Powered-By", "X-Xss-Protection"} {
		if got := res.Header.Values(name); len(got) > 0 {
			t.Errorf("%s: %q", name, got)
		}
	}
	if !strings.Contains(res.Header.Get("Content-Security-Policy"), "default-src 'none'") || res.TLS.Version < 0x0303 {
		t.Errorf("%v, TLS %x", res.Header, res.TLS.Version)
	}
}

func TestHTTPRedirectsToHTTPS(t *testing.T) {
	res, _ := sharedStack.get(t, "http://"+domain+"/some?thing=1")
	if to := res.Header.Get("Location"); res.StatusCode != http.StatusPermanentRedirect && res.StatusCode != http.StatusMovedPermanently || to != "https://"+domain+"/some?thing=1" {
		t.Errorf("%s, Location %q", res.Status, to)
	}
}

// No internal endpoint can be reached from outside, however its path is spelled.
func TestInternalEndpointsAreNotExposed(t *testing.T) {
	for _, path := range []string{
		"/metrics", "/metrics/", "/Metrics", "//metrics", "/./metrics", "/x/../metrics", "/%6detrics", "/metrics%2f", "/metrics?x=1", "/metrics;x",
		"/debug/pprof/", "/debug/rooms", "/drain", "/log-level", "/api/http/routers", "/dashboard/", "/ping",
	} {
		res, body := sharedStack.get(t, "https://"+domain+path)
		if res.StatusCode < 400 && res.StatusCode != http.StatusMovedPermanently || strings.Contains(body, "websocket_") || strings.Contains(body, "entryPoints") {
			t.Errorf("%s: %s\n%.200s", path, res.Status, body)
		}
	}
	// Names that are not ours, and the internal name of a color, are not served either.
	for _, host := range []string{"blue.internal", "elsewhere.test"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+domain+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		res, err := sharedStack.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusNotFound && res.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("%s: %s", host, res.Status)
		}
	}
}

// As shipped, one address may make 50 requests a second, and 100 at once.
func TestOneAddressIsLimited(t *testing.T) {
	c := sharedStack.client()
	c.Transport.(*http.Transport).DisableKeepAlives = false
	c.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
	defer c.CloseIdleConnections()
	var mu sync.Mutex
	codes := map[int]int{}
	began := time.Now()
	// As many requests as it takes: a busy machine may be too slow for the limit.
	for codes[http.StatusTooManyRequests] < 50 && time.Since(began) < time.Minute {
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() {
				for range 5 {
					code, retry, err := fetch(t, c, "https://"+domain+"/healthz")
					if err != nil || code == http.StatusTooManyRequests && retry == "" {
						t.Errorf("%d, Retry-After %q, %v", code, retry, err)
						return
					}
					mu.Lock()
					codes[code]++
					mu.Unlock()
				}
			})
		}
		all.Wait()
	}
	took := time.Since(began)
	total := codes[200] + codes[429]
	t.Logf("%d requests of one address in %.2f s: %v", total, took.Seconds(), codes)
	if most := 100 + int(50*took.Seconds()) + 2; codes[200] > most || codes[200] < 90 || codes[429] < 50 || len(codes) != 2 {
		t.Errorf("%v; at most %d may succeed", codes, most)
	}
	// Sockets have a limit of their own: this address can still connect.
	sharedStack.connect(t, "ada", nil)
}

func fetch(t *testing.T, c *http.Client, url string) (code int, retryAfter string, err error) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body) // so that the connection is reused
	return res.StatusCode, res.Header.Get("Retry-After"), nil
}

// The access log has none of the secrets that a client sends.
func TestTheAccessLogHoldsNoSecrets(t *testing.T) {
	marker := fmt.Sprintf("s3cret%d", time.Now().UnixNano())
	sharedStack.get(t, "https://"+domain+"/ws?access_token="+marker+"&session="+marker, "Authorization: Bearer "+marker, "Cookie: a="+marker, "Switchyard-Session: "+marker)
	testkit.EventuallyNil(t, "a line about the request", func() error {
		out := outputOf(sharedStack.compose("logs", "--no-color", "--no-log-prefix", "traefik"))
		if strings.Contains(out, marker) {
			t.Fatal("the access log has a secret of the client")
		}
		if !strings.Contains(out, `"RequestPath":"/ws"`) || !strings.Contains(out, `"RouterName":"ws@file"`) {
			return fmt.Errorf("%d bytes of log, none about it", len(out))
		}
		return nil
	})
}

func outputOf(out string, _ error) string { return out }

// startRun starts a run through Traefik, whose clients have so many addresses.
func (s *stack) startRun(t *testing.T, plan load.Plan, addresses int) *load.Run {
	t.Helper()
	plan.URLs = []string{"wss://" + domain + "/ws"}
	plan.Dial, plan.TLS = s.dial, s.tlsConfig()
	plan.Header = func(n int) http.Header { return http.Header{"X-Forwarded-For": {testAddress(n % addresses)}} }
	for n := range plan.Clients {
		plan.Tokens = append(plan.Tokens, s.token(fmt.Sprintf("user-%d", n)))
	}
	run, err := load.Start(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// testAddress returns the nth address of a network for documentation.
func testAddress(n int) string { return fmt.Sprintf("203.0.113.%d", n+1) }

func stopAndAssertClean(t *testing.T, run *load.Run) {
	t.Helper()
	run.Stop()
	report := run.Report()
	t.Logf("%s", report)
	if report.Verdict != load.Clean {
		t.Errorf("the verdict is %s", report.Verdict)
	}
}
