package broker

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func TestTheMasterDiesUnderTraffic(t *testing.T) {
	t.Parallel()
	s := testkit.StartRedisSentinel(t)
	a, b := openNode(t, Config{URL: s.URL()}), openNode(t, Config{URL: s.URL()})
	rooms := []message.Room{"one", "two"}
	b.mustSubscribe(t, rooms...)
	traffic := startStream(t, a, rooms...)
	waitForMore(t, b, rooms, 100)

	killed := s.KillMaster()
	died := time.Now()
	master := s.WaitMaster(killed)
	elected := time.Now()
	waitForMore(t, b, rooms, 1)
	t.Logf("a new master after %v, traffic %v later", elected.Sub(died).Round(time.Millisecond), time.Since(elected).Round(time.Millisecond))
	waitForMore(t, b, rooms, 250)
	traffic.stopAndWait(t, b)
	for _, room := range rooms {
		c := traffic.stats(t, b, room)
		t.Logf("%s: %v", room, c)
		if c.duplicated > 0 || c.reordered > 0 {
			t.Errorf("%s: %d duplicates, %d reordered", room, c.duplicated, c.reordered)
		}
	}
	// A new subscription is made at the new master.
	b.mustSubscribe(t, "after")
	if got := master.Do(t, "PUBSUB", "NUMSUB", "sy:after"); got != "sy:after 1" {
		t.Errorf("the new master has %q", got)
	}
}

// The old master lives, answers each ping, and still believes that it is the
// master: sentinels cut its connections and demote it with the command CLIENT,
// which is renamed here.
func TestAReplacedMasterIsAbandoned(t *testing.T) {
	t.Parallel()
	s := testkit.StartRedisSentinel(t, "--rename-command", "CLIENT", "XCLIENT")
	for _, sentinel := range s.Sentinels() { // the permissions in docs/redis.md
		sentinel.Do(t, "ACL", "SETUSER", "watch", "on", ">hunter2", "&+switch-master",
			"+sentinel|get-master-addr-by-name", "+sentinel|master", "+subscribe", "+ping")
	}
	url := s.URL() + "?sentinel_username=watch&sentinel_password=hunter2"
	// Without polling, only the sentinels' announcement makes a node follow.
	a, b := openNodeWithoutPolling(t, url), openNodeWithoutPolling(t, url)
	b.mustSubscribe(t, "r")
	for _, sentinel := range s.Sentinels() {
		testkit.Eventually(t, "both to listen to each sentinel", func() bool {
			return strings.Count(sentinel.Do(t, "CLIENT", "LIST", "TYPE", "pubsub"), " sub=1 ") >= 2
		})
	}
	traffic := startStream(t, a, "r")
	waitForMore(t, b, traffic.rooms, 100)
	old := s.Failover()
	testkit.Eventually(t, "the new master to have the subscription", func() bool {
		return s.Master().Do(t, "PUBSUB", "NUMSUB", "sy:r") == "sy:r 1"
	})
	waitForMore(t, b, traffic.rooms, 250)
	traffic.stopAndWait(t, b)
	if role := old.Do(t, "ROLE"); !strings.HasPrefix(role, "master") {
		t.Errorf("the old master was demoted, so the test proves nothing: %s", role)
	}
	if got := old.Do(t, "PUBSUB", "NUMSUB", "sy:r"); got != "sy:r 0" {
		t.Errorf("the old master still has %q", got)
	}
	c := traffic.stats(t, b, "r")
	t.Log(c)
	if c.duplicated > 0 {
		t.Errorf("%d duplicates", c.duplicated)
	}
}

// Two sentinels of three are enough. Without any, the open connections
// continue.
func TestSentinelsAreLost(t *testing.T) {
	t.Parallel()
	s := testkit.StartRedisSentinel(t)
	sentinels := s.Sentinels()
	sentinels[0].Kill()
	n := openNode(t, Config{URL: s.URL()})
	n.mustSubscribe(t, "r")
	publishUntilReceived(t, n, n, "r", "by two")
	for _, sentinel := range sentinels[1:] {
		sentinel.Kill()
	}
	began := time.Now()
	testkit.Eventually(t, "some polls to fail", func() bool { return time.Since(began) > 2*sentinelRefreshEvery })
	publishUntilReceived(t, n, n, "r", "by none")
	if got := n.metric(t, "broker_reconnects_total", ""); got != 0 || !n.Up() {
		t.Errorf("%v reconnects, up %v", got, n.Up())
	}
	var out testkit.Logs
	late := openNode(t, Config{URL: s.URL(), Logger: out.Logger()})
	if err := late.Subscribe(testkit.Within(t, testkit.Timeout), "r"); !errors.Is(err, ErrDown) {
		t.Errorf("Subscribe = %v, want ErrDown", err)
	}
	testkit.Eventually(t, "the log to name the sentinels", func() bool {
		return strings.Contains(out.String(), "query sentinel "+sentinels[0].Addr())
	})
	for _, sentinel := range sentinels {
		sentinel.Restart()
	}
	publishUntilReceived(t, n, late, "r", "by all")
}

func TestAnUnknownMasterIsReported(t *testing.T) {
	t.Parallel()
	s := testkit.StartRedisSentinel(t, "--requirepass", "hunter2")
	for url, want := range map[string]string{
		strings.Replace(s.URL(), "/"+testkit.SentinelMaster, "/other", 1): "knows no master named other",
		strings.Replace(s.URL(), "sentinel_password=hunter2", "", 1):      "NOAUTH",
		strings.Replace(s.URL(), ":hunter2@", ":hunter3@", 1):             "WRONGPASS",
	} {
		var out testkit.Logs
		n := openNode(t, Config{URL: url, Logger: out.Logger()})
		if err := n.Subscribe(testkit.Within(t, testkit.Timeout), "r"); !errors.Is(err, ErrDown) {
			t.Errorf("Subscribe = %v, want ErrDown", err)
		}
		testkit.Eventually(t, "a line that says "+want, func() bool { return strings.Contains(out.String(), want) })
		if strings.Contains(out.String(), "hunter") {
			t.Errorf("the log shows the password:\n%s", out.String())
		}
	}
}

// staleSentinel answers like a sentinel whose configuration has this master
// port and config-epoch.
func staleSentinel(t *testing.T, port, epoch string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			for read := ""; !strings.Contains(read, "\r\nmaster\r\n"); { // the second command
				n, err := conn.Read(buf)
				if read += string(buf[:n]); err != nil {
					break
				}
				if strings.Contains(string(buf[:n]), "hello") {
					fmt.Fprint(conn, "-ERR unknown command\r\n")
				}
			}
			fmt.Fprintf(conn, "*2\r\n+127.0.0.1\r\n+%s\r\n*2\r\n+config-epoch\r\n+%s\r\n", port, epoch)
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

// A sentinel that is partitioned from the others still names the old master.
func TestTheNewestSentinelConfigurationWins(t *testing.T) {
	old, young, dead := staleSentinel(t, "1", "7"), staleSentinel(t, "2", "8"), "127.0.0.1:1"
	for _, hosts := range []string{old + "," + young, young + "," + old, dead + "," + young + "," + old} {
		p, err := parseURL("redis+sentinel://" + hosts + "/m")
		if err != nil {
			t.Fatal(err)
		}
		found, err := newSentinels(p).discover(t.Context(), nil)
		if err != nil || found(0) != "127.0.0.1:2" {
			t.Errorf("%s: %v, %v", hosts, found, err)
		}
	}
}
