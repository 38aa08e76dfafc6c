package broker

import (
	"context"
	"net"

	"github.com/redis/go-redis/v9"
)

// Options returns the options of a client for commands on the Redis of
// REDIS_URL, so that the URL is parsed in one place. With sentinels, each dial
// asks all of them for the master, as the broker does. The caller sets bounds
// on pools and retries.
func Options(url string) (*redis.UniversalOptions, error) {
	c, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	silenceRedisLogger()
	opts := &redis.UniversalOptions{
		Addrs: c.addrs, IsClusterMode: c.topology == topologyCluster, DB: c.server.DB,
		Username: c.server.Username, Password: c.server.Password, TLSConfig: c.server.TLSConfig,
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
	return redis.NewDialer(&s.config.server)(ctx, network, master(0))
}
