package sharedstate

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
	redis := testkit.StartRedisSentinel(t, "--requirepass", "hunter2")
	a, b := startPair(t, redisAt(redis.URL()), nil)
	waitAllVisible(t, a, b)
	secret, s := a.New("ada")
	eventually(t, "the session to be kept", func() bool { return a.trySave(t, withTwoRooms(s), false) == message.SaveDone })
	a.changePresence(message.PresenceJoined, "lobby", "ada", "bob")
	b.changePresence(message.PresenceJoined, "lobby", "cyd")
	b.waitUsersIn(t, "lobby", "ada bob cyd")
	if err := a.Ban(within(t, testTimeout), "eve", time.Hour); err != nil {
		t.Fatal(err)
	}
	waitReplicated(t, redis, a.cfg.Prefix+"s:"+string(s.ID))

	began := time.Now()
	old := redis.KillMaster()
	a.changePresence(message.PresenceLeft, "lobby", "bob") // nobody can be told now
	redis.WaitMaster(old)
	elected := time.Now()
	eventually(t, "sessions to be kept again", func() bool {
		next := withTwoRooms(s)
		next.Revision = 2
		return a.trySave(t, next, false) == message.SaveDone
	})
	t.Logf("a new master after %v, sessions %v later", elected.Sub(began), time.Since(elected))
	eventually(t, "the session to come back", func() bool {
		got, ok, _ := b.Resume(within(t, testTimeout), secret, "ada")
		return ok && len(got.Rooms) == 2
	})
	eventually(t, "notices to flow again", func() bool { // those of the moment may be lost
		b.AnnounceLive(message.Session{ID: s.ID, PreviousNode: "node-a"})
		return a.countEvents(func(n message.NodeEvent) bool { return n.Kind == message.EventSessionLive }) > 0
	})
	a.waitUsersIn(t, "lobby", "ada cyd")
	b.waitUsersIn(t, "lobby", "ada cyd")
	c := startAnotherNode(t, a, "node-c")
	eventually(t, "a fresh node to know who is barred", func() bool { return c.isBanned("eve") })
	eventually(t, "all to see all", func() bool { return a.seesNodes(3) && b.seesNodes(3) && c.seesNodes(3) })
}

// waitReplicated waits until the replicas have a key.
func waitReplicated(t *testing.T, redis *testkit.RedisSentinel, key string) {
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
	redis := testkit.StartRedisSentinel(t)
	a, b := startPair(t, redisAt(redis.URL()), nil)
	waitAllVisible(t, a, b)
	a.changePresence(message.PresenceJoined, "lobby", "ada")
	b.waitUsersIn(t, "lobby", "ada")
	redis.Failover()
	_, s := a.New("ada")
	eventually(t, "sessions to be kept on the new master", func() bool { return a.trySave(t, s, false) == message.SaveDone })
	b.changePresence(message.PresenceJoined, "lobby", "bob")
	a.waitUsersIn(t, "lobby", "ada bob")
	before := a.countEvents(isPresenceEventOf("den"))
	b.changePresence(message.PresenceJoined, "den", "bob")
	eventually(t, "notices by the new master", func() bool { return a.countEvents(isPresenceEventOf("den")) > before })
}

// TestALostMasterOfACluster: what it had is gone until somebody takes its
// place, what the others have goes on.
func TestALostMasterOfACluster(t *testing.T) {
	t.Parallel()
	cluster := testkit.StartRedisCluster(t)
	for _, node := range cluster.Nodes() { // else all refuse while one is lost
		node.Do(t, "CONFIG", "SET", "cluster-require-full-coverage", "no")
	}
	a, b := startPair(t, redisAt(cluster.URL()), nil)
	waitAllVisible(t, a, b)
	// The one to die has neither the fleet nor some of the sessions.
	nodesOwner := cluster.Owner(cluster.Slot(a.cfg.Prefix + "{fleet}:seen"))
	var victim *testkit.RedisServer
	for _, node := range cluster.Nodes() {
		if node != nodesOwner {
			victim = node
		}
	}
	type savedSession struct {
		secret string
		s      message.Session
		lost   bool
	}
	var all []savedSession
	count := map[bool]int{}
	for count[true] < 5 || count[false] < 5 {
		secret, s := a.New("ada")
		lost := cluster.Owner(cluster.Slot(a.cfg.Prefix+"s:"+string(s.ID))) == victim
		all = append(all, savedSession{secret, s, lost})
		count[lost]++
		eventually(t, "a session to be kept", func() bool { return a.trySave(t, s, false) == message.SaveDone })
	}
	victim.Kill()
	var batch []message.SessionSave
	for _, h := range all {
		h.s.Revision = 1
		batch = append(batch, message.SessionSave{Session: h.s})
	}
	eventually(t, "sessions on the other masters to be kept as ever", func() bool {
		for i, r := range a.Save(within(t, testTimeout), batch) {
			if (r == message.SaveDone) == all[i].lost {
				return false
			}
		}
		return true
	})
	if _, err := a.Nodes(); err != nil || !a.Up() {
		t.Errorf("one lost master of three counts as all: %v", err)
	}
	for _, h := range all {
		if h.lost {
			if _, ok, err := b.Resume(within(t, testTimeout), h.secret, "ada"); ok || !errors.Is(err, message.ErrSharedStateUnavailable) {
				t.Errorf("resume from a lost master: %v, %v", ok, err)
			}
			continue
		}
		eventually(t, "a session on another master to come back", func() bool {
			_, ok, _ := b.Resume(within(t, testTimeout), h.secret, "ada")
			return ok
		})
	}
}

// A slot moves with its keys, and nobody is asked to begin anew.
func TestAClusterSlotMoves(t *testing.T) {
	t.Parallel()
	cluster := testkit.StartRedisCluster(t)
	a, b := startPair(t, redisAt(cluster.URL()), nil)
	waitAllVisible(t, a, b)
	// An empty shard: the kit moves slots without keys only.
	room := message.Room("lobby")
	slot := cluster.Slot(fmt.Sprintf("%s{p%02d}:tags", a.cfg.Prefix, shardOf(room)))
	b.waitUsersIn(t, room, "")
	cluster.MoveSlot(slot)
	a.changePresence(message.PresenceJoined, room, "ada")
	b.changePresence(message.PresenceJoined, room, "bob")
	a.waitUsersIn(t, room, "ada bob")
	b.waitUsersIn(t, room, "ada bob")
	if got := a.metric(t, "presence_resyncs_total", ""); got != 0 {
		t.Errorf("%v shards were told anew", got)
	}
}

// One emptied master of a cluster takes a part of everything with it; nodes
// notice which.
func TestAnEmptiedMasterOfACluster(t *testing.T) {
	t.Parallel()
	cluster := testkit.StartRedisCluster(t)
	a, b := startPair(t, redisAt(cluster.URL()), nil)
	waitAllVisible(t, a, b)
	var rooms []message.Room
	for i := range 30 {
		room := message.Room(fmt.Sprintf("r%d", i))
		rooms = append(rooms, room)
		a.changePresence(message.PresenceJoined, room, "ada")
		b.changePresence(message.PresenceJoined, room, "bob")
	}
	for _, room := range rooms {
		a.waitUsersIn(t, room, "ada bob")
	}
	victim := cluster.Owner(cluster.Slot(a.cfg.Prefix + "{p00}:tags"))
	victim.Do(t, "FLUSHALL")
	for _, room := range rooms {
		a.waitUsersIn(t, room, "ada bob")
		b.waitUsersIn(t, room, "ada bob")
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
