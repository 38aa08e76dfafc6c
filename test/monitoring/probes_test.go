package monitoring

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// A prober is a blackbox exporter that was started as in the stack.
type prober struct{ url string }

// probe returns a module's metrics and log of a target.
func (p *prober) probe(t *testing.T, module, target string) string {
	t.Helper()
	query := url.Values{"module": {module}, "target": {target}, "debug": {"true"}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+"/probe?"+query.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	var text []byte
	testkit.EventuallyNil(t, "the blackbox exporter to answer", func() error {
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		text, err = io.ReadAll(res.Body)
		return err
	})
	return string(text)
}

func startProber(t *testing.T, domain, authority string) *prober {
	t.Helper()
	program, err := testkit.FindProgram("prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(root + "/monitoring/blackbox")
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", testkit.FreePort())
	if _, err := testkit.Start(testkit.Program{
		Path: "/bin/sh", Args: []string{dir + "/start", "--web.listen-address=" + addr},
		Env: []string{
			"PROGRAM=" + program, "DOMAIN=" + domain, "CONFIG=" + dir + "/blackbox.yml",
			"FILLED=" + filepath.Join(t.TempDir(), "filled.yml"), "CERTIFICATE=" + authority,
		},
	}); err != nil {
		t.Fatal(err)
	}
	return &prober{"http://" + addr}
}

// startTLSProxy terminates TLS in front of a server, as Traefik does. It returns its
// address, and the file of the authority that signed its certificate.
func startTLSProxy(t *testing.T, s *testkit.Server) (addr, authority string) {
	t.Helper()
	to, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.Transport = &http.Transport{DisableKeepAlives: true}
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Strict-Transport-Security", "max-age=31536000")
		proxy.ServeHTTP(w, r)
	}))
	front.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	front.StartTLS()
	t.Cleanup(front.Close)
	authority = filepath.Join(t.TempDir(), "authority.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
	if err := os.WriteFile(authority, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return front.Listener.Addr().String(), authority
}

// Probes succeed for a service that works, and fail for one that does not.
func TestProbes(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	addr, authority := startTLSProxy(t, s)
	p := startProber(t, "127.0.0.1", authority)
	untrusting := startProber(t, "127.0.0.1", "/dev/null") // trusts nobody
	for _, c := range []struct {
		prober         *prober
		module, target string
		want           bool
	}{
		{p, "readyz", s.URL() + "/readyz", true},
		{p, "readyz", s.URL() + "/nothing", false},
		{p, "site", "https://" + addr + "/", true},
		{p, "site", s.URL() + "/", false}, // without TLS
		{p, "wss", addr, true},
		{p, "wss", s.Addr, false},        // without TLS
		{untrusting, "wss", addr, false}, // an authority that is not trusted
		{untrusting, "certificate", addr, true},
	} {
		out := c.prober.probe(t, c.module, c.target)
		if got := strings.Contains(out, "\nprobe_success 1\n"); got != c.want {
			t.Errorf("%s of %s: success %v, want %v\n%s", c.module, c.target, got, c.want, out)
		}
		if c.module == "certificate" && !strings.Contains(out, "\nprobe_ssl_earliest_cert_expiry ") {
			t.Errorf("no metric has the end of the certificate:\n%s", out)
		}
	}
	s.Kill()
	if out := p.probe(t, "wss", addr); !strings.Contains(out, "\nprobe_success 0\n") {
		t.Errorf("the probe of a service that is down does not fail:\n%s", out)
	}
}
