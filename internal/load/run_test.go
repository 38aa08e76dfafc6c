package load

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// start starts a run that ends with the test.
func start(t *testing.T, ctx context.Context, plan Plan) *Run {
	t.Helper()
	run, err := Start(ctx, plan)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run.Stop(); <-run.Done() })
	return run
}

// awaitProgress waits until a run has come so far.
func awaitProgress(t *testing.T, run *Run, far func(Progress) bool) {
	t.Helper()
	testkit.Eventually(t, "the run comes far enough", func() bool { return far(run.Progress()) })
}

// Clients on two nodes publish while their connections break all the time, and
// everything arrives: members get each message once, and the readers at the end
// find all of them.
func TestARunWithBrokenConnectionsIsClean(t *testing.T) {
	t.Parallel()
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL()}
	a, b := testkit.StartServer(t, env), testkit.StartServer(t, env)
	run := start(t, t.Context(), Plan{
		URLs: []string{a.SocketURL(), b.SocketURL()}, Clients: 30, Rooms: 5, Rate: 300,
		Cut: 75 * time.Millisecond,
	})
	awaitProgress(t, run, func(p Progress) bool { return p.Acked > 600 && p.Reconnects > 20 })
	run.Stop()
	report := run.Report()
	if report.Verdict != Clean || report.Gaps > 0 || report.Unknown > 0 || len(report.Refused) > 0 || report.Overtaken > 0 {
		t.Error(report)
	}
	acked := report.Acked
	if want := 7 * acked; report.Delivered != want || report.Rooms != 5 || len(report.Subscribers) != 30+5 {
		t.Errorf("%d messages were delivered to six members and a reader of each room, want %d\n%v", report.Delivered, want, report)
	}
	if f := report.Run; f.Cuts < 20 || f.Reconnects < f.Cuts/2 || f.Unread > 0 || len(f.Rejected) > 0 || f.Ended != "stopped" {
		t.Errorf("%+v", f)
	}
	if n := int(run.Progress().Published); n != acked-5 {
		t.Errorf("%d messages were published, %d with the last message of each room", n, acked)
	}
}

// Nodes die and restart during a run; the run continues and is clean.
func TestARunSurvivesNodeRestarts(t *testing.T) {
	t.Parallel()
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL()}
	a, b := testkit.StartServer(t, env), testkit.StartServer(t, env)
	run := start(t, t.Context(), Plan{URLs: []string{a.SocketURL(), b.SocketURL()}, Clients: 20, Rooms: 4, Rate: 200})
	for _, node := range []*testkit.Server{a, b} {
		node.Kill()
		before := run.Progress().Acked
		awaitProgress(t, run, func(p Progress) bool { return p.Acked > before+20 })
		node.Restart()
	}
	run.Stop()
	report := run.Report()
	if report.Verdict != Clean || report.Gaps > 0 || report.Acked < 40 || report.Run.Reconnects < 10 || report.Run.Ended != "stopped" {
		t.Error(report)
	}
}

func TestPublishingAsFastAsAcksArrive(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	run := start(t, t.Context(), Plan{
		URLs: []string{s.SocketURL()}, Clients: 10, Rooms: 2, Publishers: 4, Window: 3, Size: 1000, Unchecked: true,
	})
	awaitProgress(t, run, func(p Progress) bool { return p.Acked > 50 })
	run.Stop()
	speed := run.Speed()
	if run.Report() != nil || run.History() != nil {
		t.Error("an unchecked run has a report or a history")
	}
	if speed.Acked < 50 || speed.Failed > 0 || speed.AcksPerSecond <= 0 || speed.Delivered < 4*speed.Acked {
		t.Errorf("\n%v", speed)
	}
	if n := speed.PublishToAck.Count(); n < speed.Acked || speed.PublishToAck.Max() == 0 {
		t.Errorf("%d of %d acks were timed", n, speed.Acked)
	}
	if n := speed.PublishToDelivery.Count(); n < speed.Delivered || speed.PublishToDelivery.Max() > time.Minute {
		t.Errorf("%d of %d deliveries were timed, at most %v", n, speed.Delivered, speed.PublishToDelivery.Max())
	}
	b, err := json.Marshal(speed)
	if err != nil || !strings.Contains(string(b), `"acks_per_second"`) || !strings.Contains(speed.String(), "delivered") {
		t.Errorf("%s, %v\n%v", b, err, speed)
	}
}

// If ctx ends, publishing ends, and the run is checked nevertheless.
func TestAnInterruptedRunIsStillChecked(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	run := start(t, ctx, Plan{URLs: []string{s.SocketURL()}, Clients: 4, Rooms: 2, Rate: 100, Duration: time.Hour})
	awaitProgress(t, run, func(p Progress) bool { return p.Acked > 10 })
	cancel()
	if report := run.Report(); report.Verdict != Clean || report.Run.Ended != "stopped" {
		t.Error(report)
	}
}

