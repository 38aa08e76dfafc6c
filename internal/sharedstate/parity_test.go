package sharedstate

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"switchyard/internal/broker"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A backendPair is both backends. Each script in Lua has a counterpart in Go, so
// the same calls must have equal results.
type backendPair struct {
	memory, redis backend
}

func newBackendPair(t *testing.T, url string) (*backendPair, func()) {
	t.Helper()
	opts, slots, err := broker.Options(broker.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := Config{
		Node: "node-a", Redis: opts, ClusterSlots: slots, Prefix: testkit.RedisPrefix(), TTL: time.Hour, timeout: testkit.Timeout,
	}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	m := newMetrics(nil)
	pair := &backendPair{memory: new(MemoryBackend).newView(cfg, m), redis: openRedis(cfg, m)}
	return pair, func() { _ = pair.redis.close() }
}

// queryBoth makes a call on both backends, and fails the test unless the results
// are equal.
func queryBoth[T any](t *rapid.T, pair *backendPair, what string, query func(backend) (T, error)) T {
	m, merr := query(pair.memory)
	r, rerr := query(pair.redis)
	if merr != nil || rerr != nil {
		t.Fatalf("%s: %v in memory, %v in Redis", what, merr, rerr)
	}
	if !reflect.DeepEqual(m, r) {
		t.Fatalf("%s:\n%+v in memory,\n%+v in Redis", what, m, r)
	}
	return m
}

func TestSessionParity(t *testing.T) {
	t.Parallel()
	url := testkit.Redis(t).URL()
	rapid.Check(t, func(rt *rapid.T) {
		pair, done := newBackendPair(t, url)
		defer done()
		ctx := context.Background()
		ids := []message.SessionID{"s1", "s2", "s3"}
		users := []string{"", "ada", "eve"}
		nodes := []string{"node-a", "node-b"}
		draw := func() message.SessionSave {
			s := message.Session{
				ID: rapid.SampledFrom(ids).Draw(rt, "id"), User: rapid.SampledFrom(users).Draw(rt, "user"),
				Generation: rapid.Int64Range(1, 4).Draw(rt, "generation"), Revision: rapid.Int64Range(0, 3).Draw(rt, "revision"),
				Rooms: manyRooms(rapid.IntRange(0, 3).Draw(rt, "rooms")),
			}
			return message.SessionSave{Session: s, Renew: rapid.Bool().Draw(rt, "touch")}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"save": func(rt *rapid.T) {
				batch := []message.SessionSave{draw()}
				for range rapid.IntRange(0, 3).Draw(rt, "more") {
					batch = append(batch, draw())
				}
				node := rapid.SampledFrom(nodes).Draw(rt, "node")
				queryBoth(rt, pair, "save", func(s backend) ([]message.SaveResult, error) { return s.save(ctx, node, batch), nil })
			},
			"resume": func(rt *rapid.T) {
				s := draw()
				node := rapid.SampledFrom(nodes).Draw(rt, "node")
				queryBoth(rt, pair, "resume", func(p backend) (message.Session, error) {
					got, ok, err := p.resume(ctx, s.ID, s.User, node)
					if !ok && !reflect.DeepEqual(got, message.Session{}) {
						return got, errors.New("the resume was refused, but returned a session")
					}
					return got, err
				})
			},
			"end": func(rt *rapid.T) {
				s := draw()
				queryBoth(rt, pair, "end", func(p backend) (int, error) { return 0, p.end(ctx, []endedSession{{s.ID, s.Generation}}) })
			},
		})
	})
}

func TestPresenceParity(t *testing.T) {
	t.Parallel()
	url := testkit.Redis(t).URL()
	rapid.Check(t, func(rt *rapid.T) {
		pair, done := newBackendPair(t, url)
		defer done()
		ctx := context.Background()
		// Two rooms of one shard, and one of another.
		rooms := []message.Room{"lobby", roomInSameShard("lobby"), "den"}
		tags := []string{"node-a~0", "node-a~1", "node-b~0"}
		sessions := []message.SessionID{"s1", "s2", "s3", "s4"}
		oneTag := func() string { return rapid.SampledFrom(tags).Draw(rt, "tag") }
		rt.Repeat(map[string]func(*rapid.T){
			"apply presence": func(rt *rapid.T) {
				first := rapid.SampledFrom(rooms).Draw(rt, "room")
				shard, tag := shardOf(first), oneTag()
				minRevision := rapid.Int64Range(0, 5).Draw(rt, "min revision")
				revision := minRevision + rapid.Int64Range(1, 3).Draw(rt, "more")
				var changes []entryChange
				for range rapid.IntRange(1, 5).Draw(rt, "changes") {
					room := rapid.SampledFrom(rooms).Draw(rt, "room")
					if shardOf(room) != shard {
						room = first
					}
					session := rapid.SampledFrom(sessions).Draw(rt, "session")
					changes = append(changes, entryChange{
						entryKey{room, session}, "user of " + string(session), rapid.Int64Range(1, 4).Draw(rt, "generation"),
						rapid.Bool().Draw(rt, "present"),
					})
				}
				queryBoth(rt, pair, "apply presence", func(p backend) (presenceBatch, error) {
					b := &presenceBatch{shard: shard, tag: tag, minRevision: minRevision, revision: revision, changes: changes}
					p.applyPresence(ctx, []*presenceBatch{b})
					slices.Sort(b.changedRooms)
					return *b, b.err
				})
			},
			"sweep": func(rt *rapid.T) {
				room, tag := rapid.SampledFrom(rooms).Draw(rt, "room"), oneTag()
				queryBoth(rt, pair, "sweep", func(p backend) (int, error) {
					for {
						if more, _, err := p.sweep(ctx, shardOf(room), tag); err != nil || !more {
							return 0, err
						}
					}
				})
			},
			"": func(rt *rapid.T) { // after each call
				alive := map[string]bool{"node-b": true}
				if rapid.Bool().Draw(rt, "both alive") {
					alive["node-a"] = true
				}
				limit := rapid.IntRange(0, 4).Draw(rt, "limit")
				for _, room := range rooms {
					queryBoth(rt, pair, "room", func(p backend) (message.Presence, error) { return p.roomPresence(ctx, room, alive, limit) })
				}
				queryBoth(rt, pair, "tags", func(p backend) ([]map[string]int64, error) {
					all, err := p.tags(ctx)
					for _, tags := range all {
						maps.DeleteFunc(tags, func(_ string, revision int64) bool { return revision == 0 })
					}
					return all, err
				})
			},
		})
	})
}

