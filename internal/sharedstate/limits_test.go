package sharedstate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

var testRates = Rates{Calls: 50, CallBurst: 100, Bytes: 10_000}

// startMemoryNodes starts nodes that share a MemoryBackend, in a bubble of
// synctest.
func startMemoryNodes(t *testing.T, count int, change func(*Config)) []*testNode {
	t.Helper()
	return startMemoryNodesWith(t, count, change, func(*Node) {})
}

// startMemoryNodesWith does what startMemoryNodes does, and calls prepare before
// each node starts.
func startMemoryNodesWith(t *testing.T, count int, change func(*Config), prepare func(*Node)) []*testNode {
	t.Helper()
	var shared MemoryBackend
	var peers []*testNode
	for i := range count {
		p := &testNode{reg: prometheus.NewRegistry(), logs: new(testkit.Logs)}
		cfg := Config{Node: fmt.Sprintf("node-%d", i), Registerer: p.reg, Logger: p.logs.Logger()}
		if change != nil {
			change(&cfg)
		}
		n, err := NewMemory(&shared, cfg)
		if err != nil {
			t.Fatal(err)
		}
		p.Node = n
		prepare(n)
		n.Start(Hooks{Status: p.reportStatus, Notify: p.onEvent})
		peers = append(peers, p)
	}
	t.Cleanup(func() {
		for _, p := range peers {
			_ = p.Close(context.Background())
		}
	})
	return peers
}

func withRates(r Rates) func(*Config) { return func(c *Config) { c.Rates = r } }

// publishBurst tries to publish several times at once, and returns how many
// publishes were allowed.
func (p *testNode) publishBurst(user string, tries int) (count int) {
	for range tries {
		if p.AllowPublish(user, 1) == 0 {
			count++
		}
	}
	return count
}

// publishFor tries to publish at regular times, each time on the node that choose
// returns, and returns how many publishes were allowed.
func publishFor(d, every time.Duration, peers []*testNode, choose func(try int) int) (count int) {
	for try := 0; time.Duration(try)*every < d; try++ {
		if peers[choose(try)].AllowPublish("ada", 10) == 0 {
			count++
		}
		time.Sleep(every)
	}
	return count
}

func TestAUserOnOneNodeGetsTheRateExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 1, withRates(testRates))
		for range 100 {
			if wait := peers[0].AllowPublish("ada", 10); wait != 0 {
				t.Fatalf("refused within the burst: %v", wait)
			}
		}
		wait := peers[0].AllowPublish("ada", 10)
		if wait != 20*time.Millisecond {
			t.Errorf("the wait is %v, want 20ms", wait)
		}
		time.Sleep(wait)
		if wait := peers[0].AllowPublish("ada", 10); wait != 0 {
			t.Errorf("refused after the wait: %v", wait)
		}
		got := publishFor(10*time.Second, 5*time.Millisecond, peers, func(int) int { return 0 })
		if got < 495 || got > 505 {
			t.Errorf("%d publishes in 10 s, want 500", got)
		}
		if got := peers[0].metric(t, "limits_refused_total", ""); got < 1000 {
			t.Errorf("%v counted as refused", got)
		}
	})
}

func TestBytesAreBoundedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startMemoryNodes(t, 1, withRates(testRates))[0]
		if wait := p.AllowPublish("ada", 15_000); wait != 0 {
			t.Errorf("refused within the burst: %v", wait)
		}
		if wait := p.AllowPublish("ada", 10_000); wait != 500*time.Millisecond {
			t.Errorf("the wait is %v, want 500ms", wait)
		}
		// A refused publish charges nothing.
		if got := p.publishBurst("ada", 120); got != 99 {
			t.Errorf("%d publishes are left, want 99 of 100", got)
		}
		// A publish that is larger than the burst needs a full bucket.
		time.Sleep(5 * time.Second)
		if wait := p.AllowPublish("ada", 50_000); wait != 0 {
			t.Errorf("a large publish on a full bucket waits %v", wait)
		}
		if wait := p.AllowPublish("ada", 1); wait < 2*time.Second {
			t.Errorf("the next publish waits %v, want the time of the debt", wait)
		}
	})
}

