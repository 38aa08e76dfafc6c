package broker

import (
	"context"
	"net"

	"github.com/redis/go-redis/v9"
)

// Options returns the options of a client for commands on the Redis of
// REDIS_URL, so that the URL is parsed in one place. With sentinels, each dial
// asks all of them for the master, as the broker does. Outside a cluster, each
// new connection must lead to a primary. The caller sets bounds on pools and
// retries, and makes new connections from time to time, because the address may
// lead to another server.
func Options(url string) (*redis.UniversalOptions, error) {
	c, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	silenceRedisLogger()
	opts := &redis.UniversalOptions{
		Addrs: c.addrs, IsClusterMode: c.topology == topologyCluster, DB: c.server.DB,
		Username: c.server.Username, Password: c.server.Password, Dialer: c.server.Dialer,
		Protocol: c.server.Protocol, DisableIdentity: true, PipelinePoolSize: -1, OnConnect: c.server.OnConnect,
		DialTimeout: redisTimeout, ReadTimeout: redisTimeout, WriteTimeout: redisTimeout, DialerRetries: 1,
	}
	if c.topology == topologySentinel {
		opts.Addrs = c.addrs[:1] // names the pool only: the dialer ignores it
		opts.Dialer = newSentinels(c).dial
	}
	return opts, nil
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
