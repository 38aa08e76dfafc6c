package sharedstate

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// TestPresenceRecoversFromRedisFaults: whatever happens to Redis, some
// seconds later everybody sees who is there, and nobody else.
func TestPresenceRecoversFromRedisFaults(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	a, b := startPair(t, redisAt("redis://"+proxy.Addr()), nil)
	waitAllVisible(t, a, b)
	a.changePresence(message.PresenceJoined, "lobby", "ada", "bob")
	b.changePresence(message.PresenceJoined, "lobby", "cyd")
	a.changePresence(message.PresenceJoined, "den", "ada")
	b.waitUsersIn(t, "lobby", "ada bob cyd")
	for i, fault := range []struct {
		name     string
		do, undo func()
	}{
		{"cut", func() { proxy.Refuse(true); proxy.Cut() }, func() { proxy.Refuse(false) }},
		{"stalled", proxy.Stall, proxy.Resume},
		{"killed and empty", server.Kill, server.Restart},
		{"flushed", func() { server.Do(t, "FLUSHALL") }, func() {}},
		{"full", func() { server.Do(t, "CONFIG", "SET", "maxmemory", "1") }, func() { server.Do(t, "CONFIG", "SET", "maxmemory", "0") }},
	} {
		fault.do()
		// Somebody leaves and somebody comes meanwhile.
		joined := fmt.Sprintf("dee%d", i)
		a.changePresence(message.PresenceLeft, "lobby", "bob")
		b.changePresence(message.PresenceJoined, "lobby", joined)
		if fault.name != "flushed" && fault.name != "full" {
			eventually(t, fault.name+": presence to be unknown", func() bool {
				_, err := a.Room(within(t, testTimeout), "lobby", 10)
				return err != nil
			})
		}
		fault.undo()
		a.waitUsersIn(t, "lobby", "ada cyd "+joined)
		b.waitUsersIn(t, "lobby", "ada cyd "+joined)
		b.waitUsersIn(t, "den", "ada")
		a.changePresence(message.PresenceJoined, "lobby", "bob")
		b.changePresence(message.PresenceLeft, "lobby", joined)
		b.waitUsersIn(t, "lobby", "ada bob cyd")
	}
	if got := a.metric(t, "presence_resyncs_total", ""); got < 2 {
		t.Errorf("%v shards told anew; Redis was empty twice", got)
	}
}

// A failover loses what was written last: here, as if the new master had never
// heard of one leave and one join.
func TestPresenceAfterRedisLostItsLastWrites(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	a, b := startPair(t, redisAt(server.URL()), func(c *Config) { c.Prefix = "x:" })
	waitAllVisible(t, a, b)
	a.changePresence(message.PresenceJoined, "lobby", "ada", "bob")
	b.waitUsersIn(t, "lobby", "ada bob")
	shard := fmt.Sprintf("x:{p%02d}:", shardOf("lobby"))
	var keys []string
	for _, name := range []string{"tags", "rooms:node-a~0", "who:lobby", "count:lobby"} {
		keys = append(keys, shard+name)
		server.Do(t, "COPY", shard+name, "copy:"+name)
	}
	a.changePresence(message.PresenceLeft, "lobby", "bob")
	a.changePresence(message.PresenceJoined, "lobby", "cyd")
	b.waitUsersIn(t, "lobby", "ada cyd")
	for _, key := range keys {
		server.Do(t, "COPY", "copy:"+strings.TrimPrefix(key, shard), key, "REPLACE")
	}
	b.waitUsersIn(t, "lobby", "ada cyd")
	eventually(t, "the old tag to be swept", func() bool {
		return server.Do(t, "HKEYS", shard+"tags") == "node-a~1" && server.Do(t, "EXISTS", shard+"rooms:node-a~0") == "0"
	})
	if got := server.Do(t, "HGETALL", shard+"count:lobby"); got != "node-a~1 2" {
		t.Errorf("counted as %q", got)
	}
}

// A round trip that was stuck for a while and arrives after later ones must
// change nothing.
func TestADelayedBatchIsRefused(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]backendFactory{
		"memory": memoryFactory, "redis": redisFactory(func(t *testing.T) string { return testkit.Redis(t).URL() }),
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := startPair(t, withLongTimeout(h), nil)
			joined := entryChange{entryKey{"lobby", "s-ada"}, "ada", 1, true}
			left := joined
			left.present = false
			send := func(low, revision int64, c entryChange) *presenceBatch {
				l := &presenceBatch{shard: shardOf("lobby"), tag: "node-x~0", minRevision: low, revision: revision, changes: []entryChange{c}}
				a.backend.applyPresence(within(t, testTimeout), []*presenceBatch{l})
				if l.err != nil {
					t.Fatal(l.err)
				}
				return l
			}
			if l := send(0, 1, joined); l.lost || !reflect.DeepEqual(l.changedRooms, []message.Room{"lobby"}) {
				t.Errorf("the first: %+v", l)
			}
			if l := send(0, 1, joined); l.lost || l.changedRooms != nil { // its answer was lost
				t.Errorf("the first again: %+v", l)
			}
			// The second one is stuck, and sent again with the third.
			if l := send(1, 3, left); l.lost || len(l.changedRooms) != 1 {
				t.Errorf("the third: %+v", l)
			}
			if l := send(1, 2, joined); !l.lost {
				t.Errorf("the second, late: %+v", l)
			}
			if l := send(7, 8, joined); !l.lost {
				t.Errorf("one after a loss: %+v", l)
			}
			got, err := a.backend.roomPresence(within(t, testTimeout), "lobby", map[string]bool{"node-x": true}, 10)
			if err != nil || got.Count != 0 {
				t.Errorf("in the room: %+v, %v", got, err)
			}
			// Once a tag is swept nothing is added to it.
			if l := send(3, 4, joined); l.lost {
				t.Fatalf("%+v", l)
			}
			for more := true; more; {
				if more, _, err = a.backend.sweep(within(t, testTimeout), shardOf("lobby"), "node-x~0"); err != nil {
					t.Fatal(err)
				}
				if more {
					if l := send(4, 5, joined); !l.lost {
						t.Error("added while it is swept")
					}
				}
			}
			if l := send(4, 5, joined); !l.lost {
				t.Error("added after it was swept")
			}
		})
	}
}
