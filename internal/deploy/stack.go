package deploy

import (
	"cmp"
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

// A Stack locates the parts of the stack on this host.
type Stack struct {
	// Dir is the folder of the compose file, .env, secrets/ and state/. File is the
	// compose file's name, Project the stack's name in Compose.
	Dir, File, Project string
	// TraefikAPI and Prometheus are URLs. If empty, the addresses of the containers
	// are used.
	TraefikAPI, Prometheus string
	// TokenFile has a credential for probes. If empty, a token is signed with
	// secrets/app_jwt_secret.
	TokenFile string
	// Insecure skips the verification of the certificate in probes from outside.
	Insecure bool
	// Env has the assignments of .env.
	Env map[string]string
}

// DefaultFile is the name of a stack's compose file.
const DefaultFile = "docker-compose.prod.yml"

// OpenStack finds the stack in dir, or if dir is empty in the current folder or
// deploy/compose.
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
		return nil, fmt.Errorf("%s sets no DOMAIN", filepath.Join(dir, ".env"))
	}
	return s, nil
}

// StateDir returns the stack's state folder, and creates it if it is missing.
func (s *Stack) StateDir() (StateDir, error) {
	dir := filepath.Join(s.Dir, "state")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return StateDir{}, fmt.Errorf("find the state: %w", err)
	}
	return StateDir{Dir: dir}, nil
}

// Compose returns the stack's Compose with its balancer. lock may be nil.
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

// hostPort returns where the balancer listens for HTTPS on this host.
func (s *Stack) hostPort() (host, port string) {
	port = cmp.Or(s.Env["HTTPS_PORT"], "443")
	host = "127.0.0.1"
	if h, p, err := net.SplitHostPort(port); err == nil {
		port = p
		if ip := net.ParseIP(h); ip != nil && !ip.IsUnspecified() {
			host = h
		}
	}
	return host, port
}

// URL returns the users' URL of a path, with the scheme wss or https.
func (s *Stack) URL(scheme, path string) string {
	_, port := s.hostPort()
	authority := s.Env["DOMAIN"]
	if port != "443" {
		authority = net.JoinHostPort(authority, port)
	}
	return scheme + "://" + authority + path
}

// BalancerAddr returns host:port of the balancer on this host.
func (s *Stack) BalancerAddr() string { return net.JoinHostPort(s.hostPort()) }

// TLSConfig returns the configuration that verifies the balancer's certificate. It
// trusts the system's authorities and the stack's own certificate.
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

// Dial connects to the balancer, whatever the address is.
func (s *Stack) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, s.BalancerAddr())
}

// HTTPClient returns a client that connects as users do, but without a name server:
// it connects to the balancer on this host.
func (s *Stack) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: s.Dial, TLSClientConfig: s.TLSConfig(), TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: 10 * time.Second,
	}}
}

// HostClock implements Clock with the host's clock.
type HostClock struct{}

// Now returns the time.
func (HostClock) Now() time.Time { return time.Now() }

// Sleep waits for d, or returns ctx's error when ctx ends first.
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

// errNoVerifier says that the Prober has no Verifier.
var errNoVerifier = errors.New("no verifier is set")