// A node that begins anew has a newer tag. A batch of the older one that arrives late, even
// of a newer connection, does not take the session back: the sweep of the older tag would
// remove it.
func TestALateBatchOfAnOlderTagChangesNothing(t *testing.T) {
	t.Parallel()
	pair, done := newBackendPair(t, testkit.Redis(t).URL())
	defer done()
	for name, b := range map[string]backend{"memory": pair.memory, "Redis": pair.redis} {
		apply := func(tag string, generation int64) {
			change := entryChange{entryKey{"lobby", "s1"}, "ada", generation, true}
			batch := &presenceBatch{shard: shardOf("lobby"), tag: tag, revision: 1, changes: []entryChange{change}}
			if b.applyPresence(t.Context(), []*presenceBatch{batch}); batch.err != nil || batch.lost {
				t.Fatalf("%s: %v, lost %v", name, batch.err, batch.lost)
			}
		}
		apply("node-a~1", 1)
		apply("node-a~0", 2)
		for more := true; more; {
			var err error
			if more, _, err = b.sweep(t.Context(), shardOf("lobby"), "node-a~0"); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		got, err := b.roomPresence(t.Context(), "lobby", map[string]bool{"node-a": true}, 10)
		if err != nil || got.Count != 1 {
			t.Errorf("%s: %d sessions are present, want 1: %v", name, got.Count, err)
		}
	}
}

// roomInSameShard returns another room of the same shard.
func roomInSameShard(room message.Room) message.Room {
	for name := room + "-"; ; name += "-" {
		if shardOf(name) == shardOf(room) {
			return name
		}
	}
}

func TestBanParity(t *testing.T) {
	t.Parallel()
	url := testkit.Redis(t).URL()
	rapid.Check(t, func(rt *rapid.T) {
		pair, done := newBackendPair(t, url)
		defer done()
		ctx := context.Background()
		versions := map[string]bool{"": true}
		rt.Repeat(map[string]func(*rapid.T){
			"ban": func(rt *rapid.T) {
				var bans []ban
				for range rapid.IntRange(1, 3).Draw(rt, "count") {
					bans = append(bans, ban{
						rapid.SampledFrom([]string{"ada", "eve", "ä\n", "{x}"}).Draw(rt, "user"),
						time.Duration(rapid.IntRange(1, 100).Draw(rt, "hours")) * time.Hour,
					})
				}
				queryBoth(rt, pair, "ban", func(p backend) (int, error) { return p.ban(ctx, bans) })
				version, _, err := pair.redis.bans(ctx)
				if err != nil || versions[version] {
					t.Fatalf("after a change the version is %q again, %v", version, err)
				}
				versions[version] = true
			},
			"": func(rt *rapid.T) {
				queryBoth(rt, pair, "bans", func(p backend) ([]ban, error) {
					_, bans, err := p.bans(ctx)
					for i := range bans {
						bans[i].remaining = bans[i].remaining.Round(time.Hour) // because the clocks differ
					}
					slices.SortFunc(bans, func(a, b ban) int { return cmp.Compare(a.user, b.user) })
					return slices.Clip(bans), err
				})
			},
		})
	})
}

func TestLimitParity(t *testing.T) {
	t.Parallel()
	url := testkit.Redis(t).URL()
	rapid.Check(t, func(rt *rapid.T) {
		pair, done := newBackendPair(t, url)
		defer done()
		// The rates are so low that the time between two calls does not matter, be it a minute.
		rates := Rates{Calls: 0.0001, CallBurst: 100, Bytes: 0.0001, ByteBurst: 1000}.byMeasure()
		if rapid.Bool().Draw(rt, "no bound on bytes") {
			rates[measureBytes] = rate{}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"consume": func(rt *rapid.T) {
				var batch []usage
				for _, user := range []string{"ada", "eve"} {
					batch = append(batch, usage{key: "l:" + user, spent: [measureCount]float64{
						float64(rapid.IntRange(0, 60).Draw(rt, "publishes")), float64(rapid.IntRange(0, 600).Draw(rt, "bytes")),
					}})
				}
				queryBoth(rt, pair, "consume", func(p backend) ([measureCount][2]float64, error) {
					var got [measureCount][2]float64
					usages := []*usage{}
					for _, u := range batch {
						usages = append(usages, &u)
					}
					p.consume(context.Background(), rates, usages)
					for i, u := range usages {
						if u.err != nil {
							return got, u.err
						}
						for m := range u.level {
							got[m][i] = float64(int(u.level[m]*10+1000.5)-1000) / 10 // rounded to a tenth
						}
					}
					return got, nil
				})
			},
		})
	})
}
