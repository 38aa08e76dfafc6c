package testkit

import (
	"strconv"
	"strings"
	"testing"
)

// StartRedisReplica starts a replica of a server without a password, and waits
// until it follows.
func StartRedisReplica(tb testing.TB, primary *RedisServer) *RedisServer {
	tb.Helper()
	primary.Do(tb, "CONFIG", "SET", "repl-diskless-sync-delay", "0")
	replica := StartRedis(tb, "--replicaof", "127.0.0.1", strconv.Itoa(primary.port), "--repl-diskless-sync-delay", "0")
	replica.waitFollows(tb)
	return replica
}

// Promote makes a replica a primary, as a managed service does in a failover that
// it plans. The old primary lives on as its replica and keeps the connections of
// its clients.
func (r *RedisServer) Promote(tb testing.TB, old *RedisServer) {
	tb.Helper()
	r.Do(tb, "REPLICAOF", "NO", "ONE")
	old.Do(tb, "REPLICAOF", "127.0.0.1", strconv.Itoa(r.port))
	old.waitFollows(tb)
}

func (r *RedisServer) waitFollows(tb testing.TB) {
	tb.Helper()
	waitReply(tb, r, "a replica to follow", func(info string) bool {
		return strings.Contains(info, "master_link_status:up")
	}, "INFO", "replication")
}
