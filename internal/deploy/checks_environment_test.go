package deploy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
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

// statusOf returns the status of a check by its error.
func statusOf(err error) string {
	var warned *warning
	switch {
	case err == nil:
		return statusOK
	case errors.As(err, &warned):
		return statusWarn
	}
	return statusFail
}

// The numbers are those of docs/deploy.md: 10% and 2 GiB.
func TestADeployNeedsDiskSpace(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, tt := range []struct {
		name string
		disk diskSpace
		want string
	}{
		{"plenty", diskSpace{"/", 50 * gib, 100 * gib}, statusOK},
		{"both bounds", diskSpace{"/", 2 * gib, 20 * gib}, statusOK},
		{"under 2 GiB", diskSpace{"/", 2*gib - mib, 10 * gib}, statusFail},
		{"under 10%", diskSpace{"/", 10*gib - mib, 100 * gib}, statusFail},
	} {
		for _, disks := range [][]diskSpace{{tt.disk, {"/var", 500 * gib, 1000 * gib}}, {{"/var", 500 * gib, 1000 * gib}, tt.disk}} {
			text, err := judgeDisks(disks)
			if got := statusOf(err); got != tt.want {
				t.Errorf("%s: %s (%q, %v), want %s", tt.name, got, text, err, tt.want)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "/ has ") {
				t.Errorf("%s: the error names another disk: %v", tt.name, err)
			}
		}
	}
	// The report names the space of the fullest disk, in whichever order they come.
	for _, disks := range [][]diskSpace{
		{{"/", 3 * gib, 10 * gib}, {"/var", 500 * gib, 1000 * gib}}, {{"/var", 500 * gib, 1000 * gib}, {"/", 3 * gib, 10 * gib}},
	} {
		if text, err := judgeDisks(disks); err != nil || text != "3072 MiB free" {
			t.Errorf("%q, %v", text, err)
		}
	}
}

func TestADeployNeedsMemoryForASecondColor(t *testing.T) {
	const mib = int64(1) << 20
	for _, tt := range []struct {
		name               string
		free, used, limits int64 // MiB
		want               string
	}{
		{"plenty", 8000, 1000, 3000, statusOK},
		{"all that the limits allow", 3000, 1000, 3000, statusOK},
		{"less than the limits allow", 2999, 1000, 3000, statusWarn},
		{"as much as the live color uses, a fifth and 256 MiB", 1456, 1000, 1000, statusOK},
		{"less than that", 1455, 1000, 1000, statusFail},
		{"a first deploy", 256, 0, 0, statusOK},
	} {
		if text, err := judgeMemory(tt.free*mib, tt.used*mib, tt.limits*mib); statusOf(err) != tt.want {
			t.Errorf("%s: %s (%q, %v), want %s", tt.name, statusOf(err), text, err, tt.want)
		}
	}
}

// clockAt is a Clock that stands still.
type clockAt struct{ time.Time }

func (c clockAt) Now() time.Time                             { return c.Time }
func (c clockAt) Sleep(context.Context, time.Duration) error { return nil }

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

// A certificate fails the check 48 hours before it expires, and warns two weeks
// before that. One for another name fails.
func TestACertificateThatExpiresSoonStopsADeploy(t *testing.T) {
	end := time.Now().Add(90 * 24 * time.Hour).Truncate(time.Second)
	address, certificate := serveCertificate(t, end)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secrets", "tls_crt"), certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		left     time.Duration
		domain   string
		insecure bool
		want     string
	}{
		{"two weeks are left", 14 * 24 * time.Hour, "chat.invalid", false, statusOK},
		{"a minute less", 14*24*time.Hour - time.Minute, "chat.invalid", false, statusWarn},
		{"two days are left", 48 * time.Hour, "chat.invalid", false, statusWarn},
		{"a minute less than two days", 48*time.Hour - time.Minute, "chat.invalid", false, statusFail},
		{"expired", -time.Minute, "chat.invalid", true, statusFail},
		{"another name", 30 * 24 * time.Hour, "other.invalid", false, statusFail},
		{"not verified", 30 * 24 * time.Hour, "other.invalid", true, statusWarn},
	} {
		p := &Preflight{
			Stack: &stack.Stack{Dir: dir, Insecure: tt.insecure, Env: map[string]string{"DOMAIN": tt.domain, "HTTPS_PORT": address}},
			Clock: clockAt{end.Add(-tt.left)},
		}
		if text, err := p.certificate(t.Context(), nil); statusOf(err) != tt.want {
			t.Errorf("%s: %s (%q, %v), want %s", tt.name, statusOf(err), text, err, tt.want)
		}
	}
}
