package checks

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"switchyard/internal/stack"
)

// The numbers are those of docs/deploy.md: 15%, 5% and 2 GiB.
func TestADeployNeedsDiskSpace(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, tt := range []struct {
		name string
		disk diskSpace
		want Level
	}{
		{"plenty", diskSpace{"/", 50 * gib, 100 * gib}, OK},
		{"over 15%", diskSpace{"/", 15*gib + mib, 100 * gib}, OK},
		{"under 15%", diskSpace{"/", 15*gib - mib, 100 * gib}, Warn},
		{"over 5%", diskSpace{"/", 5*gib + mib, 100 * gib}, Warn},
		{"under 5%", diskSpace{"/", 5*gib - mib, 100 * gib}, Fail},
		{"2 GiB", diskSpace{"/", 2 * gib, 10 * gib}, OK},
		{"under 2 GiB", diskSpace{"/", 2*gib - mib, 10 * gib}, Fail},
	} {
		for _, disks := range [][]diskSpace{{tt.disk, {"/var", 500 * gib, 1000 * gib}}, {{"/var", 500 * gib, 1000 * gib}, tt.disk}} {
			level, text := Summarize(judgeDisks(disks))
			if level != tt.want {
				t.Errorf("%s: %d (%q), want %d", tt.name, level, text, tt.want)
			}
			if level != OK && !strings.HasPrefix(text, "/ has ") {
				t.Errorf("%s: the finding names another disk: %s", tt.name, text)
			}
		}
	}
	// The report names the space of the fullest disk, in whichever order they come.
	for _, disks := range [][]diskSpace{
		{{"/", 3 * gib, 10 * gib}, {"/var", 500 * gib, 1000 * gib}}, {{"/var", 500 * gib, 1000 * gib}, {"/", 3 * gib, 10 * gib}},
	} {
		if level, text := Summarize(judgeDisks(disks)); level != OK || text != "3072 MiB free" {
			t.Errorf("%d, %q", level, text)
		}
	}
}

func TestADeployNeedsMemoryForASecondColor(t *testing.T) {
	const mib = int64(1) << 20
	for _, tt := range []struct {
		name               string
		free, used, limits int64 // MiB
		want               Level
	}{
		{"plenty", 8000, 1000, 3000, OK},
		{"all that the limits allow", 3000, 1000, 3000, OK},
		{"less than the limits allow", 2999, 1000, 3000, Warn},
		{"as much as the live color uses, a fifth and 256 MiB", 1456, 1000, 1000, OK},
		{"less than that", 1455, 1000, 1000, Fail},
		{"a first deploy", 256, 0, 0, OK},
	} {
		if level, text := Summarize(judgeMemory(tt.free*mib, tt.used*mib, tt.limits*mib)); level != tt.want {
			t.Errorf("%s: %d (%q), want %d", tt.name, level, text, tt.want)
		}
	}
}

// serveCertificate starts a TLS server with a certificate for chat.invalid that is
// valid from now to end. It returns the server's address, and the certificate.
func serveCertificate(t *testing.T, end time.Time) (address string, certificate []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "chat.invalid"}, DNSNames: []string{"chat.invalid"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: end, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// A certificate fails the check three days before it expires, and warns two weeks before.
// One for another name fails.
func TestACertificateThatExpiresSoonStopsADeploy(t *testing.T) {
	end := time.Now().Add(90 * 24 * time.Hour).Truncate(time.Second)
	address, text := serveCertificate(t, end)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secrets", "tls_crt"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		left     time.Duration
		domain   string
		insecure bool
		want     Level
	}{
		{"two weeks are left", 14 * 24 * time.Hour, "chat.invalid", false, OK},
		{"a minute less", 14*24*time.Hour - time.Minute, "chat.invalid", false, Warn},
		{"three days are left", 72 * time.Hour, "chat.invalid", false, Warn},
		{"a minute less than three days", 72*time.Hour - time.Minute, "chat.invalid", false, Fail},
		{"expired", -time.Minute, "chat.invalid", true, Fail},
		{"another name", 30 * 24 * time.Hour, "other.invalid", false, Fail},
		{"not verified", 30 * 24 * time.Hour, "other.invalid", true, Warn},
	} {
		f := &Facts{
			Stack: &stack.Stack{Dir: dir, Insecure: tt.insecure, Env: map[string]string{"DOMAIN": tt.domain, "HTTPS_PORT": address}},
			Now:   func() time.Time { return end.Add(-tt.left) },
		}
		if level, text := Summarize(certificate(t.Context(), f)); level != tt.want {
			t.Errorf("%s: %d (%q), want %d", tt.name, level, text, tt.want)
		}
	}
}
