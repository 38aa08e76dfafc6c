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

// Both places must do the same with whatever comes: what a script says in Lua,
// the Space says in Go. Here each call goes to both, and their answers must be
// equal.
type backendPair struct {
	memory, redis backend
}

func newBackendPair(t *testing.T, url string) (*backendPair, func()) {
	t.Helper()
	opts, err := broker.Options(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := Config{
		Node: "node-a", Redis: opts, Prefix: testkit.RedisPrefix(), TTL: time.Hour, timeout: testTimeout,
	}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	m := newMetrics(nil)
	w := &backendPair{memory: new(MemoryBackend).newView(cfg, m), redis: openRedis(cfg, m)}
	return w, func() { _ = w.redis.close() }
}

// queryBoth asks both places, and fails the test unless they say the same.
func queryBoth[T any](t *rapid.T, w *backendPair, what string, query func(backend) (T, error)) T {
	m, merr := query(w.memory)
	r, rerr := query(w.redis)
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
		w, done := newBackendPair(t, url)
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
				queryBoth(rt, w, "save", func(s backend) ([]message.SaveResult, error) { return s.save(ctx, node, batch), nil })
			},
			"resume": func(rt *rapid.T) {
				s := draw()
				node := rapid.SampledFrom(nodes).Draw(rt, "node")
				queryBoth(rt, w, "resume", func(p backend) (message.Session, error) {
					got, ok, err := p.resume(ctx, s.ID, s.User, node)
					if !ok && !reflect.DeepEqual(got, message.Session{}) {
						return got, errors.New("refused, and given all the same")
					}
					return got, err
				})
			},
			"end": func(rt *rapid.T) {
				s := draw()
				queryBoth(rt, w, "end", func(p backend) (int, error) { return 0, p.end(ctx, []endedSession{{s.ID, s.Generation}}) })
			},
		})
	})
}

func TestPresenceParity(t *testing.T) {
	t.Parallel()
	url := testkit.Redis(t).URL()
	rapid.Check(t, func(rt *rapid.T) {
		w, done := newBackendPair(t, url)
		defer done()
		ctx := context.Background()
		// Two rooms of one shard, and one of another.
		rooms := []message.Room{"lobby", roomInSameShard("lobby"), "den"}
		tags := []string{"node-a~0", "node-a~1", "node-b~0"}
		sessions := []message.SessionID{"s1", "s2", "s3", "s4"}
		oneTag := func() string { return rapid.SampledFrom(tags).Draw(rt, "tag") }
		rt.Repeat(map[string]func(*rapid.T){
			"present": func(rt *rapid.T) {
				first := rapid.SampledFrom(rooms).Draw(rt, "room")
				shard, tag := shardOf(first), oneTag()
				low := rapid.Int64Range(0, 5).Draw(rt, "low")
				revision := low + rapid.Int64Range(1, 3).Draw(rt, "by")
				var changes []entryChange
				for range rapid.IntRange(1, 5).Draw(rt, "changes") {
					room := rapid.SampledFrom(rooms).Draw(rt, "room")
					if shardOf(room) != shard {
						room = first
					}
					session := rapid.SampledFrom(sessions).Draw(rt, "session")
					changes = append(changes, entryChange{
						entryKey{room, session}, "user of " + string(session), rapid.Int64Range(1, 4).Draw(rt, "generation"),
						rapid.Bool().Draw(rt, "here"),
					})
				}
				queryBoth(rt, w, "present", func(p backend) (presenceBatch, error) {
					l := &presenceBatch{shard: shard, tag: tag, minRevision: low, revision: revision, changes: changes}
					p.applyPresence(ctx, []*presenceBatch{l})
					slices.Sort(l.changedRooms)
					return *l, l.err
				})
			},
			"sweep": func(rt *rapid.T) {
				room, tag := rapid.SampledFrom(rooms).Draw(rt, "room"), oneTag()
				queryBoth(rt, w, "sweep", func(p backend) (int, error) {
					for {
						if more, _, err := p.sweep(ctx, shardOf(room), tag); err != nil || !more {
							return 0, err
						}
					}
				})
			},
			"": func(rt *rapid.T) { // after each of them
				alive := map[string]bool{"node-b": true}
				if rapid.Bool().Draw(rt, "both alive") {
					alive["node-a"] = true
				}
				limit := rapid.IntRange(0, 4).Draw(rt, "limit")
				for _, room := range rooms {
					queryBoth(rt, w, "room", func(p backend) (message.Presence, error) { return p.roomPresence(ctx, room, alive, limit) })
				}
				queryBoth(rt, w, "tags", func(p backend) ([]map[string]int64, error) {
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

// roomInSameShard is another room of the same shard.
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
		w, done := newBackendPair(t, url)
		defer done()
		ctx := context.Background()
		versions := map[string]bool{"": true}
		rt.Repeat(map[string]func(*rapid.T){
			"bar": func(rt *rapid.T) {
				var bans []ban
				for range rapid.IntRange(1, 3).Draw(rt, "count") {
					bans = append(bans, ban{
						rapid.SampledFrom([]string{"ada", "eve", "ä\n", "{x}"}).Draw(rt, "user"),
						time.Duration(rapid.IntRange(1, 100).Draw(rt, "hours")) * time.Hour,
					})
				}
				queryBoth(rt, w, "bar", func(p backend) (int, error) { return p.ban(ctx, bans) })
				version, _, err := w.redis.bans(ctx)
				if err != nil || versions[version] {
					t.Fatalf("a change left the state at %q, %v", version, err)
				}
				versions[version] = true
			},
			"": func(rt *rapid.T) {
				queryBoth(rt, w, "bars", func(p backend) ([]ban, error) {
					_, bans, err := p.bans(ctx)
					for i := range bans {
						bans[i].remaining = bans[i].remaining.Round(time.Hour) // the clocks are not the same
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
		w, done := newBackendPair(t, url)
		defer done()
		// So slow that the time between two calls does not count.
		rates := Rates{Publishes: 0.001, PublishBurst: 100, Bytes: 0.01, ByteBurst: 1000}.byMeasure()
		if rapid.Bool().Draw(rt, "no bound on bytes") {
			rates[measureBytes] = rate{}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"meter": func(rt *rapid.T) {
				var batch []usage
				for _, user := range []string{"ada", "eve"} {
					batch = append(batch, usage{user: user, spent: [measureCount]float64{
						float64(rapid.IntRange(0, 60).Draw(rt, "publishes")), float64(rapid.IntRange(0, 600).Draw(rt, "bytes")),
					}})
				}
				queryBoth(rt, w, "meter", func(p backend) ([measureCount][2]float64, error) {
					var got [measureCount][2]float64
					usages := []*usage{}
					for _, s := range batch {
						usages = append(usages, &s)
					}
					p.consume(context.Background(), rates, usages)
					for i, s := range usages {
						if s.err != nil {
							return got, s.err
						}
						for m := range s.level {
							got[m][i] = float64(int(s.level[m]*10+1000.5)-1000) / 10 // to a tenth
						}
					}
					return got, nil
				})
			},
		})
	})
}
