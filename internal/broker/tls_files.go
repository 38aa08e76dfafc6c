package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// tlsFiles are the files of REDIS_URL's TLS options. They are read again for each
// connection, because certificates are renewed in place: by an exchange of the
// file, of a link to it, or of its content.
type tlsFiles struct {
	ca, cert, key string // paths; "" for none
	skipVerify    bool
	logger        *slog.Logger // nil: silent

	// mu protects the fields below.
	mu      sync.Mutex
	content [3][]byte   // of the files, from which good was made
	good    *tls.Config // the newest that could be made
	failing bool        // the files can't be used now, which is logged
}

// dialer returns a function that dials with the present files. Its options are
// those of the server; their TLSConfig is not used.
func (f *tlsFiles) dialer(opts redis.Options) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		opts := opts
		opts.TLSConfig = f.config()
		return redis.NewDialer(&opts)(ctx, network, addr)
	}
}

// config returns the configuration of the present files. While they can't be
// used, such as while they are being written, it returns the last one.
func (f *tlsFiles) config() *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.load()
	if err != nil && !f.failing && f.logger != nil {
		f.logger.Warn("a file of REDIS_URL cannot be used; the certificates read before are kept", "error", err)
	}
	f.failing = err != nil
	return f.good
}

// load reads the files, and makes the configuration if one has changed. The
// caller holds mu, or has the only reference.
func (f *tlsFiles) load() error {
	var content [3][]byte
	for i, file := range []struct{ option, path string }{{"ca_file", f.ca}, {"cert_file and key_file", f.cert}, {"cert_file and key_file", f.key}} {
		if file.path == "" {
			continue
		}
		var err error
		if content[i], err = os.ReadFile(file.path); err != nil {
			return fmt.Errorf("%s: %w", file.option, err)
		}
	}
	if f.good != nil && bytes.Equal(content[0], f.content[0]) && bytes.Equal(content[1], f.content[1]) && bytes.Equal(content[2], f.content[2]) {
		return nil
	}
	// ServerName stays empty: each dial verifies the host that it dials.
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: f.skipVerify} //nolint:gosec // the operator asked for it
	if f.ca != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(content[0]) {
			return fmt.Errorf("ca_file: no certificate in %q", f.ca)
		}
		if text := string(content[0]); strings.Count(text, "-----BEGIN") != strings.Count(text, "-----END") {
			return fmt.Errorf("ca_file: the last certificate in %q is incomplete", f.ca)
		}
	}
	if f.cert != "" || f.key != "" {
		pair, err := tls.X509KeyPair(content[1], content[2])
		if err != nil {
			return fmt.Errorf("cert_file and key_file: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	f.content, f.good = content, conf
	return nil
}