// docs/shared-state.md states the bound: over n nodes a user may publish at most
// burst + rate·t + (n-1)·(burst + rate·T), in whichever way it uses the nodes.
func TestTheSumOverNodesIsBounded(t *testing.T) {
	const d = 60 * time.Second
	for _, nodes := range []int{2, 5} {
		for name, choose := range map[string]func(try int) int{
			"on all nodes at once": func(try int) int { return try % nodes },
			"on one node after the other": func(try int) int {
				return try / 1000 % nodes // 2 s on each
			},
			"on another node when the last one has evicted the user": func(try int) int { return try / 5000 % nodes },
		} {
			t.Run(fmt.Sprintf("%d nodes, %s", nodes, name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					peers := startMemoryNodes(t, nodes, withRates(Rates{Calls: 50, CallBurst: 100}))
					got := publishFor(d, 2*time.Millisecond, peers, choose)
					r := peers[0].publishLimits.rates[measureCalls]
					own := r.burst + r.perSecond*d.Seconds()
					most := own + float64(nodes-1)*(r.burst+r.perSecond*syncInterval.Seconds())
					t.Logf("%d publishes; %v on one node, %v at most", got, own, most)
					if float64(got) > most+1 {
						t.Errorf("%d publishes, want at most %v", got, most)
					}
					if float64(got) < 0.9*r.perSecond*d.Seconds() {
						t.Errorf("%d publishes are far less than the rate", got)
					}
					// From then on the rate holds, except for the usage between two syncs.
					later := publishFor(d, 2*time.Millisecond, peers, choose)
					if most := r.perSecond*d.Seconds() + float64(nodes)*(r.perSecond*syncInterval.Seconds()+r.burst/syncFraction); float64(later) > most {
						t.Errorf("%d publishes in the next minute, want at most %v", later, most)
					}
				})
			})
		}
	}
}

// Users who publish little are synced rarely.
func TestLightUsageIsSyncedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startMemoryNodes(t, 2, withRates(Rates{Calls: 50, CallBurst: 100}))[0]
		queued := 0
		count := func() {
			for i := range p.publishLimits.shards {
				p.publishLimits.shards[i].mu.Lock()
				queued += len(p.publishLimits.shards[i].queue)
				p.publishLimits.shards[i].mu.Unlock()
			}
		}
		for range 600 { // one publish a second, for ten minutes
			p.AllowPublish("ada", 10)
			count()
			time.Sleep(time.Second)
		}
		if most := 600*syncFraction/100 + 2; queued > most {
			t.Errorf("600 publishes were synced %d times, want %d at most", queued, most)
		}
	})
}

func TestIdleUsersAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startMemoryNodes(t, 1, withRates(testRates))[0]
		for i := range 2000 {
			p.publishBurst(fmt.Sprintf("u%d", i), 15)
		}
		time.Sleep(4 * time.Second) // until each shard was checked
		if got := p.metric(t, "limits_users", ""); got == 0 {
			t.Error("users are not counted")
		}
		time.Sleep(30 * time.Second)
		if got := p.metric(t, "limits_users", ""); got != 0 {
			t.Errorf("%v users are counted after half a minute", got)
		}
		// The backend evicts them with later calls.
		m := p.backend.(*nodeView)
		for i := range 3000 {
			p.publishBurst(fmt.Sprintf("v%d", i), 15)
		}
		time.Sleep(time.Minute)
		for i := range 3000 {
			p.publishBurst(fmt.Sprintf("w%d", i), 15)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Minute)
		p.publishBurst("ada", 90)
		time.Sleep(time.Second)
		m.mu.Lock()
		defer m.mu.Unlock()
		if got := len(m.buckets); got > 3500 {
			t.Errorf("the backend has buckets of %d among 8,001 users", got)
		}
	})
}

func TestUsersBeyondTheBoundAreNotLimited(t *testing.T) {
	p := startMemoryNodes(t, 1, withRates(Rates{Calls: 0.001, CallBurst: 1}))[0]
	if got := p.publishLimits.maxUsers * limitShards; got != 200_000 {
		t.Errorf("%d users are counted, the documented bound is 200,000", got)
	}
	const most, users = 50 * limitShards, 2000
	p.publishLimits.maxUsers = most / limitShards
	refused := 0
	for i := range users {
		user := fmt.Sprintf("u%d", i)
		p.AllowPublish(user, 1)
		if p.AllowPublish(user, 1) > 0 {
			refused++
		}
	}
	dropped := p.metric(t, "session_dropped_total", "users_full") / 2
	if refused != most || float64(refused)+dropped != users {
		t.Errorf("%d users are limited, %v are not", refused, dropped)
	}
}

