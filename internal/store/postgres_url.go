package store

import (
	"sync"

	"github.com/jackc/pgx/v5"
)

// tlsFiles are the files of the URL's TLS options as they were read last.
type tlsFiles struct {
	mu      sync.Mutex      // Protects following.
	good    *pgx.ConnConfig // the newest that could be read; nil before the first
	failing bool            // they can't be used now, which is logged
}

// readTLSFiles reads the files of the URL's TLS options again, for one new
// connection: certificates are renewed in place. While they can't be used, such as
// while they are being written, the last ones are kept.
func (p *Postgres) readTLSFiles(c *pgx.ConnConfig) {
	if c.TLSConfig == nil {
		return
	}
	fresh, err := pgx.ParseConfig(p.cfg.URL)
	p.tls.mu.Lock()
	defer p.tls.mu.Unlock()
	if err == nil {
		p.tls.good = fresh
	} else if !p.tls.failing {
		p.cfg.Logger.Warn("the certificates are kept as they were read before", "error", urlError(err, "postgres://user:password@host:5432/database"))
	}
	p.tls.failing = err != nil
	if good := p.tls.good; good != nil {
		good = good.Copy() // a connection may change its own
		c.TLSConfig, c.Fallbacks = good.TLSConfig, good.Fallbacks
	}
}
