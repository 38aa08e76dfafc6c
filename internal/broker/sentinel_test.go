package broker

import (
	"errors"
	"fmt"
	"log/slog"
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
	t.Logf("a master in %v, traffic %v later", elected.Sub(died).Round(time.Millisecond), time.Since(elected).Round(time.Millisecond))
	waitForMore(t, b, rooms, 250)
	traffic.stopAndWait(t, b)
	for _, room := range rooms {
		c := traffic.stats(t, b, room)
		t.Logf("%s: %v", room, c)
		if c.duplicated > 0 || c.reordered > 0 {
			t.Errorf("%s: %d doubled, %d swapped", room, c.duplicated, c.reordered)
		}
	}
	// A room joined now is joined at the new master.
	b.mustSubscribe(t, "after")
	if got := master.Do(t, "PUBSUB", "NUMSUB", "sy:after"); got != "sy:after 1" {
		t.Errorf("the new master has %q", got)
	}
}

// The old master lives, answers each ping, and even takes itself for a master:
// CLIENT is away there, with which sentinels cut its connections as they
// demote it, so that they can't.
func TestAReplacedMasterIsAbandoned(t *testing.T) {
	t.Parallel()
	s := testkit.StartRedisSentinel(t, "--rename-command", "CLIENT", "XCLIENT")
	for _, sentinel := range s.Sentinels() { // what docs/redis.md says is enough
		sentinel.Do(t, "ACL", "SETUSER", "watch", "on", ">hunter2", "&+switch-master",
			"+sentinel|get-master-addr-by-name", "+sentinel|master", "+subscribe", "+ping")
	}
	url := s.URL() + "?sentinel_username=watch&sentinel_password=hunter2"
	a, b := openNode(t, Config{URL: url}), openNode(t, Config{URL: url})
	b.mustSubscribe(t, "r")
	for _, sentinel := range s.Sentinels() {
		eventually(t, "both to listen to each sentinel", func() bool {
			return strings.Count(sentinel.Do(t, "CLIENT", "LIST", "TYPE", "pubsub"), " sub=1 ") >= 2
		})
	}
	traffic := startStream(t, a, "r")
	waitForMore(t, b, traffic.rooms, 100)
	old := s.Failover()
	eventually(t, "the new master to have the subscription", func() bool {
		return s.Master().Do(t, "PUBSUB", "NUMSUB", "sy:r") == "sy:r 1"
	})
	waitForMore(t, b, traffic.rooms, 250)
	traffic.stopAndWait(t, b)
	if role := old.Do(t, "ROLE"); !strings.HasPrefix(role, "master") {
		t.Errorf("the old master was demoted after all, which proves nothing: %s", role)
	}
	if got := old.Do(t, "PUBSUB", "NUMSUB", "sy:r"); got != "sy:r 0" {
		t.Errorf("the old master still has %q", got)
	}
	c := traffic.stats(t, b, "r")
	t.Log(c)
	if c.duplicated > 0 || c.pause > 2*time.Second {
		t.Errorf("%d doubled, %v without a message", c.duplicated, c.pause)
	}
}

// One sentinel of three is gone: the others do. All are: nobody is asked, and
// the connections that there are go on.
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
	eventually(t, "some polls to fail", func() bool { return time.Since(began) > 2*sentinelRefreshEvery })
	publishUntilReceived(t, n, n, "r", "by none")
	if got := n.metric(t, "broker_reconnects_total", ""); got != 0 || !n.Up() {
		t.Errorf("%v reconnects, up %v", got, n.Up())
	}
	var out logBuffer
	late := openNode(t, Config{URL: s.URL(), Logger: slog.New(slog.NewTextHandler(&out, nil))})
	if err := late.Subscribe(within(t, testTimeout), "r"); !errors.Is(err, ErrDown) {
		t.Errorf("Subscribe = %v, want ErrDown", err)
	}
	eventually(t, "the log to say who was asked", func() bool {
		return strings.Contains(out.String(), "ask sentinel "+sentinels[0].Addr())
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
		var out logBuffer
		n := openNode(t, Config{URL: url, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		if err := n.Subscribe(within(t, testTimeout), "r"); !errors.Is(err, ErrDown) {
			t.Errorf("Subscribe = %v, want ErrDown", err)
		}
		eventually(t, "a line that says "+want, func() bool { return strings.Contains(out.String(), want) })
		if strings.Contains(out.String(), "hunter") {
			t.Errorf("the log shows the password:\n%s", out.String())
		}
	}
}

// staleSentinel answers like a sentinel whose master is at port, as of epoch.
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

// A sentinel that was cut off from the others still names the old master.
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
