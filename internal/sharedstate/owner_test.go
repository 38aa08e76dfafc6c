package sharedstate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A sessionConn is one connection of a session: the current one, or an older one
// that still saves.
type sessionConn struct {
	node    int
	session message.Session
}

// Connections of one session come and go on several nodes, and save; replies get
// lost, and saves arrive late. A resume returns the last state whose save was
// confirmed to the owner, or a newer one, and only the newest connection can
// change the session.
func TestASessionHasOneOwnerUnderFaults(t *testing.T) {
	t.Parallel()
	for name, factory := range map[string]backendFactory{
		"memory": memoryFactory,
		"redis":  redisFactory(func(t *testing.T) string { return testkit.Redis(t).URL() }),
	} {
		t.Run(name, func(t *testing.T) {
			peers := startNodes(t, withLongTimeout(factory), nil, "node-a", "node-b", "node-c")
			for seed := range uint64(40) {
				runOwnershipFaults(t, rand.New(rand.NewPCG(seed, 3)), peers)
			}
		})
	}
}

func runOwnershipFaults(t *testing.T, rnd *rand.Rand, peers []*testNode) {
	t.Helper()
	secret, s := peers[0].New("ada")
	conns := []*sessionConn{{session: s}}
	lastSaved := message.Session{} // confirmed to an owner
	var delayed []func()
	seq := message.Seq(0)
	for range 60 {
		conn := conns[rnd.IntN(len(conns))]
		switch rnd.IntN(8) {
		case 0, 1, 2, 3: // a connection saves its client's position
			seq++
			save := conn.session
			save.Revision++
			save.Rooms = []message.RoomPosition{{Room: "lobby", Epoch: "e", Seq: seq}}
			node, batch := peers[conn.node], []message.SessionSave{{Session: save}}
			if rnd.IntN(6) == 0 {
				delayed = append(delayed, func() { node.Save(context.Background(), batch) })
				conn.session.Revision = save.Revision // so that its next save is a later one
				continue
			}
			newest := conn == conns[len(conns)-1]
			switch result := node.Save(t.Context(), batch)[0]; {
			case result == message.SaveDone && newest:
				conn.session, lastSaved = save, save
			case result == message.SaveDone && lastSaved.Generation > 0:
				t.Fatalf("generation %d saved, though %d is the owner", save.Generation, conns[len(conns)-1].session.Generation)
			case result == message.SaveSuperseded && newest:
				t.Fatal("the newest connection's save was refused")
			}
		case 4: // a connection renews the session
			save := message.SessionSave{Session: conn.session, Renew: true}
			if result := peers[conn.node].Save(t.Context(), []message.SessionSave{save})[0]; result == message.SaveDone && conn.session.Generation < lastSaved.Generation {
				t.Fatal("an older connection renewed the session")
			}
		case 5: // an older connection ends the session
			if conn != conns[len(conns)-1] {
				peers[conn.node].End(conn.session)
			}
		case 6: // a delayed save arrives
			if len(delayed) > 0 {
				i := rnd.IntN(len(delayed))
				delayed[i]()
				delayed = slices.Delete(delayed, i, i+1)
			}
		case 7: // the client reconnects to some node
			if lastSaved.Generation == 0 {
				continue // never saved
			}
			node := rnd.IntN(len(peers))
			got, ok, err := peers[node].Resume(t.Context(), secret, "ada")
			if !ok || err != nil {
				t.Fatalf("the session is gone: %v", err)
			}
			if len(got.Rooms) != 1 || got.Rooms[0].Seq < lastSaved.Rooms[0].Seq || got.Rooms[0].Seq > seq {
				t.Fatalf("resumed at %v, saved was %v", got.Rooms, lastSaved.Rooms)
			}
			if got.Generation <= conns[len(conns)-1].session.Generation {
				t.Fatalf("generation %d after %d", got.Generation, conns[len(conns)-1].session.Generation)
			}
			lastSaved = got
			conns = append(conns, &sessionConn{node: node, session: got})
			if rnd.IntN(2) == 0 { // the reply is lost, so the client reconnects again
				last := conns[len(conns)-1]
				again, ok, err := peers[0].Resume(t.Context(), secret, "ada")
				if !ok || err != nil || again.Generation != last.session.Generation+1 {
					t.Fatalf("after a lost reply: %+v, %v", again, err)
				}
				conns[len(conns)-1] = &sessionConn{session: again}
				lastSaved = again
			}
		}
	}
	// Each older connection learns that it is superseded by its next save.
	for _, conn := range conns[:len(conns)-1] {
		conn.session.Revision += 1000
		if got := peers[conn.node].trySave(t, conn.session, false); got != message.SaveSuperseded {
			t.Errorf("an older connection's last save: %v", saveResults[got])
		}
	}
}

// Nodes ban users while events and replies get lost and Redis is emptied. In the
// end every node has the longest ban of each user.
func TestBansAreNeverLost(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	proxy := testkit.NewProxy(t, server.Addr())
	peers := startNodes(t, redisAt("redis://"+proxy.Addr()), nil, "node-a", "node-b", "node-c")
	rnd := rand.New(rand.NewPCG(5, 5))
	longest := map[string]int{}
	for i := range 40 {
		user, hours := fmt.Sprintf("u%d", rnd.IntN(10)), 1+rnd.IntN(100)
		switch i {
		case 10, 30:
			server.Do(t, "FLUSHALL")
		case 20:
			proxy.Cut()
		}
		_ = peers[rnd.IntN(3)].Ban(t.Context(), user, hoursLong(hours)) // a ban that fails is known to this node
		longest[user] = max(longest[user], hours)
	}
	for user, hours := range longest {
		for _, p := range append(peers, startAnotherNode(t, peers[0], "node-d"+user)) {
			testkit.Eventually(t, p.cfg.Node+" knows the longest ban of "+user, func() bool {
				left, _ := p.Banned(user)
				return left > hoursLong(hours)-hoursLong(1)/2 && left <= hoursLong(hours)+banTolerance
			})
		}
	}
}

func hoursLong(n int) time.Duration { return time.Duration(n) * time.Hour }
