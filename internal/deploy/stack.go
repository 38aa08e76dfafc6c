package deploy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// A Stack is where everything is on this host.
type Stack struct {
	// Dir is the folder of the compose file, .env, secrets/ and state/.
	Dir, File, Project string
	// TraefikAPI and Prometheus are their addresses; empty: those of the
	// containers.
	TraefikAPI, Prometheus string
	// TokenFile has a credential for probes; empty: one is signed with
	// secrets/app_jwt_secret.
	TokenFile string
	// Insecure does not look at the certificate when it probes from outside.
	Insecure bool
	// Env is what .env says.
	Env map[string]string
}

// DefaultFile is the compose file that a stack is known by.
const DefaultFile = "docker-compose.prod.yml"

// OpenStack finds the stack: in dir, or where its files are usually.
func OpenStack(dir, file, project string) (*Stack, error) {
	if dir == "" {
		for _, dir = range []string{".", filepath.Join("deploy", "compose")} {
			if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
				break
			}
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the stack: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
		return nil, fmt.Errorf("%s is not in %s: name its folder with --dir", file, dir)
	}
	s := &Stack{Dir: dir, File: file, Project: project}
	if s.Env, err = readEnv(filepath.Join(dir, ".env")); err != nil {
		return nil, fmt.Errorf("%w: run setup first", err)
	}
	if s.Env["DOMAIN"] == "" {
		return nil, fmt.Errorf("%s says no DOMAIN", filepath.Join(dir, ".env"))
	}
	return s, nil
}

// StateDir is the stack's, made when it is not there.
func (s *Stack) StateDir() (StateDir, error) {
	dir := filepath.Join(s.Dir, "state")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return StateDir{}, fmt.Errorf("find the state: %w", err)
	}
	return StateDir{Dir: dir}, nil
}

// Compose returns the stack's containers, and what leads to them.
func (s *Stack) Compose(lock *Lock) *Compose {
	c := &Compose{Dir: s.Dir, File: s.File, Project: s.Project, Lock: lock}
	c.Balancer = &Traefik{Dir: filepath.Join(s.Dir, "..", "traefik"), API: func(ctx context.Context) (string, error) {
		if s.TraefikAPI != "" {
			return s.TraefikAPI, nil
		}
		return c.serviceURL(ctx, "traefik", traefikPort)
	}}
	return c
}

// Metrics returns the stack's Prometheus.
func (s *Stack) Metrics(c *Compose) *Prometheus {
	return &Prometheus{
		FindURL: func(ctx context.Context) (string, error) {
			if s.Prometheus != "" {
				return s.Prometheus, nil
			}
			return c.serviceURL(ctx, "prometheus", prometheusPort)
		},
		MemoryLimits: func(ctx context.Context, deployment string) (map[string]int64, error) {
			containers, err := c.containers(ctx)
			if err != nil {
				return nil, err
			}
			limits := map[string]int64{}
			for _, each := range containers {
				if each.env("DEPLOYMENT") == deployment {
					limits[each.address()] = each.HostConfig.Memory
				}
			}
			return limits, nil
		},
	}
}

// hostPort is where the balancer listens on this host for HTTPS.
func (s *Stack) hostPort() (host, port string) {
	port = orElse(s.Env["HTTPS_PORT"], "443")
	host = "127.0.0.1"
	if h, p, err := net.SplitHostPort(port); err == nil {
		port = p
		if ip := net.ParseIP(h); ip != nil && !ip.IsUnspecified() {
			host = h
		}
	}
	return host, port
}

// URL is where users connect: wss for a scheme of sockets, https for pages.
func (s *Stack) URL(scheme, path string) string {
	_, port := s.hostPort()
	authority := s.Env["DOMAIN"]
	if port != "443" {
		authority = net.JoinHostPort(authority, port)
	}
	return scheme + "://" + authority + path
}

// BalancerAddr is where the balancer is reached on this host.
func (s *Stack) BalancerAddr() string { return net.JoinHostPort(s.hostPort()) }

// TLSConfig is how the balancer's certificate is looked at: the system's authorities
// count, and the stack's own certificate does.
func (s *Stack) TLSConfig() *tls.Config {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if own, err := os.ReadFile(filepath.Join(s.Dir, "secrets", "tls_crt")); err == nil {
		roots.AppendCertsFromPEM(own)
	}
	return &tls.Config{RootCAs: roots, InsecureSkipVerify: s.Insecure, MinVersion: tls.VersionTLS12}
}

// Dial connects to the balancer, whatever the address.
func (s *Stack) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, s.BalancerAddr())
}

// HTTPClient connects as users do, except that it asks no name server: the
// balancer is on this host.
func (s *Stack) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: s.Dial, TLSClientConfig: s.TLSConfig(), TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: 10 * time.Second,
	}}
}

// HostClock is the host's clock.
type HostClock struct{}

// Now is the time.
func (HostClock) Now() time.Time { return time.Now() }

// Sleep waits for d, or returns ctx's error when it ends first.
func (HostClock) Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errNoVerifier: the command was built without a verifier.
var errNoVerifier = errors.New("nobody verifies")