func TestDisabledRatesAndAnonymousUsersAreNotLimited(t *testing.T) {
	off := startMemoryNodes(t, 1, nil)[0]
	some := startMemoryNodes(t, 1, withRates(Rates{Calls: 1, CallBurst: 1}))[0]
	invalid := startMemoryNodes(t, 1, withRates(Rates{Calls: math.NaN(), Bytes: -3, CallBurst: math.Inf(1)}))[0]
	for range 1000 {
		if off.AllowPublish("ada", 1<<20) != 0 || some.AllowPublish("", 1<<20) != 0 || invalid.AllowPublish("ada", 1<<20) != 0 {
			t.Fatal("refused")
		}
	}
	some.AllowPublish("ada", 1<<30)
	if some.AllowPublish("ada", 0) == 0 {
		t.Error("the rate of publishes does not hold if there is no rate of bytes")
	}
	if some.AllowPublish("bob", 0) != 0 {
		t.Error("a user pays for another one")
	}
}

// aLimitHoldsAcrossNodes checks the bound on each backend. On Redis the time
// between two syncs depends on the machine, so the bound is generous.
func aLimitHoldsAcrossNodes(t *testing.T, factory backendFactory) {
	peers := startNodes(t, factory, withRates(Rates{Calls: 100, CallBurst: 50}), "node-a", "node-b", "node-c")
	began := time.Now()
	got, tries := 0, 0
	testkit.Eventually(t, "four seconds of publishes", func() bool {
		for range 20 {
			tries++
			if peers[tries%3].AllowPublish("ada", 1) == 0 {
				got++
			}
		}
		return time.Since(began) > 4*time.Second
	})
	took := time.Since(began).Seconds()
	alone, most := 50+100*took, 50+100*took+2*(50+100*2*time.Second.Seconds())
	t.Logf("%d of %d in %.1f s; %.0f on one node, %.0f without syncs", got, tries, took, alone, 3*alone)
	if float64(got) > most {
		t.Errorf("%d publishes, want at most %.0f", got, most)
	}
	// The other nodes learn what a user spends on one.
	peers[0].publishBurst("bob", 50)
	testkit.Eventually(t, "another node limits bob", func() bool {
		peers[0].publishBurst("bob", 50)
		return peers[1].publishBurst("bob", 40) < 40 || peers[2].publishBurst("bob", 40) < 40
	})
}

// While Redis is down each node limits by itself, and users do not pay for that
// afterwards.
func TestLimitsWhileRedisIsDown(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	rates := Rates{Calls: 200, CallBurst: 100}
	a, b := startPair(t, redisAt(server.URL()), withRates(rates))
	a.publishBurst("ada", 90)
	testkit.Eventually(t, "the usage is synced", func() bool {
		return server.Do(t, "EXISTS", a.cfg.Prefix+"l:ada") == "1"
	})
	server.Kill()
	testkit.Eventually(t, "the nodes notice", func() bool { return !a.Up() && !b.Up() })
	began, got := time.Now(), [2]int{}
	testkit.Eventually(t, "three seconds of publishes", func() bool {
		for i, p := range []*testNode{a, b} {
			for range 20 {
				if p.AllowPublish("ada", 1) == 0 {
					got[i]++
				}
			}
		}
		return time.Since(began) > 3*time.Second
	})
	alone := 100 + 200*time.Since(began).Seconds()
	for i, n := range got {
		if float64(n) > alone+1 || float64(n) < 300 {
			t.Errorf("node %d allowed %d publishes by itself, want 300 to %.0f", i, n, alone)
		}
	}
	server.Restart()
	testkit.Eventually(t, "Redis is back", func() bool { return a.Up() && b.Up() })
	for i, p := range []*testNode{a, b} {
		if wait := p.AllowPublish("ada", 1); wait > 2*time.Second {
			t.Errorf("node %d makes the user wait for %v after the outage", i, wait)
		}
	}
	if got := a.metric(t, "session_failures_total", "limits"); got > 20 {
		t.Errorf("%v failed round trips in some seconds", got)
	}
	a.wantOutagesLoggedOnce(t, 1)
}

