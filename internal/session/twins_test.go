package session

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
type twins struct {
	memory, redis space
}

func newTwins(t *testing.T, url string) (*twins, func()) {
	t.Helper()
	opts, err := broker.Options(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := Config{
		Node: "node-a", Redis: opts, Prefix: testkit.RedisPrefix(), TTL: time.Hour, timeout: patience,
	}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	m := newMetrics(nil)
	w := &twins{memory: new(Space).join(cfg, m), redis: openRedis(cfg, m)}
	return w, func() { _ = w.redis.close() }
}

// both asks both places, and fails the test unless they say the same.
func both[T any](t *rapid.T, w *twins, what string, ask func(space) (T, error)) T {
	m, merr := ask(w.memory)
	r, rerr := ask(w.redis)
	if merr != nil || rerr != nil {
		t.Fatalf("%s: %v in memory, %v in Redis", what, merr, rerr)
	}
	if !reflect.DeepEqual(m, r) {
		t.Fatalf("%s:\n%+v in memory,\n%+v in Redis", what, m, r)
	}
	return m
}

func TestBothPlacesDoTheSameWithSessions(t *testing.T) {
	t.Parallel()
	url := testkit.Redis(t).URL()
	rapid.Check(t, func(rt *rapid.T) {
		w, done := newTwins(t, url)
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
			return message.SessionSave{Session: s, Touch: rapid.Bool().Draw(rt, "touch")}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"save": func(rt *rapid.T) {
				batch := []message.SessionSave{draw()}
				for range rapid.IntRange(0, 3).Draw(rt, "more") {
					batch = append(batch, draw())
				}
				node := rapid.SampledFrom(nodes).Draw(rt, "node")
				both(rt, w, "save", func(s space) ([]message.SaveResult, error) { return s.save(ctx, node, batch), nil })
			},
			"resume": func(rt *rapid.T) {
				s := draw()
				node := rapid.SampledFrom(nodes).Draw(rt, "node")
				both(rt, w, "resume", func(p space) (message.Session, error) {
					got, ok, err := p.resume(ctx, s.ID, s.User, node)
					if !ok && !reflect.DeepEqual(got, message.Session{}) {
						return got, errors.New("refused, and given all the same")
					}
					return got, err
				})
			},
			"end": func(rt *rapid.T) {
				s := draw()
				both(rt, w, "end", func(p space) (int, error) { return 0, p.end(ctx, []ended{{s.ID, s.Generation}}) })
			},
		})
	})
}

func TestBothPlacesDoTheSameWithPresence(t *testing.T) {
	t.Parallel()
	url := testkit.Redis(t).URL()
	rapid.Check(t, func(rt *rapid.T) {
		w, done := newTwins(t, url)
		defer done()
		ctx := context.Background()
		// Two rooms of one shard, and one of another.
		rooms := []message.Room{"lobby", roomBeside("lobby"), "den"}
		tags := []string{"node-a~0", "node-a~1", "node-b~0"}
		sessions := []message.SessionID{"s1", "s2", "s3", "s4"}
		oneTag := func() string { return rapid.SampledFrom(tags).Draw(rt, "tag") }
		rt.Repeat(map[string]func(*rapid.T){
			"present": func(rt *rapid.T) {
				first := rapid.SampledFrom(rooms).Draw(rt, "room")
				shard, tag := shardOf(first), oneTag()
				low := rapid.Int64Range(0, 5).Draw(rt, "low")
				revision := low + rapid.Int64Range(1, 3).Draw(rt, "by")
				var changes []rollChange
				for range rapid.IntRange(1, 5).Draw(rt, "changes") {
					room := rapid.SampledFrom(rooms).Draw(rt, "room")
					if shardOf(room) != shard {
						room = first
					}
					session := rapid.SampledFrom(sessions).Draw(rt, "session")
					changes = append(changes, rollChange{
						seat{room, session}, "user of " + string(session), rapid.Int64Range(1, 4).Draw(rt, "generation"),
						rapid.Bool().Draw(rt, "here"),
					})
				}
				both(rt, w, "present", func(p space) (roll, error) {
					l := &roll{shard: shard, tag: tag, low: low, revision: revision, changes: changes}
					p.present(ctx, []*roll{l})
					slices.Sort(l.changed)
					return *l, l.err
				})
			},
			"sweep": func(rt *rapid.T) {
				room, tag := rapid.SampledFrom(rooms).Draw(rt, "room"), oneTag()
				both(rt, w, "sweep", func(p space) (int, error) {
					for {
						if left, _, err := p.sweep(ctx, shardOf(room), tag); err != nil || !left {
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
					both(rt, w, "room", func(p space) (message.Presence, error) { return p.room(ctx, room, alive, limit) })
				}
				both(rt, w, "tags", func(p space) ([]map[string]int64, error) {
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

// roomBeside is another room of the same shard.
func roomBeside(room message.Room) message.Room {
	for name := room + "-"; ; name += "-" {
		if shardOf(name) == shardOf(room) {
			return name
		}
	}
}

func TestBothPlacesDoTheSameWithBars(t *testing.T) {
	t.Parallel()
	url := testkit.Redis(t).URL()
	rapid.Check(t, func(rt *rapid.T) {
		w, done := newTwins(t, url)
		defer done()
		ctx := context.Background()
		states := map[string]bool{"": true}
		rt.Repeat(map[string]func(*rapid.T){
			"bar": func(rt *rapid.T) {
				var bars []bar
				for range rapid.IntRange(1, 3).Draw(rt, "count") {
					bars = append(bars, bar{
						rapid.SampledFrom([]string{"ada", "eve", "ä\n", "{x}"}).Draw(rt, "user"),
						time.Duration(rapid.IntRange(1, 100).Draw(rt, "hours")) * time.Hour,
					})
				}
				both(rt, w, "bar", func(p space) (int, error) { return p.bar(ctx, bars) })
				state, _, err := w.redis.bars(ctx)
				if err != nil || states[state] {
					t.Fatalf("a change left the state at %q, %v", state, err)
				}
				states[state] = true
			},
			"": func(rt *rapid.T) {
				both(rt, w, "bars", func(p space) ([]bar, error) {
					_, bars, err := p.bars(ctx)
					for i := range bars {
						bars[i].left = bars[i].left.Round(time.Hour) // the clocks are not the same
					}
					slices.SortFunc(bars, func(a, b bar) int { return cmp.Compare(a.user, b.user) })
					return slices.Clip(bars), err
				})
			},
		})
	})
}

func TestBothPlacesDoTheSameWithLimits(t *testing.T) {
	t.Parallel()
	url := testkit.Redis(t).URL()
	rapid.Check(t, func(rt *rapid.T) {
		w, done := newTwins(t, url)
		defer done()
		// So slow that the time between two calls does not count.
		rates := Rates{Publishes: 0.001, PublishBurst: 100, Bytes: 0.01, ByteBurst: 1000}.byMeasure()
		if rapid.Bool().Draw(rt, "no bound on bytes") {
			rates[measureBytes] = rate{}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"meter": func(rt *rapid.T) {
				var batch []spending
				for _, user := range []string{"ada", "eve"} {
					batch = append(batch, spending{user: user, spent: [measures]float64{
						float64(rapid.IntRange(0, 60).Draw(rt, "publishes")), float64(rapid.IntRange(0, 600).Draw(rt, "bytes")),
					}})
				}
				both(rt, w, "meter", func(p space) ([measures][2]float64, error) {
					var got [measures][2]float64
					asked := []*spending{}
					for _, s := range batch {
						asked = append(asked, &s)
					}
					p.meter(context.Background(), rates, asked)
					for i, s := range asked {
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
