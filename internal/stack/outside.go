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