// Limits work by themselves if Redis is full, or has foreign data under our key.
func TestLimitsWhenRedisRefuses(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, _ := startPair(t, withLongTimeout(redisAt(server.URL())), withRates(Rates{Calls: 10, CallBurst: 10}))
	server.Do(t, "SET", a.cfg.Prefix+"l:eve", "not a hash")
	server.Do(t, "CONFIG", "SET", "maxmemory", "1")
	spend := func(user string) (got int) {
		for range 30 {
			if a.AllowPublish(user, 1) == 0 {
				got++
			}
		}
		return got
	}
	if got := spend("ada") + spend("eve"); got < 20 || got > 40 {
		t.Errorf("%d publishes were allowed, want 20 to 40", got)
	}
	testkit.Eventually(t, "the refusal is logged", func() bool {
		spend("ada")
		return a.logs.Count("operation=limits") == 1
	})
	server.Do(t, "CONFIG", "SET", "maxmemory", "0")
	testkit.Eventually(t, "ada's usage is synced again", func() bool {
		spend("ada")
		return server.Do(t, "EXISTS", a.cfg.Prefix+"l:ada") == "1"
	})
	if _, err := readLevels([]any{"1", "x"}); err == nil {
		t.Error("readLevels accepts a level that is not a number")
	}
	if _, err := readLevels(nil); err == nil || errors.Is(err, message.ErrSharedStateUnavailable) {
		t.Errorf("an empty reply: %v", err)
	}
}

// What users read is counted apart from what they publish, and the bytes of a read after it
// was made: the debt is paid by what follows, on every node.
func TestReadsAreLimitedOverAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers := startMemoryNodes(t, 2, func(c *Config) {
			c.Rates, c.ReadRates = testRates, Rates{Calls: 50, CallBurst: 100, Bytes: 1000, ByteBurst: 2000}
		})
		a, b := peers[0], peers[1]
		for range 100 {
			if wait := a.AllowRead("u:ada"); wait != 0 {
				t.Fatalf("refused within the burst: %v", wait)
			}
		}
		if wait := a.AllowRead("u:ada"); wait != 20*time.Millisecond {
			t.Errorf("over the burst: wait %v, want 20ms", wait)
		}
		if wait := a.AllowPublish("ada", 1); wait != 0 {
			t.Errorf("reads used up publishes: wait %v", wait)
		}
		if wait := a.AllowRead("u:eve"); wait != 0 {
			t.Errorf("another reader waits %v", wait)
		}
		time.Sleep(10 * time.Second) // all is there again
		a.ChargeRead("u:ada", 5000)
		if wait := a.ReadDebt("u:ada"); wait != 3*time.Second {
			t.Errorf("3,000 bytes over the burst are paid after %v, want 3s", wait)
		}
		if wait := a.AllowRead("u:ada"); wait != 3*time.Second {
			t.Errorf("the next read waits %v, want 3s", wait)
		}
		time.Sleep(syncInterval + time.Millisecond) // a is synced
		for range 60 {                              // b asks, because so much was read
			_ = b.AllowRead("u:ada")
		}
		time.Sleep(syncInterval)
		if wait := b.ReadDebt("u:ada"); wait < 2*time.Second || wait > 3*time.Second {
			t.Errorf("on another node the debt is paid after %v", wait)
		}
		if wait := a.AllowRead(""); wait != 0 {
			t.Errorf("who is not counted waits %v", wait)
		}
	})
}

// Publishes and reads have rates of their own, also where idle buckets are removed.
func TestASweepKeepsTheRatesOfEachLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startMemoryNodes(t, 1, func(c *Config) {
			c.Rates, c.ReadRates = Rates{Calls: 1, CallBurst: 1000}, Rates{Calls: 100, CallBurst: 1000}
		})[0]
		for range 900 {
			_ = a.AllowPublish("ada", 1)
		}
		time.Sleep(10*time.Second + syncInterval)
		view, _ := a.backend.(*nodeView)
		view.mu.Lock()
		view.bucketsAtSweep = 0 // the next call removes idle buckets
		view.mu.Unlock()
		for range 900 {
			_ = a.AllowRead("u:ada")
		}
		time.Sleep(2 * syncInterval)
		for range 60 { // so many that the next answer of the backend counts
			_ = a.AllowPublish("ada", 1)
		}
		time.Sleep(2 * syncInterval)
		left := 0
		for a.AllowPublish("ada", 1) == 0 {
			left++
		}
		if left < 40 || left > 60 {
			t.Errorf("%d publishes are left, want about 50: those of eleven seconds, less what was published", left)
		}
	})
}
