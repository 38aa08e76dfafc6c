package proxies

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"switchyard/internal/testkit"
)

// serviceName is the name in the configurations of docs/proxies.md. The certificate of
// httptest is valid for it.
const serviceName = "chat.example.com"

const apiKey = "kfj3h9s0d8f7gh2k"

// A proxyKind is a program with its configuration.
type proxyKind struct {
	name, debianPackage string
	files               []string // in docs/proxies.md
	// args returns the arguments. It may write further files into dir, which a
	// distribution has: ports are those of https and http.
	args func(t *testing.T, dir string, https, http int) []string
}

var proxyKinds = []proxyKind{
	{"nginx", "nginx", []string{"/etc/nginx/conf.d/switchyard.conf"}, func(t *testing.T, dir string, _, _ int) []string {
		main := "daemon off; master_process off; pid nginx.pid; error_log stderr;\nevents {}\nhttp {\n access_log off;\n"
		for _, temp := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			main += fmt.Sprintf(" %s_temp_path %s;\n", temp, temp)
		}
		write(t, filepath.Join(dir, "nginx.conf"), main+" include "+dir+"/etc/nginx/conf.d/*.conf;\n}\n")
		return []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf")}
	}},
	{"caddy", "caddy", []string{"/etc/caddy/Caddyfile"}, func(t *testing.T, dir string, https, http int) []string {
		path := filepath.Join(dir, "etc/caddy/Caddyfile")
		options := fmt.Sprintf("{\n\thttps_port %d\n\thttp_port %d\n\tadmin off\n}\n", https, http)
		write(t, path, options+string(testkit.ReadFile(t, path)))
		return []string{"run", "--adapter", "caddyfile", "--config", path}
	}},
	{"haproxy", "haproxy", []string{"/etc/haproxy/haproxy.cfg"}, func(_ *testing.T, dir string, _, _ int) []string {
		return []string{"-db", "-f", filepath.Join(dir, "etc/haproxy/haproxy.cfg")}
	}},
	{"traefik", "", []string{"/etc/traefik/traefik.yml", "/etc/traefik/switchyard.yml"}, func(_ *testing.T, dir string, _, _ int) []string {
		return []string{"--configfile=" + filepath.Join(dir, "etc/traefik/traefik.yml")}
	}},
}

// configurationBlock is a fenced block whose first line names its file.
var configurationBlock = regexp.MustCompile("(?s)\n```[a-z]+\n# (/etc/[^\n]+)\n.*?\n```\n")

// configurations returns the configurations of docs/proxies.md by their files.
func configurations(t *testing.T) map[string]string {
	t.Helper()
	blocks := map[string]string{}
	for _, m := range configurationBlock.FindAllStringSubmatch(string(testkit.ReadFile(t, "../../docs/proxies.md")), -1) {
		_, text, _ := strings.Cut(strings.TrimSpace(m[0]), "\n")
		blocks[m[1]] = strings.TrimSuffix(text, "```")
	}
	return blocks
}

// A site is the service behind one proxy.
type site struct {
	server  *testkit.Server
	audit   string // the path of the service's audit log
	port    int    // of the proxy, with TLS
	trusted *x509.CertPool
	leaf    *x509.Certificate
}

// startSite starts the service and the proxy in front of it, with the ports and
// folders of the test in the configuration.
func startSite(t *testing.T, kind proxyKind, blocks map[string]string) *site {
	t.Helper()
	dir, err := testkit.TempDir(kind.name, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{audit: filepath.Join(dir, "audit.log"), port: testkit.FreePort()}
	s.server = testkit.StartServer(t, map[string]string{
		"TRUSTED_PROXIES": "127.0.0.1", "ALLOWED_HOSTS": serviceName, "AUDIT_LOG": s.audit, "API_KEYS": "shop:" + apiKey,
	})
	s.writeCertificate(t, dir)
	replacements := strings.NewReplacer("/etc/", dir+"/etc/", "127.0.0.1:8000", s.server.Addr, ":443", ":"+strconv.Itoa(s.port), "listen 443", "listen "+strconv.Itoa(s.port))
	for _, path := range kind.files {
		write(t, filepath.Join(dir, path), replacements.Replace(blocks[path]))
	}
	s.startProxy(t, kind, dir)
	return s
}

func (s *site) startProxy(t *testing.T, kind proxyKind, dir string) {
	t.Helper()
	path := *traefikProgram
	if kind.debianPackage != "" {
		var err error
		if path, err = testkit.FindProgram(kind.name, kind.debianPackage, "/usr/sbin"); err != nil {
			t.Fatal(err)
		}
	}
	p, err := testkit.Start(testkit.Program{Path: path, Args: kind.args(t, dir, s.port, testkit.FreePort()), Dir: dir, Env: []string{"HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}})
	if err != nil {
		t.Fatalf("%v; make proxies needs nginx, caddy, haproxy and traefik", err)
	}
	t.Cleanup(func() {
		_ = p.Stop(syscall.SIGKILL, testkit.Timeout)
		if t.Failed() {
			t.Logf("%s printed:\n%s", kind.name, p.Output())
		}
	})
	testkit.EventuallyNil(t, kind.name+" to serve", func() error {
		select {
		case <-p.Done():
			t.Fatalf("%s ended:\n%s", kind.name, p.Output())
		default:
		}
		c := newClient(s, "127.0.0.1", "127.0.0.1")
		defer c.CloseIdleConnections()
		res, err := c.Get(s.url("/readyz"))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", res.StatusCode)
		}
		return nil
	})
}

// writeCertificate writes httptest's certificate where the configurations have theirs.
func (s *site) writeCertificate(t *testing.T, dir string) {
	t.Helper()
	own := httptest.NewUnstartedServer(nil)
	own.StartTLS()
	defer own.Close()
	s.leaf, s.trusted = own.Certificate(), x509.NewCertPool()
	s.trusted.AddCert(s.leaf)
	der, err := x509.MarshalPKCS8PrivateKey(own.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.leaf.Raw}))
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	for ending, text := range map[string]string{"crt": cert, "key": key, "pem": cert + key} {
		write(t, filepath.Join(dir, "etc/ssl", serviceName+"."+ending), text)
	}
}

func (s *site) origin() string         { return fmt.Sprintf("https://%s:%d", serviceName, s.port) }
func (s *site) url(path string) string { return s.origin() + path }
func (s *site) tlsConfig() *tls.Config {
	return &tls.Config{RootCAs: s.trusted, ServerName: serviceName}
}
func (s *site) addr(host string) string { return net.JoinHostPort(host, strconv.Itoa(s.port)) }

// newClient returns a client at one address of this machine, which reaches the proxy
// at another one. It follows no redirect.
func newClient(s *site, from, to string) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: s.tlsConfig(),
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "tcp", s.addr(to))
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       testkit.Timeout,
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// auditLine waits for the audit line of a request, and returns it.
func (s *site) auditLine(t *testing.T, requestID string) (line string) {
	t.Helper()
	testkit.Eventually(t, "the audit line of "+requestID, func() bool {
		lines := slices.Collect(strings.Lines(string(testkit.ReadFile(t, s.audit))))
		at := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, requestID) })
		if at >= 0 {
			line = lines[at]
		}
		return at >= 0
	})
	return line
}