// A run ends, and is clean, before its history is full.
func TestARunEndsBeforeItsHistoryIsFull(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	run := start(t, t.Context(), Plan{
		URLs: []string{s.SocketURL()}, Clients: 10, Rooms: 1, Rate: 500, Duration: time.Hour, MaxEvents: 4000,
	})
	if report := run.Report(); report.Verdict != Clean || report.Run.Ended != "the history is full" {
		t.Error(report)
	}
}

func TestUnreachableAddressesAreReported(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	dead := "ws://127.0.0.1:1/ws"
	_, err := Start(t.Context(), Plan{URLs: []string{s.SocketURL(), dead}})
	if err == nil || !strings.Contains(err.Error(), "can't connect to "+dead) || strings.Contains(err.Error(), s.Addr) {
		t.Errorf("an address where no server listens: %v", err)
	}
	_, err = Start(t.Context(), Plan{URLs: []string{"ws://" + s.Addr + "/nowhere"}})
	if err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a wrong path: %v", err)
	}
	_, err = Start(t.Context(), Plan{URLs: []string{"http://" + s.Addr}})
	if err == nil || !strings.Contains(err.Error(), "is not a ws:// or wss:// URL") {
		t.Errorf("a URL that is not a socket: %v", err)
	}
}

// If only some clients can join, the run fails and all of them are closed.
func TestARunFailsUnlessAllClientsJoin(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, map[string]string{"MAX_CONNECTIONS": "5"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var dials atomic.Int32
	_, err := Start(ctx, Plan{
		URLs: []string{s.SocketURL()}, Clients: 8, Rooms: 1,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			// After the preflight and the first dials of all clients, a client dials
			// again because it was rejected.
			if dials.Add(1) == 1+8+1 {
				cancel()
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	})
	if err == nil || !strings.Contains(err.Error(), "of 8 clients could join") || !strings.Contains(err.Error(), "4103") {
		t.Errorf("%v", err)
	}
}

func TestPlansOutOfBounds(t *testing.T) {
	for says, plan := range map[string]Plan{
		"url must be given":                           {},
		"clients must be 1 to 15000, not -1":          {Clients: -1},
		"clients must be 1 to 15000, not 15001":       {Clients: 15_001, Rooms: 1},
		"rooms must be 1 to 5, not 6":                 {Clients: 5, Rooms: 6},
		"publishers must be 1 to 5, not 6":            {Clients: 5, Publishers: 6},
		"size must be 24 to 1048576, not 23":          {Size: 23},
		"window must be 1 to 1024, not 1025":          {Window: 1025},
		"rate must be 0 to 1000000 a second, not -1":  {Rate: -1},
		"duration must be 0s to 24h0m0s, not 25h0m0s": {Duration: 25 * time.Hour},
		"ramp-up must be 0s to 1h0m0s, not -1s":       {RampUp: -time.Second},
		"cut must be 0s or 1ms and more, not 1µs":     {Cut: time.Microsecond},
		"settle must be 0s to 1h0m0s, not 2h0m0s":     {Settle: 2 * time.Hour},
		"prefix must be 1 to 32 of":                   {Prefix: "_reserved"},
		"max-events must be 2000 to 100000000, not 1": {MaxEvents: 1},
	} {
		if !strings.HasPrefix(says, "url") {
			plan.URLs = []string{"ws://localhost:8000/ws"}
		}
		_, err := Start(t.Context(), plan)
		var bound *BoundError
		if !errors.As(err, &bound) || !strings.Contains(err.Error(), says) {
			t.Errorf("the error %v does not say %q", err, says)
		}
	}
}

// Every room has members on every node, for any numbers of rooms and nodes.
func TestEachRoomIsOnEachNode(t *testing.T) {
	for nodes := 1; nodes <= 4; nodes++ {
		for rooms := 1; rooms <= 6; rooms++ {
			plan := Plan{Clients: rooms * nodes, Rooms: rooms, URLs: []string{"a", "b", "c", "d"}[:nodes]}
			homes := map[string]bool{}
			for n := range plan.Clients {
				urls := plan.urlsOf(n)
				homes[string(plan.room(n%rooms))+urls[0]] = true
				if len(urls) != nodes {
					t.Errorf("client %d has the addresses %q", n, urls)
				}
			}
			if len(homes) != rooms*nodes {
				t.Errorf("the members of %d rooms on %d nodes are %v", rooms, nodes, homes)
			}
		}
	}
}
