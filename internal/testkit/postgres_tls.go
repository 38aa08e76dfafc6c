package testkit

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A PGTLS is a PostgreSQL that accepts TCP connections only with TLS. Its
// certificate is for 127.0.0.1, not for localhost, and was issued by an authority
// that no system trusts.
type PGTLS struct {
	*PG
	// CAFile is the authority's certificate and OtherCAFile that of another
	// authority. CertFile and KeyFile are a client certificate of the authority.
	CAFile, OtherCAFile, CertFile, KeyFile string
}

// StartPostgresTLS starts a PGTLS. With requireClientCert, clients must present a
// certificate of the authority.
func StartPostgresTLS(tb testing.TB, requireClientCert bool) *PGTLS {
	tb.Helper()
	p := new(PGTLS)
	conf, err := p.makeFiles(requireClientCert)
	if err != nil {
		tb.Fatalf("testkit: make certificates: %v", err)
	}
	p.PG = StartPostgres(tb, conf...)
	return p
}

// Renew replaces all certificates, that of the authority too, in place, and has the
// server use them for new connections. It ends the present ones.
func (p *PGTLS) Renew(tb testing.TB) {
	tb.Helper()
	if _, _, _, err := writeCertificates(filepath.Dir(p.CAFile)); err != nil { // their owner stays
		tb.Fatalf("testkit: renew certificates: %v", err)
	}
	p.Query("SELECT pg_reload_conf()")
	p.Query("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'switchyard'")
}

// makeFiles writes the certificates and pg_hba.conf where the server may read them,
// and returns the lines of postgresql.conf that name them.
func (p *PGTLS) makeFiles(requireClientCert bool) ([]string, error) {
	var owner *User
	if os.Getuid() == 0 {
		var err error
		if owner, err = credential("postgres"); err != nil {
			return nil, err
		}
	}
	dir, err := TempDir("pgtls", owner)
	if err != nil {
		return nil, err
	}
	if p.CAFile, p.CertFile, p.KeyFile, err = writeCertificates(dir); err != nil {
		return nil, err
	}
	otherDir, err := TempDir("pgtls-other", nil)
	if err != nil {
		return nil, err
	}
	if p.OtherCAFile, _, _, err = writeCertificates(otherDir); err != nil {
		return nil, err
	}
	clientCert := ""
	if requireClientCert {
		clientCert = " clientcert=verify-ca"
	}
	hbaFile := filepath.Join(dir, "pg_hba.conf")
	if err := os.WriteFile(hbaFile, []byte("local all all trust\nhostssl all all 127.0.0.1/32 trust"+clientCert+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("write pg_hba.conf: %w", err)
	}
	if owner != nil { // PostgreSQL requires that it owns its key
		for _, name := range []string{p.CAFile, p.CertFile, p.KeyFile, hbaFile} {
			if err := own(name, owner); err != nil {
				return nil, fmt.Errorf("give %s to PostgreSQL: %w", name, err)
			}
		}
	}
	return []string{
		"ssl=on",
		"ssl_ca_file='" + p.CAFile + "'", "ssl_cert_file='" + p.CertFile + "'", "ssl_key_file='" + p.KeyFile + "'",
		"hba_file='" + hbaFile + "'",
	}, nil
}

// TLSURL returns the URL of the database by a host name and with options of libpq:
// pairs of name and value, such as "sslmode", "verify-full".
func (p *PGTLS) TLSURL(host string, options ...string) string {
	query := url.Values{}
	for i := 0; i+1 < len(options); i += 2 {
		query.Set(options[i], options[i+1])
	}
	plain, _, _ := strings.Cut(p.URL(), "?")
	return strings.Replace(plain, "127.0.0.1", host, 1) + "?" + query.Encode()
}
