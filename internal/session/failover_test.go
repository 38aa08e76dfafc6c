package session

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// TestSentinelFailover: a master dies, and its replica goes on with what it
// has: sessions, bars and members, but perhaps for the last moment's.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	redis := testkit.StartSentinel(t, "--requirepass", "hunter2")
	a, b := pair(t, at(redis.URL()), nil)
	met(t, a, b)
	secret, s := a.New("ada")
	eventually(t, "the session to be kept", func() bool { return a.try(t, lobby(s), false) == message.SaveDone })
	a.does(message.PresenceJoined, "lobby", "ada", "bob")
	b.does(message.PresenceJoined, "lobby", "cyd")
	b.waitIn(t, "lobby", "ada bob cyd")
	if err := a.Bar(within(t, patience), "eve", time.Hour); err != nil {
		t.Fatal(err)
	}
	replicated(t, redis, a.cfg.Prefix+"s:"+string(s.ID))

	began := time.Now()
	old := redis.KillMaster()
	a.does(message.PresenceLeft, "lobby", "bob") // nobody can be told now
	redis.WaitMaster(old)
	elected := time.Now()
	eventually(t, "sessions to be kept again", func() bool {
		next := lobby(s)
		next.Revision = 2
		return a.try(t, next, false) == message.SaveDone
	})
	t.Logf("a new master after %v, sessions %v later", elected.Sub(began), time.Since(elected))
	eventually(t, "the session to come back", func() bool {
		got, ok, _ := b.Resume(within(t, patience), secret, "ada")
		return ok && len(got.Rooms) == 2
	})
	eventually(t, "notices to flow again", func() bool { // those of the moment may be lost
		b.Live(message.Session{ID: s.ID, From: "node-a"})
		return a.heard(func(n message.Notice) bool { return n.Kind == message.NoticeLive }) > 0
	})
	a.waitIn(t, "lobby", "ada cyd")
	b.waitIn(t, "lobby", "ada cyd")
	c := crewMate(t, a, "node-c")
	eventually(t, "a fresh node to know who is barred", func() bool { return c.bars("eve") })
	eventually(t, "all to see all", func() bool { return a.sees(3) && b.sees(3) && c.sees(3) })
}

// replicated waits until the replicas have a key.
func replicated(t *testing.T, redis *testkit.RedisSentinel, key string) {
	t.Helper()
	master := redis.Master()
	eventually(t, "the replicas to follow", func() bool {
		return master.Do(t, "EXISTS", key) == "1" && master.Do(t, "WAIT", "2", "100") == "2"
	})
}

// A master that is put back behind another one refuses what is written to it;
// the connections find the new one.
func TestAPlannedFailover(t *testing.T) {
	t.Parallel()
	redis := testkit.StartSentinel(t)
	a, b := pair(t, at(redis.URL()), nil)
	met(t, a, b)
	a.does(message.PresenceJoined, "lobby", "ada")
	b.waitIn(t, "lobby", "ada")
	redis.Failover()
	_, s := a.New("ada")
	eventually(t, "sessions to be kept on the new master", func() bool { return a.try(t, s, false) == message.SaveDone })
	b.does(message.PresenceJoined, "lobby", "bob")
	a.waitIn(t, "lobby", "ada bob")
	before := a.heard(pokedAbout("den"))
	b.does(message.PresenceJoined, "den", "bob")
	eventually(t, "notices by the new master", func() bool { return a.heard(pokedAbout("den")) > before })
}

