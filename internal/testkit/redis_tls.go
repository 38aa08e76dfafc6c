package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// A RedisTLS is a redis-server that also listens with TLS. Its certificate was
// issued by an authority that no system trusts.
type RedisTLS struct {
	*RedisServer
	// CAFile is the authority's certificate. CertFile and KeyFile are a client
	// certificate, which the server requires unless its arguments are
	// "--tls-auth-clients", "no".
	CAFile, CertFile, KeyFile string

	tlsPort int
}

// TLSAddr returns host:port of the listener with TLS.
func (r *RedisTLS) TLSAddr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.tlsPort)) }

// StartRedisTLS starts a RedisTLS with further arguments of redis-server.
func StartRedisTLS(tb testing.TB, args ...string) *RedisTLS {
	tb.Helper()
	r := &RedisTLS{tlsPort: FreePort()}
	dir, err := TempDir("tls", nil)
	if err == nil {
		r.CAFile, r.CertFile, r.KeyFile, err = writeCertificates(dir)
	}
	if err != nil {
		tb.Fatalf("testkit: make certificates: %v", err)
	}
	r.RedisServer = StartRedis(tb, append([]string{
		"--tls-port", strconv.Itoa(r.tlsPort), "--tls-ca-cert-file", r.CAFile,
		"--tls-cert-file", r.CertFile, "--tls-key-file", r.KeyFile,
	}, args...)...)
	return r
}

// Renew replaces all certificates, that of the authority too, in place, and restarts
// the server with them.
func (r *RedisTLS) Renew(tb testing.TB) {
	tb.Helper()
	if _, _, _, err := writeCertificates(filepath.Dir(r.CAFile)); err != nil {
		tb.Fatalf("testkit: renew certificates: %v", err)
	}
	r.Restart()
}

// writeCertificates makes an authority and a certificate of it for 127.0.0.1, which
// servers and clients can use. It returns the paths of the files.
func writeCertificates(dir string) (ca, cert, key string, err error) {
	ca, cert, key = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "redis.crt"), filepath.Join(dir, "redis.key")
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", "", err
	}
	root := certificateTemplate("Switchyard test authority", x509.KeyUsageCertSign)
	root.IsCA, root.BasicConstraintsValid = true, true
	if err := writeCertificate(ca, root, root, caKey, caKey); err != nil {
		return "", "", "", err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", "", err
	}
	leaf := certificateTemplate("127.0.0.1", x509.KeyUsageDigitalSignature)
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	if err := writeCertificate(cert, leaf, root, leafKey, caKey); err != nil {
		return "", "", "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return "", "", "", err
	}
	return ca, cert, key, writePEM(key, "PRIVATE KEY", der)
}

func certificateTemplate(name string, usage x509.KeyUsage) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, KeyUsage: usage,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
}

func writeCertificate(path string, cert, parent *x509.Certificate, leafKey, caKey *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, leafKey.Public(), caKey)
	if err != nil {
		return fmt.Errorf("sign %s: %w", path, err)
	}
	return writePEM(path, "CERTIFICATE", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
