package sharedstate

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// Whatever happens to Redis, some seconds later every node sees exactly the
// sessions that are in a room.
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
		// Meanwhile one user leaves and another one joins.
		joined := fmt.Sprintf("dee%d", i)
		a.changePresence(message.PresenceLeft, "lobby", "bob")
		b.changePresence(message.PresenceJoined, "lobby", joined)
		if fault.name != "flushed" && fault.name != "full" {
			testkit.Eventually(t, fault.name+": presence is unknown", func() bool {
				_, err := a.Room(testContext(t), "lobby", 10)
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
		t.Errorf("%v shards were resynced, want 2 or more: Redis was empty twice", got)
	}
}

// A failover can lose the last writes: here the new master does not have one
// leave and one join.
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
	testkit.Eventually(t, "the old tag is swept", func() bool {
		return server.Do(t, "HKEYS", shard+"tags") == "node-a~1" && server.Do(t, "EXISTS", shard+"rooms:node-a~0") == "0"
	})
	if got := server.Do(t, "HGETALL", shard+"count:lobby"); got != "node-a~1 2" {
		t.Errorf("the counts are %q", got)
	}
}

// A batch that was delayed and arrives after later ones changes nothing.
func TestADelayedBatchIsRefused(t *testing.T) {
	t.Parallel()
	for name, factory := range map[string]backendFactory{
		"memory": memoryFactory, "redis": redisFactory(func(t *testing.T) string { return testkit.Redis(t).URL() }),
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := startPair(t, withLongTimeout(factory), nil)
			joined := entryChange{entryKey{"lobby", "s-ada"}, "ada", 1, true}
			left := joined
			left.present = false
			send := func(minRevision, revision int64, c entryChange) *presenceBatch {
				b := &presenceBatch{shard: shardOf("lobby"), tag: "node-x~0", minRevision: minRevision, revision: revision, changes: []entryChange{c}}
				a.backend.applyPresence(testContext(t), []*presenceBatch{b})
				if b.err != nil {
					t.Fatal(b.err)
				}
				return b
			}
			if b := send(0, 1, joined); b.lost || !reflect.DeepEqual(b.changedRooms, []message.Room{"lobby"}) {
				t.Errorf("the first batch: %+v", b)
			}
			if b := send(0, 1, joined); b.lost || b.changedRooms != nil { // as if the reply was lost
				t.Errorf("the first batch again: %+v", b)
			}
			// The second batch is delayed, so the third carries its changes too.
			if b := send(1, 3, left); b.lost || len(b.changedRooms) != 1 {
				t.Errorf("the third batch: %+v", b)
			}
			if b := send(1, 2, joined); !b.lost {
				t.Errorf("the second batch, late: %+v", b)
			}
			if b := send(7, 8, joined); !b.lost {
				t.Errorf("a batch after a loss: %+v", b)
			}
			got, err := a.backend.roomPresence(testContext(t), "lobby", map[string]bool{"node-x": true}, 10)
			if err != nil || got.Count != 0 {
				t.Errorf("the room has %+v, %v", got, err)
			}
			// No entry is added under a tag that is being swept, or was.
			if b := send(3, 4, joined); b.lost {
				t.Fatalf("%+v", b)
			}
			for more := true; more; {
				if more, _, err = a.backend.sweep(testContext(t), shardOf("lobby"), "node-x~0"); err != nil {
					t.Fatal(err)
				}
				if more {
					if b := send(4, 5, joined); !b.lost {
						t.Error("a batch was applied during the sweep")
					}
				}
			}
			if b := send(4, 5, joined); !b.lost {
				t.Error("a batch was applied after the sweep")
			}
		})
	}
}
