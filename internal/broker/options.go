package broker

import (
	"context"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// masterLifetime is how long a connection to the master that sentinels chose
// is used: one that was replaced and could not be demoted answers for ever.
const masterLifetime = 30 * time.Second

// Options returns how a client for commands reaches the Redis that REDIS_URL
// names, so that the URL is read in one place. Of sentinels it asks all at each
// dial, as the broker does. The caller sets its bounds on pools and retries.
func Options(url string) (*redis.UniversalOptions, error) {
	p, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	silenceRedisLogger()
	opts := &redis.UniversalOptions{
		Addrs: p.addrs, IsClusterMode: p.topology == topologyCluster, DB: p.server.DB,
		Username: p.server.Username, Password: p.server.Password, TLSConfig: p.server.TLSConfig,
		Protocol: p.server.Protocol, DisableIdentity: true, PipelinePoolSize: -1,
		DialTimeout: redisTimeout, ReadTimeout: redisTimeout, WriteTimeout: redisTimeout, DialerRetries: 1,
	}
	if p.topology == topologySentinel {
		opts.Addrs = p.addrs[:1] // a name for the pool: the dialer knows better
		opts.Dialer = newSentinels(p).dial
		opts.ConnMaxLifetime = masterLifetime
	}
	return opts, nil
}

// dial connects to the master, whatever address it is given.
func (s *sentinels) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	master, err := s.discover(ctx, nil)
	if err != nil {
		return nil, err
	}
	return redis.NewDialer(&s.config.server)(ctx, network, master(0))
}
