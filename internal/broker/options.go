package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Options returns the options of a client for commands on the Redis of
// REDIS_URL, so that the URL is parsed in one place. With sentinels, each dial
// asks all of them for the master, as the broker does. Outside a cluster, each
// new connection must lead to a primary. The caller sets bounds on pools and
// retries, and makes new connections from time to time, because the address may
// lead to another server. slots is nil outside a cluster, and in one the function by
// which the client learns who has which slot.
func Options(cfg Config) (opts *redis.UniversalOptions, slots func(context.Context) ([]redis.ClusterSlot, error), err error) {
	c, err := parseURL(cfg.URL)
	if err != nil {
		return nil, nil, err
	}
	silenceRedisLogger()
	c.follow(cfg.withDefaults())
	opts = &redis.UniversalOptions{
		Addrs: c.addrs, IsClusterMode: c.topology == topologyCluster, DB: c.server.DB,
		Username: c.server.Username, Password: c.server.Password, Dialer: c.server.Dialer,
		CredentialsProviderContext: c.server.CredentialsProviderContext,
		Protocol:                   c.server.Protocol, DisableIdentity: true, PipelinePoolSize: -1, OnConnect: c.server.OnConnect,
		DialTimeout: redisTimeout, ReadTimeout: redisTimeout, WriteTimeout: redisTimeout, DialerRetries: 1,
	}
	switch c.topology {
	case topologySingle:
	case topologySentinel:
		opts.Addrs = c.addrs[:1] // names the pool only: the dialer ignores it
		opts.Dialer = newSentinels(c).dial
	case topologyCluster:
		opts.Dialer = c.dialCluster
		slots = (&slotReader{config: c}).read
	}
	return opts, slots, nil
}

// dialCluster connects to a server of a cluster. A MOVED error may name it by its port
// only: then it is on a host of the URL.
func (c *redisConfig) dialCluster(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	for _, seed := range c.addrs {
		full := withDefaultHost(addr, seed)
		if conn, err = c.dial(ctx, network, full); err == nil || full == addr {
			break
		}
	}
	return conn, err
}

// A slotReader reads a cluster's map of slots for a client for commands, of the servers
// that the last map had and, if none of them answers, of those of the URL. It is safe
// for concurrent use.
type slotReader struct {
	config *redisConfig
	mu     sync.Mutex // Protects known.
	known  []string
}

func (s *slotReader) read(ctx context.Context) ([]redis.ClusterSlot, error) {
	s.mu.Lock()
	candidates := slices.Concat(s.known, s.config.addrs)
	s.mu.Unlock()
	var errs []error
	for _, addr := range candidates {
		ranges, err := readSlots(ctx, s.config, addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("query the cluster's slots at %s: %w", addr, err))
			continue
		}
		var known []string
		for _, r := range ranges {
			if len(r.Nodes) > 0 && !slices.Contains(known, r.Nodes[0].Addr) {
				known = append(known, r.Nodes[0].Addr)
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.known = known
		return ranges, nil
	}
	return nil, errors.Join(errs...)
}

// dial connects to the master and ignores the address.
func (s *sentinels) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	master, err := s.discover(ctx, nil)
	if err != nil {
		return nil, err
	}
	return s.config.dial(ctx, network, master(0))
}

// dial connects to a server.
func (c *redisConfig) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if c.server.Dialer != nil {
		return c.server.Dialer(ctx, network, addr)
	}
	return redis.NewDialer(&c.server)(ctx, network, addr)
}
