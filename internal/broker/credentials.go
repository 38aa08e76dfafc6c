package broker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
)

var errRestartNeeded = errors.New("it has changed in more than users and passwords, which needs a restart")

// credentials are the users and passwords of REDIS_URL, which are read again for each
// connection: they are replaced in its file while the service runs.
type credentials struct {
	reread func() (string, error)
	logger *slog.Logger

	mu      sync.Mutex // Protects following.
	good    *redisConfig
	failing bool // the file can't be used now, which is logged
}

// follow has new connections log in as REDIS_URL says by then, and its files be used as
// they are by then. It is called before the first connection.
func (c *redisConfig) follow(cfg Config) {
	if c.tls != nil {
		c.tls.logger = cfg.Logger
	}
	if cfg.Reread == nil {
		return
	}
	present := &credentials{reread: cfg.Reread, logger: cfg.Logger, good: c}
	c.server.CredentialsProviderContext = func(context.Context) (user, password string, err error) {
		now := present.load()
		return now.server.Username, now.server.Password, nil
	}
	c.sentinel.CredentialsProviderContext = func(context.Context) (user, password string, err error) {
		now := present.load()
		return now.sentinel.Username, now.sentinel.Password, nil
	}
}

// load returns what REDIS_URL says now. While that can't be used, such as while its file
// is being written, it returns what it said before.
func (c *credentials) load() *redisConfig {
	c.mu.Lock()
	defer c.mu.Unlock()
	text, err := c.reread()
	var now *redisConfig
	if err == nil {
		now, err = parseURL(text)
	}
	if err == nil && !now.reachesSameAs(c.good) {
		err = errRestartNeeded
	}
	if err != nil && !c.failing {
		c.logger.Warn("the file of REDIS_URL cannot be used; the users and passwords read before are kept", "error", err)
	}
	if c.failing = err != nil; !c.failing {
		c.good = now
	}
	return c.good
}

// reachesSameAs reports whether c and o differ at most in users and passwords.
func (c *redisConfig) reachesSameAs(o *redisConfig) bool {
	return c.topology == o.topology && slices.Equal(c.addrs, o.addrs) && c.master == o.master &&
		c.server.DB == o.server.DB && c.tls.sameAs(o.tls)
}

// sameAs reports whether f and o name the same files.
func (f *tlsFiles) sameAs(o *tlsFiles) bool {
	if f == nil || o == nil {
		return f == o
	}
	return f.ca == o.ca && f.cert == o.cert && f.key == o.key && f.skipVerify == o.skipVerify
}
