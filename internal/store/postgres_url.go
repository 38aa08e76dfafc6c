package store

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"
)

// urlFiles are DATABASE_URL and the files of its TLS options as they were read last.
type urlFiles struct {
	mu      sync.Mutex      // Protects following.
	good    *pgx.ConnConfig // the newest that could be used; nil before the first
	failing bool            // they can't be used now, which is logged
}

// refresh reads DATABASE_URL and the files that it names again, for one new connection:
// passwords are rotated and certificates are renewed while the service runs. While they
// can't be used, such as while they are being written, the last ones are kept.
func (p *Postgres) refresh(c *pgx.ConnConfig) {
	fresh, err := p.readURL(c)
	p.url.mu.Lock()
	defer p.url.mu.Unlock()
	if err == nil {
		p.url.good = fresh
	} else if !p.url.failing {
		p.cfg.Logger.Warn("the password and the certificates are kept as they were read before", "error", err)
	}
	p.url.failing = err != nil
	if good := p.url.good; good != nil {
		good = good.Copy() // a connection may change its own
		c.User, c.Password, c.TLSConfig, c.Fallbacks = good.User, good.Password, good.TLSConfig, good.Fallbacks
	}
}

// readURL reads DATABASE_URL, which must name the server and the database of c.
func (p *Postgres) readURL(c *pgx.ConnConfig) (*pgx.ConnConfig, error) {
	url := p.cfg.URL
	if p.cfg.ReadURL != nil {
		var err error
		if url, err = p.cfg.ReadURL(); err != nil {
			return nil, err
		}
	}
	fresh, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, urlError(err, "postgres://user:password@host:5432/database")
	}
	if fresh.Database != c.Database || !slices.Equal(hosts(fresh), hosts(c)) {
		return nil, errors.New("DATABASE_URL names another server or database now, which only a restart changes to")
	}
	return fresh, nil
}

// hosts returns the servers that a URL names, without the repetitions that are for TLS.
func hosts(c *pgx.ConnConfig) []string {
	all := []string{fmt.Sprintf("%s:%d", c.Host, c.Port)}
	for _, f := range c.Fallbacks {
		all = append(all, fmt.Sprintf("%s:%d", f.Host, f.Port))
	}
	return slices.Compact(all)
}

// severalHosts reports whether the URL names more than one server.
func severalHosts(c *pgx.ConnConfig) bool { return len(hosts(c)) > 1 }
