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

// A master dies and a replica takes over. It has all sessions, bans and presence
// entries, except perhaps those of the last moment.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	redis := testkit.StartRedisSentinel(t, "--requirepass", "hunter2")
	a, b := startPair(t, redisAt(redis.URL()), nil)
	waitAllVisible(t, a, b)
	secret, s := a.New("ada")
	testkit.Eventually(t, "the session is saved", func() bool { return a.trySave(t, withTwoRooms(s), false) == message.SaveDone })
	a.changePresence(message.PresenceJoined, "lobby", "ada", "bob")
	b.changePresence(message.PresenceJoined, "lobby", "cyd")
	b.waitUsersIn(t, "lobby", "ada bob cyd")
	if err := a.Ban(testContext(t), "eve", time.Hour); err != nil {
		t.Fatal(err)
	}
	waitReplicated(t, redis, a.cfg.Prefix+"s:"+string(s.ID))

	began := time.Now()
	old := redis.KillMaster()
	a.changePresence(message.PresenceLeft, "lobby", "bob") // which must wait
	redis.WaitMaster(old)
	elected := time.Now()
	testkit.Eventually(t, "sessions are saved again", func() bool {
		next := withTwoRooms(s)
		next.Revision = 2
		return a.trySave(t, next, false) == message.SaveDone
	})
	t.Logf("a new master after %v, sessions %v later", elected.Sub(began), time.Since(elected))
	testkit.Eventually(t, "the session resumes", func() bool {
		got, ok, _ := b.Resume(testContext(t), secret, "ada")
		return ok && len(got.Rooms) == 2
	})
	testkit.Eventually(t, "events arrive again", func() bool { // the first ones may be lost
		b.AnnounceLive(message.Session{ID: s.ID, PreviousNode: "node-a"})
		return a.countEvents(func(e message.NodeEvent) bool { return e.Kind == message.EventSessionLive }) > 0
	})
	a.waitUsersIn(t, "lobby", "ada cyd")
	b.waitUsersIn(t, "lobby", "ada cyd")
	c := startAnotherNode(t, a, "node-c")
	testkit.Eventually(t, "a new node knows the ban", func() bool { return c.isBanned("eve") })
	testkit.Eventually(t, "all nodes see each other", func() bool { return a.seesNodes(3) && b.seesNodes(3) && c.seesNodes(3) })
}

// waitReplicated waits until the replicas have a key.
func waitReplicated(t *testing.T, redis *testkit.RedisSentinel, key string) {
	t.Helper()
	master := redis.Master()
	testkit.Eventually(t, "the replicas have the key", func() bool {
		return master.Do(t, "EXISTS", key) == "1" && master.Do(t, "WAIT", "2", "100") == "2"
	})
}

// A master that becomes a replica refuses writes; the connections find the new
// master.
func TestAPlannedFailover(t *testing.T) {
	t.Parallel()
	redis := testkit.StartRedisSentinel(t)
	a, b := startPair(t, redisAt(redis.URL()), nil)
	waitAllVisible(t, a, b)
	a.changePresence(message.PresenceJoined, "lobby", "ada")
	b.waitUsersIn(t, "lobby", "ada")
	redis.Failover()
	_, s := a.New("ada")
	testkit.Eventually(t, "the new master saves sessions", func() bool { return a.trySave(t, s, false) == message.SaveDone })
	b.changePresence(message.PresenceJoined, "lobby", "bob")
	a.waitUsersIn(t, "lobby", "ada bob")
	mustExchangeEvents(t, a, b, "by the new master")
}

