package testkit

import (
	"bufio"
	"net"
	"strings"
	"testing"
	"time"
)

func TestRedisIsSharedAndPrefixesAreNot(t *testing.T) {
	a, b := Redis(t), Redis(t)
	if a != b {
		t.Fatal("two calls started two servers")
	}
	one, two := RedisPrefix(), RedisPrefix()
	if one == two {
		t.Fatalf("two prefixes are both %q", one)
	}
	a.Do(t, "SET", one+"k", "v")
	if got := b.Do(t, "GET", one+"k"); got != "v" {
		t.Errorf("GET = %q", got)
	}
	a.Do(t, "RPUSH", one+"list", "x", "y")
	if got := a.Do(t, "LRANGE", one+"list", "0", "-1"); got != "x y" {
		t.Errorf("LRANGE = %q", got)
	}
}

func TestRedisComesBackEmptyAfterAKill(t *testing.T) {
	r := StartRedis(t, "--requirepass", "secret")
	if !strings.HasPrefix(r.URL(), "redis://:secret@127.0.0.1:") {
		t.Errorf("URL = %s", r.URL())
	}
	r.Do(t, "SET", "k", "v")
	r.Kill()
	if _, err := r.command("PING"); err == nil {
		t.Fatal("a killed server answers")
	}
	r.Restart()
	if got := r.Do(t, "DBSIZE"); got != "0" {
		t.Errorf("%s keys after a restart", got)
	}
}

func TestAPausedRedisAnswersAfterwards(t *testing.T) {
	r := StartRedis(t)
	conn, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r.Pause()
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Fatal("a paused server answers")
	}
	r.Resume()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "+PONG\r\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestTheSharedRedisCanNotBeKilled(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a test was able to kill the shared server")
		}
	}()
	Redis(t).Kill()
}

func TestSentinelsFailOver(t *testing.T) {
	t.Parallel()
	s := StartRedisSentinel(t)
	if !strings.HasPrefix(s.URL(), "redis+sentinel://127.0.0.1:") || !strings.HasSuffix(s.URL(), "/"+SentinelMaster) {
		t.Errorf("URL = %s", s.URL())
	}
	first := s.Failover()
	second := s.Master()
	if first == second {
		t.Fatal("the master is the same")
	}
	if killed := s.KillMaster(); killed != second {
		t.Errorf("killed %s, want %s", killed.Addr(), second.Addr())
	}
	if third := s.WaitMaster(second); third == second {
		t.Error("the killed server is still the master")
	}
}

func TestAClusterMovesASlot(t *testing.T) {
	t.Parallel()
	c := StartRedisCluster(t)
	slot := c.Slot("{b00}:x")
	from := c.Owner(slot)
	to := c.MoveSlot(slot)
	if from == to || c.Owner(slot) != to {
		t.Errorf("slot %d went from %s to %s, and is at %s", slot, from.Addr(), to.Addr(), c.Owner(slot).Addr())
	}
	if _, err := from.command("SPUBLISH", "{b00}:x", "hi"); err == nil || !strings.Contains(err.Error(), "MOVED") {
		t.Errorf("the old owner answers %v, want MOVED", err)
	}
	to.Do(t, "SPUBLISH", "{b00}:x", "hi")
}
