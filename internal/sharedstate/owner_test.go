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

// A socket in the story below: one of a session's, old or new.
type sessionSocket struct {
	node    int
	session message.Session
}

// TestASessionHasOneOwnerUnderFaults: sockets of one session come and go on
// several nodes, and save; answers get lost, and saves arrive late. Whoever
// comes back gets what the owner saved last and was told is kept, or something
// newer; and nobody but the newest socket can change it.
func TestASessionHasOneOwnerUnderFaults(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]backendFactory{
		"memory": memoryFactory,
		"redis":  redisFactory(func(t *testing.T) string { return testkit.Redis(t).URL() }),
	} {
		t.Run(name, func(t *testing.T) {
			peers := startNodes(t, withLongTimeout(h), nil, "node-a", "node-b", "node-c")
			for seed := range uint64(40) {
				runOwnershipFaults(t, rand.New(rand.NewPCG(seed, 3)), peers)
			}
		})
	}
}

func runOwnershipFaults(t *testing.T, rnd *rand.Rand, peers []*testNode) {
	t.Helper()
	secret, s := peers[0].New("ada")
	sockets := []*sessionSocket{{session: s}}
	lastSaved := message.Session{} // what an owner was told is kept
	var delayed []func()
	seq := message.Seq(0)
	for range 60 {
		k := sockets[rnd.IntN(len(sockets))]
		switch rnd.IntN(8) {
		case 0, 1, 2, 3: // a socket saves where its client is
			seq++
			save := k.session
			save.Revision++
			save.Rooms = []message.RoomPosition{{Room: "lobby", Epoch: "e", Seq: seq}}
			node, batch := peers[k.node], []message.SessionSave{{Session: save}}
			if rnd.IntN(6) == 0 {
				delayed = append(delayed, func() { node.Save(context.Background(), batch) })
				k.session.Revision = save.Revision // its next save is a later one
				continue
			}
			newest := k == sockets[len(sockets)-1]
			switch result := node.Save(t.Context(), batch)[0]; {
			case result == message.SaveDone && newest:
				k.session, lastSaved = save, save
			case result == message.SaveDone && lastSaved.Generation > 0:
				t.Fatalf("generation %d saved, though %d is the owner", save.Generation, sockets[len(sockets)-1].session.Generation)
			case result == message.SaveSuperseded && newest:
				t.Fatal("the newest was refused")
			}
		case 4: // one renews
			save := message.SessionSave{Session: k.session, Renew: true}
			if result := peers[k.node].Save(t.Context(), []message.SessionSave{save})[0]; result == message.SaveDone && k.session.Generation < lastSaved.Generation {
				t.Fatal("an older one renewed it")
			}
		case 5: // an older one says goodbye
			if k != sockets[len(sockets)-1] {
				peers[k.node].End(k.session)
			}
		case 6: // something arrives late
			if len(delayed) > 0 {
				i := rnd.IntN(len(delayed))
				delayed[i]()
				delayed = slices.Delete(delayed, i, i+1)
			}
		case 7: // it comes back, somewhere
			if lastSaved.Generation == 0 {
				continue // never saved
			}
			node := rnd.IntN(len(peers))
			got, ok, err := peers[node].Resume(t.Context(), secret, "ada")
			if !ok || err != nil {
				t.Fatalf("it is gone: %v", err)
			}
			if len(got.Rooms) != 1 || got.Rooms[0].Seq < lastSaved.Rooms[0].Seq || got.Rooms[0].Seq > seq {
				t.Fatalf("came back at %v, kept was %v", got.Rooms, lastSaved.Rooms)
			}
			if got.Generation <= sockets[len(sockets)-1].session.Generation {
				t.Fatalf("generation %d after %d", got.Generation, sockets[len(sockets)-1].session.Generation)
			}
			lastSaved = got
			sockets = append(sockets, &sessionSocket{node: node, session: got})
			if rnd.IntN(2) == 0 { // and its answer is lost: that socket never is
				last := sockets[len(sockets)-1]
				again, ok, err := peers[0].Resume(t.Context(), secret, "ada")
				if !ok || err != nil || again.Generation != last.session.Generation+1 {
					t.Fatalf("after a lost answer: %+v, %v", again, err)
				}
				sockets[len(sockets)-1] = &sessionSocket{session: again}
				lastSaved = again
			}
		}
	}
	// Each that is not the newest learns it by its next save.
	for _, k := range sockets[:len(sockets)-1] {
		k.session.Revision += 1000
		if got := peers[k.node].trySave(t, k.session, false); got != message.SaveSuperseded {
			t.Errorf("an older socket's last save: %v", saveResults[got])
		}
	}
}

// TestBansAreNeverLost: bars are set on any node while notices and answers get
// lost and Redis is emptied; in the end every node has the longest bar of each.
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
		_ = peers[rnd.IntN(3)].Ban(t.Context(), user, hoursLong(hours)) // one that is not told is known here
		longest[user] = max(longest[user], hours)
	}
	for user, hours := range longest {
		for _, p := range append(peers, startAnotherNode(t, peers[0], "node-d"+user)) {
			eventually(t, p.cfg.Node+" to know the longest bar of "+user, func() bool {
				left, _ := p.Banned(user)
				return left > hoursLong(hours)-hoursLong(1)/2 && left <= hoursLong(hours)+banTolerance
			})
		}
	}
}

func hoursLong(n int) time.Duration { return time.Duration(n) * time.Hour }
