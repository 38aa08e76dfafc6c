package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// Migrations, batches, feed and reads over TLS, with a server that accepts
// nothing else.
func TestTheLogOverTLS(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgresTLS(t, false)
	verified := pg.TLSURL("127.0.0.1", "sslmode", "verify-full", "sslrootcert", pg.CAFile)
	if err := Migrate(t.Context(), verified); err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, url: verified, pg: pg.PG}
	n := f.startNode()
	for _, id := range []string{"1", "2", "3"} {
		n.mustPublish("room", id, "x")
	}
	open := pg.Query("SELECT count(*), bool_and(ssl), min(version) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE application_name = 'switchyard'")
	if count, how, _ := strings.Cut(open, "|"); count == "0" || how != "t|TLSv1.3" {
		t.Errorf("connections: %s, want TLS 1.3 for all", open)
	}
}

func TestATLSServerThatCannotBeVerifiedIsRefused(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgresTLS(t, false)
	nonsense := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(nonsense, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ url, want string }{
		"another authority": {
			pg.TLSURL("127.0.0.1", "sslmode", "verify-full", "sslrootcert", pg.OtherCAFile), "certificate signed by unknown authority",
		},
		"the system's authorities": {
			pg.TLSURL("127.0.0.1", "sslmode", "verify-full"), "certificate signed by unknown authority",
		},
		"another host": {
			pg.TLSURL("localhost", "sslmode", "verify-full", "sslrootcert", pg.CAFile), "wanted to match localhost",
		},
		"another authority, whatever the host": {
			pg.TLSURL("127.0.0.1", "sslmode", "verify-ca", "sslrootcert", pg.OtherCAFile), "certificate signed by unknown authority",
		},
		"no TLS": {
			pg.TLSURL("127.0.0.1", "sslmode", "disable"), "no encryption",
		},
		"a missing file": {
			pg.TLSURL("127.0.0.1", "sslmode", "verify-full", "sslrootcert", "/no/such/ca.crt"), "open /no/such/ca.crt: no such file",
		},
		"a file without a certificate": {
			pg.TLSURL("127.0.0.1", "sslmode", "verify-full", "sslrootcert", nonsense), "unable to add CA",
		},
		"a key without its certificate": {
			pg.TLSURL("127.0.0.1", "sslmode", "verify-full", "sslkey", pg.KeyFile), `both "sslcert" and "sslkey" are required`,
		},
		"an unknown mode": {
			pg.TLSURL("127.0.0.1", "sslmode", "verify"), "sslmode is invalid",
		},
	} {
		url := strings.Replace(tt.url, "postgres@", "postgres:hush@", 1)
		_, opened := OpenPostgres(t.Context(), Config{URL: url})
		for _, err := range []error{Migrate(t.Context(), url), opened} {
			if err == nil {
				t.Fatalf("%s: connected", name)
			}
			if !strings.HasPrefix(err.Error(), "DATABASE_URL") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v: does not say %q", name, err, tt.want)
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "hush") {
				t.Errorf("%s: more than one line, or the password: %v", name, err)
			}
		}
	}
	if got := pg.Query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"); got != "0" {
		t.Errorf("%s tables were created on a server that was not verified", got)
	}
}

func TestAServerThatRequiresAClientCertificate(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgresTLS(t, true)
	verified := []string{"sslmode", "verify-full", "sslrootcert", pg.CAFile}
	if err := Migrate(t.Context(), pg.TLSURL("127.0.0.1", verified...)); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without a certificate: %v", err)
	}
	own := pg.TLSURL("127.0.0.1", append(verified, "sslcert", pg.CertFile, "sslkey", pg.KeyFile)...)
	if err := Migrate(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	(&fixture{t: t, url: own, pg: pg.PG}).startNode().mustPublish("room", "1", "x")
}

// An attacker answers in the server's place, without TLS: a mode that demands
// TLS does not continue in plain text.
func TestTLSCannotBeDowngraded(t *testing.T) {
	t.Parallel()
	pg, plain := testkit.StartPostgresTLS(t, false), testkit.StartPostgres(t)
	for _, mode := range []string{"require", "verify-ca", "verify-full"} {
		url := strings.Replace(plain.URL(), "sslmode=disable", "sslmode="+mode+"&sslrootcert="+pg.CAFile, 1)
		if err := Migrate(t.Context(), url); err == nil || !strings.Contains(err.Error(), "server refused TLS connection") {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// Certificates are renewed beneath a running service, its own and those of the
// server, by a new authority. While a file is being written, the certificates that
// were read before are used.
func TestRenewedCertificatesAreUsed(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgresTLS(t, true)
	present := func() map[string][]byte { return testkit.ReadFiles(t, pg.CAFile, pg.CertFile, pg.KeyFile) }
	mount := testkit.NewMount(t, present())
	url := pg.TLSURL("127.0.0.1", "sslmode", "verify-full", "sslrootcert", mount.Path("ca.crt"),
		"sslcert", mount.Path("redis.crt"), "sslkey", mount.Path("redis.key"))
	if err := Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, url: url, pg: pg.PG}
	var out testkit.Logs
	n := f.startNode(func(c *Config) { c.Logger = out.Logger() })
	n.mustPublish("room", "1", "with the first")

	half := present()
	half["redis.crt"] = half["redis.crt"][:len(half["redis.crt"])/2]
	mount.Replace(half)
	pg.Query("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'switchyard'")
	testkit.Eventually(t, "new connections with the certificates read before", func() bool {
		return n.publish("room", "ann", "2", "x").Err == nil
	})
	if got := out.Count("the password and the certificates are kept as they were read before"); got != 1 {
		t.Errorf("%d lines about the half-written file, want 1:\n%s", got, out.String())
	}

	pg.Renew(t)
	mount.Replace(present())
	testkit.Eventually(t, "new connections with the renewed certificates", func() bool {
		return n.publish("room", "ann", "3", "x").Err == nil
	})
}