// The sessions on a lost master of a cluster are unavailable until it is
// replaced; those on the other masters are not affected.
func TestALostMasterOfACluster(t *testing.T) {
	t.Parallel()
	cluster := testkit.StartRedisCluster(t)
	for _, node := range cluster.Nodes() { // otherwise all refuse while one is lost
		node.Do(t, "CONFIG", "SET", "cluster-require-full-coverage", "no")
	}
	a, b := startPair(t, redisAt(cluster.URL()), nil)
	waitAllVisible(t, a, b)
	// The victim has some of the sessions, but not the node statuses.
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
		testkit.Eventually(t, "a session is saved", func() bool { return a.trySave(t, s, false) == message.SaveDone })
	}
	victim.Kill()
	var batch []message.SessionSave
	for _, saved := range all {
		saved.s.Revision = 1
		batch = append(batch, message.SessionSave{Session: saved.s})
	}
	testkit.Eventually(t, "exactly the sessions on the other masters are saved", func() bool {
		for i, r := range a.Save(testContext(t), batch) {
			if (r == message.SaveDone) == all[i].lost {
				return false
			}
		}
		return true
	})
	testkit.EventuallyNil(t, "the node does not count as down because one master of three is lost", func() error {
		if _, err := a.Nodes(); err != nil || !a.Up() {
			return fmt.Errorf("up: %v, %w", a.Up(), err)
		}
		return nil
	})
	for _, saved := range all {
		if saved.lost {
			if _, ok, err := b.Resume(testContext(t), saved.secret, "ada"); ok || !errors.Is(err, message.ErrSharedStateUnavailable) {
				t.Errorf("resume from a lost master: %v, %v", ok, err)
			}
			continue
		}
		testkit.Eventually(t, "a session on another master resumes", func() bool {
			_, ok, _ := b.Resume(testContext(t), saved.secret, "ada")
			return ok
		})
	}
}

// A slot moves to another server, and no node has to resync.
func TestAClusterSlotMoves(t *testing.T) {
	t.Parallel()
	cluster := testkit.StartRedisCluster(t)
	a, b := startPair(t, redisAt(cluster.URL()), nil)
	waitAllVisible(t, a, b)
	// The shard is empty, because the kit only moves slots without keys.
	room := message.Room("lobby")
	slot := cluster.Slot(fmt.Sprintf("%s{p%02d}:tags", a.cfg.Prefix, shardOf(room)))
	b.waitUsersIn(t, room, "")
	cluster.MoveSlot(slot)
	a.changePresence(message.PresenceJoined, room, "ada")
	b.changePresence(message.PresenceJoined, room, "bob")
	a.waitUsersIn(t, room, "ada bob")
	b.waitUsersIn(t, room, "ada bob")
	if got := a.metric(t, "presence_resyncs_total", ""); got != 0 {
		t.Errorf("%v shards were resynced", got)
	}
}

// An emptied master of a cluster loses a part of all rooms; the nodes notice
// which.
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
	complete := 0
	for _, node := range cluster.Nodes() {
		for key := range strings.FieldsSeq(node.Do(t, "KEYS", a.cfg.Prefix+"*:who:*")) {
			if node.Do(t, "HLEN", key) == "2" {
				complete++
			}
		}
	}
	if complete != len(rooms) {
		t.Errorf("%d rooms have both members, want %d", complete, len(rooms))
	}
}

// mustExchangeEvents checks that events go both ways between two nodes.
func mustExchangeEvents(t *testing.T, a, b *testNode, what string) {
	t.Helper()
	for _, pair := range [][2]*testNode{{a, b}, {b, a}} {
		from, to := pair[0], pair[1]
		isFrom := func(e message.NodeEvent) bool { return e.Kind == message.EventSessionLive && e.Node == from.cfg.Node }
		before := to.countEvents(isFrom)
		testkit.Eventually(t, what+": events from "+from.cfg.Node+" arrive at "+to.cfg.Node, func() bool {
			from.sendEvent(to.cfg.Node, message.NodeEvent{Kind: message.EventSessionLive})
			return to.countEvents(isFrom) > before
		})
	}
}

