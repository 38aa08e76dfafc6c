package load

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// replayFrames passes frames to a frame tap, and to its subscription what a client
// makes of them. It returns the faults that the tap records. A line has the
// connection, the type and epoch:seq of a frame.
func replayFrames(t *testing.T, from client.Position, lines string) []string {
	t.Helper()
	h := NewHistory()
	s := h.Subscribe("s", "r", from)
	tap := newFrameTap(h, func() string { return "" })
	tap.watch(s)
	for _, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		var connection uint64
		var kind, text string
		if _, err := fmt.Sscan(line, &connection, &kind, &text); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		var at event
		if err := at.parsePosition(text); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		f := client.Frame{Connection: connection, Type: kind, Room: "r", Epoch: at.Epoch, Seq: at.Seq, To: at.To}
		tap.onFrame(f)
		current := s.position()
		switch {
		case kind == "joined":
			s.Joined(client.Joined{Epoch: f.Epoch, Head: f.Seq})
		case kind == "gap" && (f.Epoch != current.epoch || f.To > current.seq):
			s.Gap(client.Gap{Epoch: f.Epoch, From: f.Seq, To: f.To})
		case kind == "message" && (f.Epoch != current.epoch || f.Seq == current.seq+1):
			s.Deliver(message.Message{Draft: message.Draft{Room: "r"}, Epoch: f.Epoch, Seq: f.Seq})
		}
	}
	var recorded []string
	for e := range h.all() {
		if e.Kind == skipped || e.Kind == repeated {
			recorded = append(recorded, strings.TrimSpace(fmt.Sprintf("%s %s:%d %d %s", kindNames[e.Kind], e.Epoch, e.Seq, e.To, e.Reason)))
		}
	}
	return recorded
}

// correctedFrames are frames of a connection, and the faults that they show.
var correctedFrames = map[string]struct {
	from  client.Position
	lines string
	want  []string
}{
	"no fault": {client.Now(), `
			1 joined e:5
			1 message e:6
			1 message e:7`, nil},
	"a duplicate": {client.Now(), `
			1 joined e:5
			1 message e:6
			1 message e:6`, []string{"repeat e:6 6"}},
	"an older message": {client.Start(), `
			1 joined e:3
			1 message e:1
			1 message e:2
			1 message e:1`, []string{"repeat e:1 2"}},
	"a skip, after which the client asks again": {client.Start(), `
			1 joined e:0
			1 message e:1
			1 message e:3
			1 message e:4
			1 joined e:4
			1 message e:2
			1 message e:3
			1 message e:4`, []string{"skip e:3 1"}},
	"a skip right after a join": {client.Start(), `
			1 joined e:3
			1 message e:2`, []string{"skip e:2 0"}},
	"a skip in a resume": {client.Start(), `
			1 joined e:1
			1 message e:1
			2 joined e:3
			2 message e:3`, []string{"skip e:3 1"}},
	"a declared gap": {client.Start(), `
			1 joined e:5
			1 gap e:1-3
			1 message e:4
			1 gap e:5-6
			1 message e:7`, nil},
	"a declared gap, then a skip": {client.Start(), `
			1 joined e:5
			1 gap e:1-3
			1 message e:5`, []string{"skip e:5 3"}},
	"a new epoch, declared": {client.Start(), `
			1 joined e:1
			1 message e:1
			1 gap f:1-4
			1 message f:5`, nil},
	"a new epoch without a gap": {client.Start(), `
			1 joined e:1
			1 message e:1
			1 message f:2
			1 message f:3`, []string{"skip f:2 1 epoch"}},
	"a new epoch without a gap after a reconnect": {client.Start(), `
			1 joined e:1
			1 message e:1
			2 joined f:1
			2 message f:2`, []string{"skip f:2 1 epoch"}},
	"a new epoch before the first message": {client.Start(), `
			1 joined e:0
			2 joined f:1
			2 message f:1`, nil},
	"a move, with the same messages on both connections": {client.Start(), `
			1 joined e:1
			1 message e:1
			1 message e:2
			2 joined e:2
			1 message e:3
			2 message e:2
			2 message e:3
			1 message e:4
			2 message e:4
			1 left e:4
			2 message e:5`, nil},
	"a move to a connection that skips": {client.Start(), `
			1 joined e:1
			1 message e:1
			2 joined e:2
			2 message e:2
			2 message e:4
			1 message e:2`, []string{"skip e:4 2"}},
	"a room without a join": {client.Now(), `
			1 message e:5
			1 gap e:1-2`, nil},
}

func TestTheFrameTapSeesWhatTheClientCorrects(t *testing.T) {
	for name, tt := range correctedFrames {
		t.Run(name, func(t *testing.T) {
			if got := replayFrames(t, tt.from, tt.lines); !slices.Equal(got, tt.want) {
				t.Errorf("the tap recorded %q, want %q", got, tt.want)
			}
		})
	}
}

// However often a client reconnects, the tap keeps two connections.
func TestTheFrameTapForgetsOldConnections(t *testing.T) {
	h := NewHistory()
	tap := newFrameTap(h, func() string { return "" })
	tap.watch(h.Subscribe("s", "r", client.Now()))
	for n := range uint64(1000) {
		tap.onFrame(client.Frame{Connection: n, Type: "joined", Room: "r", Epoch: "e"})
	}
	if len(tap.streams) > 2 {
		t.Errorf("the tap keeps %d connections", len(tap.streams))
	}
}

// An ack that comes after the outcome of its publish is recorded.
func TestTheFrameTapRecordsLateAcks(t *testing.T) {
	h := NewHistory()
	tap := newFrameTap(h, func() string { return "ann" })
	tap.publishStarted("r", "a")
	tap.onFrame(client.Frame{Type: "ack", Room: "r", Epoch: "e", Seq: 1, ID: "a"})
	tap.publishAnswered("r", "a")
	tap.onFrame(client.Frame{Type: "ack", Room: "r", Epoch: "e", Seq: 2, ID: "a"})
	var recorded []event
	for e := range h.all() {
		e.At = 0
		recorded = append(recorded, e)
	}
	if want := []event{{Kind: lateAck, Room: "r", User: "ann", ID: "a", Epoch: "e", Seq: 2}}; !slices.Equal(recorded, want) {
		t.Errorf("the tap recorded %+v, want %+v", recorded, want)
	}
}
