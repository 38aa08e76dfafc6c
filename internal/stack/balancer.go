package stack

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// A Balancer is a stack's balancer as users reach it, by the domain of .env.
type Balancer struct{ stack *Stack }

// Balancer returns the stack's balancer. LoadEnv comes first.
func (s *Stack) Balancer() Balancer { return Balancer{s} }

// hostPort returns where the balancer listens for HTTPS on this host.
func (b Balancer) hostPort() (host, port string) {
	port = cmp.Or(b.stack.Env["HTTPS_PORT"], "443")
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
func (b Balancer) URL(scheme, path string) string {
	_, port := b.hostPort()
	authority := b.stack.Env["DOMAIN"]
	if port != "443" {
		authority = net.JoinHostPort(authority, port)
	}
	return scheme + "://" + authority + path
}

// Addr returns host:port of the balancer on this host.
func (b Balancer) Addr() string { return net.JoinHostPort(b.hostPort()) }

// TLSConfig returns the configuration that verifies the balancer's certificate. It
// trusts the system's authorities and the stack's own certificate.
func (b Balancer) TLSConfig() *tls.Config {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if own, err := os.ReadFile(filepath.Join(b.stack.Dir, "secrets", "tls_crt")); err == nil {
		roots.AppendCertsFromPEM(own)
	}
	return &tls.Config{RootCAs: roots, InsecureSkipVerify: b.stack.Insecure, MinVersion: tls.VersionTLS12}
}

// Dial connects to the balancer, whatever the address is.
func (b Balancer) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, b.Addr())
}

// HTTPClient returns a client that connects as users do, but without a name server:
// it connects to the balancer on this host.
func (b Balancer) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: b.Dial, TLSClientConfig: b.TLSConfig(), TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: 10 * time.Second,
	}}
}