// A managed service fails over: its address leads to the new primary, and the old
// one lives on as a replica that keeps its connections. Then a node starts.
func TestAManagedFailover(t *testing.T) {
	t.Parallel()
	old := testkit.StartRedis(t)
	young := testkit.StartRedisReplica(t, old)
	address := testkit.NewProxy(t, old.Addr())
	a, b := startPair(t, redisAt("redis://"+address.Addr()), nil)
	waitAllVisible(t, a, b)
	secret, s := a.New("ada")
	a.save(t, withTwoRooms(s))
	a.changePresence(message.PresenceJoined, "lobby", "ada")
	if err := a.Ban(testContext(t), "eve", time.Hour); err != nil {
		t.Fatal(err)
	}
	b.waitUsersIn(t, "lobby", "ada")
	testkit.Eventually(t, "the replica has the session", func() bool { return young.Do(t, "EXISTS", a.cfg.Prefix+"s:"+string(s.ID)) == "1" })

	young.Promote(t, old)
	address.Retarget(young.Addr())
	c := startAnotherNode(t, a, "node-c")
	testkit.Eventually(t, "all nodes see each other", func() bool { return a.seesNodes(3) && b.seesNodes(3) && c.seesNodes(3) })
	mustExchangeEvents(t, a, c, "after the failover")
	testkit.Eventually(t, "the new node knows the ban", func() bool { return c.isBanned("eve") })
	c.changePresence(message.PresenceJoined, "lobby", "cyd")
	for _, n := range []*testNode{a, b, c} {
		n.waitUsersIn(t, "lobby", "ada cyd")
	}
	testkit.Eventually(t, "the session resumes at the new node", func() bool {
		_, ok, _ := c.Resume(testContext(t), secret, "ada")
		return ok
	})
	a.wantOutagesLoggedOnce(t, 0)
}

// The address leads to another Redis, which is a primary, too, and empty. The
// first one answers as before.
func TestAnAddressThatLeadsToAnotherRedisIsFollowed(t *testing.T) {
	t.Parallel()
	first, second := testkit.StartRedis(t), testkit.StartRedis(t)
	address := testkit.NewProxy(t, first.Addr())
	a := startNodes(t, redisAt("redis://"+address.Addr()), nil, "node-a")[0]
	a.changePresence(message.PresenceJoined, "lobby", "ada")
	a.waitUsersIn(t, "lobby", "ada")
	address.Retarget(second.Addr())
	c := startAnotherNode(t, a, "node-c")
	testkit.Eventually(t, "both nodes see each other", func() bool { return a.seesNodes(2) && c.seesNodes(2) })
	mustExchangeEvents(t, a, c, "on the second Redis")
	c.waitUsersIn(t, "lobby", "ada")
	testkit.Eventually(t, "no connection is left at the first Redis", func() bool {
		return strings.Count(first.Do(t, "CLIENT", "LIST"), " addr=") == 1 // the question's own
	})
}

// While the address leads to a replica, the shared state is down and the log says
// why, once.
func TestAReplicaIsNotTheSharedState(t *testing.T) {
	t.Parallel()
	primary := testkit.StartRedis(t)
	replica := testkit.StartRedisReplica(t, primary)
	cfg, open := redisAt(replica.URL())(t)
	p := &testNode{logs: new(testkit.Logs)}
	cfg.Node, cfg.Logger = "node-a", p.logs.Logger()
	n, err := open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close(testContext(t)) })
	p.Node = n
	n.Start(Hooks{Notify: p.onEvent})
	testkit.Eventually(t, "the log says why", func() bool { return p.logs.Count("read-only replica") == 1 })
	_, s := p.New("ada")
	if got := p.trySave(t, s, false); got != message.SaveFailed || n.Up() {
		t.Errorf("save: %v, up %v", saveResults[got], n.Up())
	}
	replica.Promote(t, primary)
	testkit.Eventually(t, "the promoted replica saves", func() bool { return p.trySave(t, s, false) == message.SaveDone })
	p.waitEvent(t, "that it listens", func(e message.NodeEvent) bool { return e.Kind == message.EventMissed })
	p.wantOutagesLoggedOnce(t, 1)
}
