package sharedstate

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"switchyard/internal/broker"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// Another program may write to our keys. Whatever it writes, only the calls that
// meet it fail, they log it once, and they work again when it is gone.
func TestForeignDataUnderOurKeys(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, withLongTimeout(redisAt(server.URL())), func(c *Config) { c.Prefix = "x:" })
	waitAllVisible(t, a, b)
	secret, s := a.New("ada")
	key := "x:s:" + string(s.ID)
	for _, other := range [][]string{
		{"LPUSH", key, "1"}, {"HSET", key, "a", "b"}, {"SET", key, ""}, {"SET", key, "short"},
		{"SET", key, strings.Repeat("\x00", 100)}, {"SET", key, "\x02" + strings.Repeat("a", 100)},
		{"SET", key, "\x01\x00\x00\x00\x01" + strings.Repeat("\xff", 100)},
	} {
		server.Do(t, "DEL", key)
		server.Do(t, other...)
		if _, ok, _ := b.Resume(testContext(t), secret, "ada"); ok {
			t.Errorf("%q was resumed as a session", other)
		}
		a.End(s)
	}
	server.Do(t, "DEL", key)
	server.Do(t, "LPUSH", key, "1")
	if got := a.trySave(t, s, false); got != message.SaveFailed {
		t.Errorf("a save over a list: %v", saveResults[got])
	}
	server.Do(t, "DEL", key)
	a.save(t, s)
	b.resume(t, secret, "ada")

	shard := fmt.Sprintf("x:{p%02d}:", shardOf("lobby"))
	for _, name := range []string{"who:lobby", "count:lobby", "tags"} {
		server.Do(t, "SET", shard+name, "something else")
		a.changePresence(message.PresenceJoined, "lobby", "ada")
		testkit.Eventually(t, name+" is refused", func() bool {
			return strings.Contains(a.logs.String(), "WRONGTYPE") && a.metric(t, "session_failures_total", "presence") > 0
		})
		server.Do(t, "DEL", shard+name)
		b.waitUsersIn(t, "lobby", "ada")
		a.changePresence(message.PresenceLeft, "lobby", "ada")
		b.waitUsersIn(t, "lobby", "")
	}
	server.Do(t, "HSET", shard+"who:lobby", "s-x", "no generation", "s-y", "", "s-z", "1 node-a~0")
	if got := a.usersIn(t, "lobby"); got != "" && got != "ada" { // s-z lacks a user, and counts as anonymous
		t.Errorf("foreign data became the members %q", got)
	}
	server.Do(t, "HSET", shard+"tags", "no tag", "5", "node-a~x", "seven", "~", "1")
	a.changePresence(message.PresenceJoined, "lobby", "bob")
	testkit.Eventually(t, "bob to be in the room nevertheless", func() bool { return strings.Contains(b.usersIn(t, "lobby"), "bob") })

	server.Do(t, "DEL", "x:{fleet}:bars")
	server.Do(t, "SET", "x:{fleet}:bars", "something else")
	if err := a.Ban(testContext(t), "eve", time.Hour); err == nil || errors.Is(err, message.ErrSharedStateUnavailable) {
		t.Errorf("a ban over foreign data: %v", err)
	}
	server.Do(t, "DEL", "x:{fleet}:bars")
	b.waitEvent(t, "about the ban", isBanEvent("eve"))
	testkit.Eventually(t, "the ban is in Redis", func() bool { return server.Do(t, "ZCARD", "x:{fleet}:bars") == "1" })
	if !a.Up() {
		t.Error("down")
	}
}

// Every form of REDIS_URL that docs/redis.md lists works.
func TestEveryFormOfTheRedisURL(t *testing.T) {
	t.Parallel()
	plain := testkit.StartRedis(t, "--requirepass", "p/ss?#@")
	secure := testkit.StartRedisTLS(t)
	for name, url := range map[string]string{
		"a password with special characters": "redis://:p%2Fss%3F%23%40@" + plain.Addr(),
		"a database":                         "redis://:p%2Fss%3F%23%40@" + plain.Addr() + "/7",
		"TLS": "rediss://" + secure.TLSAddr() + "?ca_file=" + secure.CAFile +
			"&cert_file=" + secure.CertFile + "&key_file=" + secure.KeyFile,
	} {
		t.Run(name, func(t *testing.T) {
			a, b := startPair(t, withLongTimeout(redisAt(url)), nil)
			moveOneSession(t, a, b)
		})
	}
	opts, _, err := broker.Options(broker.Config{URL: "rediss://" + secure.TLSAddr()})
	if err != nil {
		t.Fatal(err)
	}
	out := new(testkit.Logs)
	n, err := OpenRedis(Config{Node: "node-x", Redis: opts, Logger: out.Logger()})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(testContext(t))
	n.Start(Hooks{})
	testkit.Eventually(t, "the node refuses a certificate of an unknown authority", func() bool { return out.Count("certificate") > 0 })
	if n.Up() {
		t.Error("the node uses a server that it could not verify")
	}
}

// moveOneSession moves one session from one node to the other.
func moveOneSession(t *testing.T, a, b *testNode) {
	t.Helper()
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	if got := b.resume(t, secret, "ada"); len(got.Rooms) != 2 {
		t.Errorf("resumed as %+v", got)
	}
}

// Two services may share a Redis under two prefixes without seeing each other.
func TestTwoPrefixesAreIsolated(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	one := startNodes(t, redisAt(server.URL()), func(c *Config) { c.Prefix, c.timeout = "one:", testkit.Timeout }, "node-a")[0]
	two := startNodes(t, redisAt(server.URL()), func(c *Config) { c.Prefix, c.timeout = "two:", testkit.Timeout }, "node-a")[0]
	secret, s := one.New("ada")
	one.save(t, s)
	two.wantNoResume(t, "the other service's session", secret, "ada")
	one.changePresence(message.PresenceJoined, "lobby", "ada")
	two.changePresence(message.PresenceJoined, "lobby", "eve")
	if err := one.Ban(testContext(t), "eve", time.Hour); err != nil {
		t.Fatal(err)
	}
	one.waitUsersIn(t, "lobby", "ada")
	two.waitUsersIn(t, "lobby", "eve")
	began := time.Now()
	testkit.Eventually(t, "some heartbeats", func() bool { return time.Since(began) > 3*time.Second })
	if !one.seesNodes(1) || !two.seesNodes(1) || two.isBanned("eve") || two.countEvents(isBanEvent("eve")) > 0 {
		t.Errorf("the second service sees %v, eve banned %v", two.nodeNames(t), two.isBanned("eve"))
	}
	for key := range strings.FieldsSeq(server.Do(t, "KEYS", "*")) {
		if !strings.HasPrefix(key, "one:") && !strings.HasPrefix(key, "two:") {
			t.Errorf("the key %s has neither prefix", key)
		}
	}
}