// TestALostMasterOfACluster: what it had is gone until somebody takes its
// place, what the others have goes on.
func TestALostMasterOfACluster(t *testing.T) {
	t.Parallel()
	cluster := testkit.StartCluster(t)
	for _, node := range cluster.Nodes() { // else all refuse while one is lost
		node.Do(t, "CONFIG", "SET", "cluster-require-full-coverage", "no")
	}
	a, b := pair(t, at(cluster.URL()), nil)
	met(t, a, b)
	// The one to die has neither the fleet nor some of the sessions.
	fleet := cluster.Owner(cluster.Slot(a.cfg.Prefix + "{fleet}:seen"))
	var victim *testkit.RedisServer
	for _, node := range cluster.Nodes() {
		if node != fleet {
			victim = node
		}
	}
	type held struct {
		secret string
		s      message.Session
		lost   bool
	}
	var all []held
	count := map[bool]int{}
	for count[true] < 5 || count[false] < 5 {
		secret, s := a.New("ada")
		lost := cluster.Owner(cluster.Slot(a.cfg.Prefix+"s:"+string(s.ID))) == victim
		all = append(all, held{secret, s, lost})
		count[lost]++
		eventually(t, "a session to be kept", func() bool { return a.try(t, s, false) == message.SaveDone })
	}
	victim.Kill()
	var batch []message.SessionSave
	for _, h := range all {
		h.s.Revision = 1
		batch = append(batch, message.SessionSave{Session: h.s})
	}
	eventually(t, "sessions on the other masters to be kept as ever", func() bool {
		for i, r := range a.Save(within(t, patience), batch) {
			if (r == message.SaveDone) == all[i].lost {
				return false
			}
		}
		return true
	})
	if _, err := a.Fleet(); err != nil || !a.Up() {
		t.Errorf("one lost master of three counts as all: %v", err)
	}
	for _, h := range all {
		if h.lost {
			if _, ok, err := b.Resume(within(t, patience), h.secret, "ada"); ok || !errors.Is(err, message.ErrAway) {
				t.Errorf("resume from a lost master: %v, %v", ok, err)
			}
			continue
		}
		eventually(t, "a session on another master to come back", func() bool {
			_, ok, _ := b.Resume(within(t, patience), h.secret, "ada")
			return ok
		})
	}
}

// A slot moves with its keys, and nobody is asked to begin anew.
func TestAShardOfAClusterMoves(t *testing.T) {
	t.Parallel()
	cluster := testkit.StartCluster(t)
	a, b := pair(t, at(cluster.URL()), nil)
	met(t, a, b)
	// An empty shard: the kit moves slots without keys only.
	room := message.Room("lobby")
	slot := cluster.Slot(fmt.Sprintf("%s{p%02d}:tags", a.cfg.Prefix, shardOf(room)))
	b.waitIn(t, room, "")
	cluster.MoveSlot(slot)
	a.does(message.PresenceJoined, room, "ada")
	b.does(message.PresenceJoined, room, "bob")
	a.waitIn(t, room, "ada bob")
	b.waitIn(t, room, "ada bob")
	if got := a.metric(t, "presence_resyncs_total", ""); got != 0 {
		t.Errorf("%v shards were told anew", got)
	}
}

// One emptied master of a cluster takes a part of everything with it; nodes
// notice which.
func TestAnEmptiedMasterOfACluster(t *testing.T) {
	t.Parallel()
	cluster := testkit.StartCluster(t)
	a, b := pair(t, at(cluster.URL()), nil)
	met(t, a, b)
	var rooms []message.Room
	for i := range 30 {
		room := message.Room(fmt.Sprintf("r%d", i))
		rooms = append(rooms, room)
		a.does(message.PresenceJoined, room, "ada")
		b.does(message.PresenceJoined, room, "bob")
	}
	for _, room := range rooms {
		a.waitIn(t, room, "ada bob")
	}
	victim := cluster.Owner(cluster.Slot(a.cfg.Prefix + "{p00}:tags"))
	victim.Do(t, "FLUSHALL")
	for _, room := range rooms {
		a.waitIn(t, room, "ada bob")
		b.waitIn(t, room, "ada bob")
	}
	left := 0
	for _, node := range cluster.Nodes() {
		for key := range strings.FieldsSeq(node.Do(t, "KEYS", a.cfg.Prefix+"*:who:*")) {
			if node.Do(t, "HLEN", key) == "2" {
				left++
			}
		}
	}
	if left != len(rooms) {
		t.Errorf("%d rooms have both, want %d", left, len(rooms))
	}
}
