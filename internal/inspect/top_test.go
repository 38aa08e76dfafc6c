package inspect

import (
	"testing"

	"switchyard/internal/stack"
)

// A room that is live on several nodes is one row: its members are counted together,
// and its backlog is that of the worst node.
func TestRoomsAreMergedOverNodes(t *testing.T) {
	s := &fakeStack{t: t, containers: []stack.Container{nodeContainer("blue-1"), nodeContainer("blue-2")}, answers: map[string]string{
		"blue-1": `[{"room":"lobby","seq":10,"members":3,"held":5,"behind":0},{"room":"_canary","seq":9,"members":1},{"room":"a","seq":1,"members":1}]`,
		"blue-2": `[{"room":"lobby","seq":12,"members":4,"held":1,"behind":7},{"room":"b","seq":1,"members":2}]`,
	}}
	w := &Watcher{Stack: s, MaxRooms: 2, Prometheus: fakePrometheus(t, nil)}
	now, err := w.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if now.LiveRooms != 3 || len(now.Rooms) != 2 {
		t.Fatalf("%d live rooms, %d listed: %+v", now.LiveRooms, len(now.Rooms), now.Rooms)
	}
	r := now.Rooms[0]
	r.seqAt = now.Rooms[1].seqAt
	if want := (Room{Room: "lobby", Seq: 12, Members: 7, Rate: -1, Buffered: 5, Behind: 7, seqAt: r.seqAt}); r != want || now.Rooms[1].Room != "b" {
		t.Errorf("got %+v, want %+v, then room b", now.Rooms, want)
	}
	// A restore to an older state lowers the seq: the rate is 0, not negative.
	s.answers = map[string]string{"blue-1": `[{"room":"lobby","seq":3,"members":1}]`, "blue-2": `[]`}
	if now, err = w.Snapshot(t.Context()); err != nil || now.Rooms[0].Rate != 0 {
		t.Errorf("after a restore: %+v, %v", now, err)
	}
	s.answers["blue-2"] = "no JSON"
	if now, err = w.Snapshot(t.Context()); err != nil || now.RoomsError != `blue-2 answered "no JSON"` {
		t.Errorf("a node that does not answer in JSON: %+v, %v", now, err)
	}
	w.Prometheus = unreachablePrometheus(t)
	if _, err = w.Snapshot(t.Context()); err == nil {
		t.Error("without nodes and Prometheus there is no error")
	}
}
