//go:build stack

package stack

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// acmeOverride is the only difference from the stack as shipped: it adds an authority,
// and has Traefik trust that.
const acmeOverride = `
services:
  traefik:
    environment: {LEGO_CA_CERTIFICATES: /acme-test/pebble.crt}
    volumes: [../../acme-test:/acme-test:ro]
  pebble:
    image: ghcr.io/letsencrypt/pebble:2.10.1
    command: [-config, /acme-test/config.json]
    environment: {PEBBLE_VA_NOSLEEP: "1"}
    volumes: [../../acme-test:/acme-test:ro]
    networks: [edge, monitoring]
`

const pebbleConfig = `{"pebble": {
  "listenAddress": "0.0.0.0:14000", "managementListenAddress": "0.0.0.0:15000",
  "certificate": "/acme-test/pebble.crt", "privateKey": "/acme-test/pebble.key",
  "httpPort": 80, "tlsPort": 443, "ocspResponderURL": "", "externalAccountBindingRequired": false
}}`

// As shipped, without a certificate of the operator's, Traefik serves a self-signed one
// until the authority has validated the domain over HTTP on port 80, and then the
// authority's.
func TestACertificateFromACME(t *testing.T) {
	s, err := newStack(project + "-acme")
	if err != nil {
		t.Fatal(err)
	}
	defer s.remove()
	if err := errors.Join(s.setup(), s.setEnv(map[string]string{
		"ACME_CA":     "https://pebble:14000/dir",
		"EDGE_SUBNET": fmt.Sprintf("10.215.%d.0/24", os.Getpid()%200), "MONITORING_SUBNET": fmt.Sprintf("10.216.%d.0/24", os.Getpid()%200),
	}), s.writePebbleFiles()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, err := s.run("docker", "compose", "-p", s.name, "-f", "docker-compose.prod.yml", "-f", "acme.yml", "up", "-d", "--no-deps", "pebble", "traefik")
	must(t, out, err)
	var issuers []string
	eventuallyWithin(t, 2*time.Minute, "a certificate for "+domain, func() error {
		cert, err := s.servedCertificate(t)
		if err != nil {
			return err
		}
		if n := len(issuers); n == 0 || issuers[n-1] != cert.Issuer.CommonName {
			issuers = append(issuers, cert.Issuer.CommonName)
		}
		if err := cert.VerifyHostname(domain); err != nil {
			return err
		}
		if !strings.Contains(cert.Issuer.CommonName, "Pebble") {
			return fmt.Errorf("issued by %s", cert.Issuer.CommonName)
		}
		return nil
	})
	t.Logf("issued %.1f s after docker compose up; issuers that were served, in order: %q", time.Since(began).Seconds(), issuers)
	// Traefik keeps it over a restart: authorities limit how often they issue one.
	out, err = s.compose("restart", "traefik")
	must(t, out, err)
	testkit.EventuallyNil(t, "the certificate after a restart", func() error {
		cert, err := s.servedCertificate(t)
		if err == nil {
			err = cert.VerifyHostname(domain)
		}
		return err
	})
}

// servedCertificate returns the certificate that Traefik serves.
func (s *stack) servedCertificate(t *testing.T) (*x509.Certificate, error) {
	t.Helper()
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{
		ServerName: domain, InsecureSkipVerify: true, //nolint:gosec // the certificate is inspected, not trusted
	}}
	conn, err := dialer.DialContext(t.Context(), "tcp", s.ingressAddr(s.https))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// writePebbleFiles writes the authority's own certificate and configuration.
func (s *stack) writePebbleFiles() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	own := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pebble"}, DNSNames: []string{"pebble"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err1 := x509.CreateCertificate(rand.Reader, own, own, &key.PublicKey, key)
	keyDER, err2 := x509.MarshalECPrivateKey(key)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, "acme-test")
	write := func(name string, text []byte) error { return os.WriteFile(filepath.Join(dir, name), text, 0o644) }
	return errors.Join(
		os.MkdirAll(dir, 0o755),
		write("pebble.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		write("pebble.key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})),
		write("config.json", []byte(pebbleConfig)),
		os.WriteFile(s.path("acme.yml"), []byte(acmeOverride), 0o644),
	)
}
