package testkit

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// SentinelMaster is the name of the master in a RedisSentinel.
const SentinelMaster = "switchyard"

// sentinelTimeout bounds a failover. Election and promotion take a few seconds, and the
// first election may have no winner; a sentinel that was starved does nothing for 30 s
// (TILT in Redis' documentation).
const sentinelTimeout = 90 * time.Second

// A RedisSentinel is a master with two replicas and three sentinels, which regard
// the master as down after half a second. All are killed when the test ends. Its
// methods belong to the test's goroutine.
type RedisSentinel struct {
	tb        testing.TB
	password  string
	servers   []*RedisServer // the first master, then its replicas
	sentinels []*RedisServer
}

// StartRedisSentinel starts the servers and waits until each sentinel knows all
// others. The arguments are those of the first master only, except
// "--requirepass", which sets the password of all servers and sentinels.
func StartRedisSentinel(tb testing.TB, masterArgs ...string) *RedisSentinel {
	tb.Helper()
	s := &RedisSentinel{tb: tb}
	master := StartRedis(tb, append([]string{"--repl-diskless-sync-delay", "0"}, masterArgs...)...)
	var secret []string
	if s.password = master.password; s.password != "" {
		secret = []string{"--requirepass", s.password, "--masterauth", s.password}
		master.Do(tb, "CONFIG", "SET", "masterauth", s.password)
	}
	s.servers = []*RedisServer{master, nil, nil}
	s.sentinels = make([]*RedisServer, 3)
	var starting sync.WaitGroup
	for i := range 2 {
		s.servers[i+1] = &RedisServer{tb: tb, password: s.password, args: append([]string{
			"--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1", strconv.Itoa(master.port),
		}, secret...)}
		starting.Go(func() { startOrFail(tb, s.servers[i+1]) })
	}
	starting.Wait()
	for _, replica := range s.servers[1:] {
		waitReply(tb, replica, "a replica to follow", func(info string) bool {
			return strings.Contains(info, "master_link_status:up")
		}, "INFO", "replication")
	}
	// The sentinels start last, because a sentinel asks a master for its replicas at
	// its start and then only every ten seconds.
	for i := range s.sentinels {
		s.sentinels[i] = newSentinel(tb, master)
		starting.Go(func() { startOrFail(tb, s.sentinels[i]) })
	}
	starting.Wait()
	for _, sentinel := range s.sentinels {
		waitReply(tb, sentinel, "a sentinel to know its peers", func(about string) bool {
			return strings.Contains(about, "num-slaves 2 ") && strings.Contains(about, "num-other-sentinels 2 ") &&
				strings.Contains(about, "flags master ")
		}, "SENTINEL", "MASTER", SentinelMaster)
	}
	return s
}

// startOrFail starts a server, or reports the error. It may be called from any
// goroutine.
func startOrFail(tb testing.TB, r *RedisServer) {
	if err := r.start(); err != nil {
		tb.Errorf("testkit: %v", err)
		return
	}
	tb.Cleanup(r.kill)
}

// newSentinel returns a sentinel that is not started, with its configuration file,
// in which it also keeps its state.
func newSentinel(tb testing.TB, master *RedisServer) *RedisServer {
	tb.Helper()
	dir := memoryDir(tb)
	file := filepath.Join(dir, "sentinel.conf")
	conf := fmt.Sprintf("sentinel monitor %[1]s 127.0.0.1 %[2]d 2\nsentinel down-after-milliseconds %[1]s 500\n"+
		"sentinel failover-timeout %[1]s 4000\nsentinel parallel-syncs %[1]s 2\n", SentinelMaster, master.port)
	if master.password != "" {
		conf += fmt.Sprintf("sentinel auth-pass %s %s\nrequirepass %[2]s\n", SentinelMaster, master.password)
	}
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		tb.Fatalf("testkit: write a sentinel's configuration: %v", err)
	}
	return &RedisServer{tb: tb, dir: dir, sentinel: file, password: master.password}
}

// memoryDir returns a directory that ends with the test, in memory where the machine
// has such a file system. A sentinel flushes its file at each step of an election, and
// on a disk that is busy with other tests each flush may take seconds.
func memoryDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", rootPrefix+"sentinel-")
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// waitReply repeats a command until good accepts its reply, for at most
// sentinelTimeout.
func waitReply(tb testing.TB, r *RedisServer, what string, good func(string) bool, args ...string) {
	tb.Helper()
	var answer string
	var err error
	for deadline := time.Now().Add(sentinelTimeout); time.Now().Before(deadline); {
		if answer, err = r.command(args...); err == nil && good(answer) {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	tb.Fatalf("testkit: waited for %s; the last answer was %q, %v", what, answer, err)
}

// URL returns redis+sentinel://host:port,host:port,host:port/master, with the
// password if there is one.
func (s *RedisSentinel) URL() string {
	var hosts []string
	for _, sentinel := range s.sentinels {
		hosts = append(hosts, sentinel.Addr())
	}
	where := strings.Join(hosts, ",") + "/" + SentinelMaster
	if s.password != "" {
		return "redis+sentinel://:" + s.password + "@" + where + "?sentinel_password=" + s.password
	}
	return "redis+sentinel://" + where
}

// Sentinels returns the three sentinels.
func (s *RedisSentinel) Sentinels() []*RedisServer { return s.sentinels }

// Master returns the server that is the master according to the last sentinel.
func (s *RedisSentinel) Master() *RedisServer {
	s.tb.Helper()
	return s.masterOf(s.sentinels[len(s.sentinels)-1])
}

func (s *RedisSentinel) masterOf(sentinel *RedisServer) *RedisServer {
	s.tb.Helper()
	host, port, _ := strings.Cut(sentinel.Do(s.tb, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SentinelMaster), " ")
	for _, r := range s.servers {
		if r.Addr() == net.JoinHostPort(host, port) {
			return r
		}
	}
	s.tb.Fatalf("testkit: the sentinels' master is at %s:%s, which is none of the servers", host, port)
	return nil
}

// KillMaster kills the master with SIGKILL and returns it. The sentinels promote
// another server within a few seconds; WaitMaster waits for it.
func (s *RedisSentinel) KillMaster() *RedisServer {
	s.tb.Helper()
	master := s.Master()
	master.Kill()
	return master
}

// Failover has a sentinel replace a healthy master, and returns the old one when
// all sentinels agree.
func (s *RedisSentinel) Failover() (old *RedisServer) {
	s.tb.Helper()
	old = s.Master()
	// The sentinel refuses until it has heard from the replicas.
	waitReply(s.tb, s.sentinels[0], "a failover to begin", func(a string) bool { return a == "OK" },
		"SENTINEL", "FAILOVER", SentinelMaster)
	s.WaitMaster(old)
	return old
}

// WaitMaster returns the new master, when all sentinels agree that it is not the
// old one and the new one reports that it is a master.
func (s *RedisSentinel) WaitMaster(old *RedisServer) *RedisServer {
	s.tb.Helper()
	for _, sentinel := range s.sentinels {
		waitReply(s.tb, sentinel, "another master", func(a string) bool {
			return a != "" && !strings.HasSuffix(a, " "+strconv.Itoa(old.port))
		}, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SentinelMaster)
	}
	master := s.Master()
	waitReply(s.tb, master, "the new master to be one", func(a string) bool {
		return strings.HasPrefix(a, "master ")
	}, "ROLE")
	return master
}
