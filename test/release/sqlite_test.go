package release

import (
	"encoding/json"
	"fmt"
	"testing"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A SQLite file serves one process at a time: this release replaces an earlier one, is
// rolled back, and replaces it again. Clients keep their positions and miss no message.
func TestSQLiteFileUpgradedAndRolledBack(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *release) {
		env := map[string]string{"DATABASE_URL": "sqlite:" + t.TempDir() + "/messages.db"}
		var acks ackLog
		var at client.Position
		for round, program := range []string{r.server(t), testkit.BuildServer(t), r.server(t), testkit.BuildServer(t)} {
			s := testkit.StartServerProgram(t, program, env)
			c := joinRoom(t, "lobby", s)
			if round > 0 {
				assertResumes(t, s, at, acks.size())
			}
			for i := range 20 {
				c.publish(&acks, fmt.Sprintf("%d-%d", round, i))
			}
			testkit.Eventually(t, "all messages", func() bool { return c.count() >= acks.size() })
			if round == 0 {
				at, _ = c.client.Position("lobby")
			}
			acks.check(fmt.Sprintf("the client of server %d", round), c)
			if err := s.Stop(); err != nil {
				t.Errorf("server %d: exit: %v\n%s", round, err, s.Output())
			}
		}
	})
}

// assertResumes checks that a client can resume from a position of the first server.
func assertResumes(t *testing.T, s *testkit.Server, at client.Position, head int) {
	t.Helper()
	ctx := testkit.Within(t, testkit.Timeout)
	c, err := client.Dial(ctx, client.Options{URLs: []string{s.SocketURL()}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	seqs := make(chan message.Seq, 100)
	joined, err := c.Join(ctx, "lobby", at, client.Handler{
		Message: func(m message.Message) { seqs <- m.Seq },
		Gap:     func(g client.Gap) { t.Errorf("a gap of %d to %d: %s", g.From, g.To, g.Reason) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if joined.Epoch != at.Epoch || joined.Head != message.Seq(head) {
		t.Errorf("joined %+v, want epoch %s and head %d", joined, at.Epoch, head)
	}
	if again, err := c.Publish(ctx, "lobby", json.RawMessage(`"0-7"`), "0-7"); err != nil || again.Seq != 8 || !again.Duplicate {
		t.Errorf("an id of the first server: %+v, %v", again, err)
	}
	for want := at.After + 1; want <= joined.Head; want++ {
		select {
		case got := <-seqs:
			if got != want {
				t.Fatalf("got %d, want %d", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("%d was not received", want)
		}
	}
}
