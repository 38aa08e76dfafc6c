package sharedstate

import (
	"strconv"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// ttlOf returns in how long a key expires.
func ttlOf(t *testing.T, server *testkit.RedisServer, key string) time.Duration {
	t.Helper()
	text := server.Do(t, "PTTL", key)
	ms, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("PTTL of %s is %q", key, text)
	}
	return time.Duration(ms) * time.Millisecond
}

// A session is kept for the TTL after each save, touch and takeover.
func TestSavesTouchesAndTakeoversRenewASession(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, withLongTimeout(redisAt(server.URL())), func(c *Config) { c.TTL = time.Hour })
	secret, s := a.New("ada")
	s = withTwoRooms(s)
	a.save(t, s)
	key := a.cfg.Prefix + "s:" + string(s.ID)
	for _, renewal := range []struct {
		name string
		do   func()
	}{
		{"a save", func() { a.save(t, withTwoRooms(s)) }},
		{"a touch", func() {
			if got := a.trySave(t, withTwoRooms(s), true); got != message.SaveDone {
				t.Errorf("touch: %v", saveResults[got])
			}
		}},
		{"a takeover", func() { b.resume(t, secret, "ada") }},
	} {
		server.Do(t, "PEXPIRE", key, "600000")
		renewal.do()
		if got := ttlOf(t, server, key); got <= 10*time.Minute || got > time.Hour {
			t.Errorf("after %s the session is kept for %v, want about an hour", renewal.name, got)
		}
	}
}

// A bucket in Redis expires a second after it would be full again: earlier would
// forgive a debt, and later would take memory for nothing.
func TestABucketExpiresWhenItIsFull(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	p := startNodes(t, withLongTimeout(redisAt(server.URL())), nil, "node-a")[0]
	rates := Rates{Calls: 0.1, CallBurst: 10}.byMeasure()
	spent := &usage{key: "l:ada", spent: [measureCount]float64{measureCalls: 12}}
	if p.backend.consume(testContext(t), rates, []*usage{spent}); spent.err != nil {
		t.Fatal(spent.err)
	}
	// The level is -2, and 12 publishes take two minutes.
	if got := ttlOf(t, server, p.cfg.Prefix+"l:ada"); got <= time.Minute || got > 121*time.Second {
		t.Errorf("the bucket expires in %v, want 121 s", got)
	}
}
