package sharedstate

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"switchyard/internal/broker"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

func benchNode(b *testing.B) *Node {
	b.Helper()
	opts, _, err := broker.Options(broker.Config{URL: testkit.Redis(b).URL()})
	if err != nil {
		b.Fatal(err)
	}
	n, err := OpenRedis(Config{
		Node: "node-a", Redis: opts, Prefix: testkit.RedisPrefix(), Rates: Rates{Calls: 1e9}, timeout: testkit.Timeout,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = n.Close(context.Background()) })
	return n
}

// BenchmarkSave saves sessions with 20 rooms, 256 at a time.
func BenchmarkSave(b *testing.B) {
	n := benchNode(b)
	batch := make([]message.SessionSave, 256)
	for i := range batch {
		_, batch[i].Session = n.New("ada")
		batch[i].Rooms = manyRooms(20)
	}
	b.ReportAllocs()
	for i := 0; i < b.N; i += len(batch) {
		for j := range batch {
			batch[j].Revision++
		}
		n.Save(context.Background(), batch)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sessions/s")
}

// BenchmarkTouch renews sessions that have not changed, 256 at a time.
func BenchmarkTouch(b *testing.B) {
	n := benchNode(b)
	batch := make([]message.SessionSave, 256)
	for i := range batch {
		_, batch[i].Session = n.New("ada")
	}
	n.Save(context.Background(), batch)
	for i := range batch {
		batch[i].Renew = true
	}
	b.ReportAllocs()
	for i := 0; i < b.N; i += len(batch) {
		n.Save(context.Background(), batch)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sessions/s")
}

// BenchmarkResume resumes 256 sessions concurrently.
func BenchmarkResume(b *testing.B) {
	n := benchNode(b)
	secrets := make([]string, 256)
	batch := make([]message.SessionSave, 256)
	for i := range batch {
		secrets[i], batch[i].Session = n.New("ada")
		batch[i].Rooms = manyRooms(20)
	}
	n.Save(context.Background(), batch)
	b.ReportAllocs()
	b.ResetTimer()
	var all sync.WaitGroup
	for i := range secrets {
		all.Go(func() {
			for range b.N/len(secrets) + 1 {
				if _, ok, err := n.Resume(context.Background(), secrets[i], "ada"); !ok {
					panic(err)
				}
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "resumes/s")
}

// BenchmarkPresence makes sessions join and leave, 256 in a round trip.
func BenchmarkPresence(b *testing.B) {
	n := benchNode(b)
	p := n.presence
	b.ReportAllocs()
	for i := range b.N {
		kind := message.PresenceJoined
		if i/256%2 == 1 {
			kind = message.PresenceLeft
		}
		n.Change([]message.PresenceChange{{
			Kind: kind, Room: message.Room(fmt.Sprintf("r%d", i%100)), Session: message.SessionID(fmt.Sprintf("s%d", i%256)), Generation: 1,
		}})
		if i%256 == 255 {
			for p.flushOnce(context.Background()) {
			}
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "changes/s")
}

// BenchmarkRoom lists a room of 200 members.
func BenchmarkRoom(b *testing.B) {
	n := benchNode(b)
	for i := range 200 {
		n.Change([]message.PresenceChange{{Room: "lobby", Session: message.SessionID(fmt.Sprintf("s%030d", i)), User: "ada", Generation: 1}})
	}
	for n.presence.flushOnce(context.Background()) {
	}
	b.ReportAllocs()
	for range b.N {
		if got, err := n.backend.roomPresence(context.Background(), "lobby", map[string]bool{"node-a": true}, 200); err != nil || got.Count != 200 {
			b.Fatal(got.Count, err)
		}
	}
}

// BenchmarkPublish measures what the limit adds to each publish.
func BenchmarkPublish(b *testing.B) {
	n := benchNode(b)
	users := make([]string, 1000)
	for i := range users {
		users[i] = fmt.Sprintf("user-%d", i)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			n.AllowPublish(users[i%1000], 128)
		}
	})
}
