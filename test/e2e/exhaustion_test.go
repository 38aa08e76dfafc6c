package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// An exhaustion is what strangers do to use up a node: more of what anyone may do.
type exhaustion struct {
	name string
	// attack goes on until ctx ends; share is the part of the whole attack that it is.
	attack func(ctx context.Context, s *stranger, share float64)
	// byOne means that one user does it, who may cost the node little.
	byOne bool
	// takesMemory means that clients are closed for it.
	takesMemory bool
}

const (
	exhaustionMemory = 256 << 20 // GOMEMLIMIT of the nodes, in bytes
	// exhaustionShort and exhaustionLong are how long an attack lasts, and
	// exhaustionShare how large it is in the short form.
	exhaustionShort, exhaustionLong = 3 * time.Second, time.Minute
	exhaustionShare                 = 0.1
	// exhaustionQueues is QUEUE_TOTAL_BYTES in the short form, which its share of an attack
	// exceeds; in the long one it is a quarter of the memory.
	exhaustionQueues = 6 << 20
	// maxSocketMemory bounds what the kernel holds for the connections of the machine,
	// in bytes.
	maxSocketMemory = 400 << 20
	// maxCoreShare is how much of a core one user may cost.
	maxCoreShare = 0.05

	archiveMessages, archiveSize = 280, 50 << 10 // 14 MB
)

// exhaustions are the attacks.
func exhaustions() []exhaustion {
	return []exhaustion{
		{name: "readers that read nothing", attack: stuckReaders, takesMemory: true},
		{name: "replays by joins", attack: joinReplays, byOne: true},
		{name: "history by a hundred connections", attack: historyCalls, byOne: true},
		{name: "idle connections", attack: idleConnections},
		{name: "tokens with wrong signatures", attack: junkTokens, byOne: true},
		{name: "joins of rooms that nobody is in", attack: roomJoins, byOne: true},
		{name: "connections that come and go", attack: reconnects, byOne: true},
		{name: "frames without a request", attack: controlFrames, byOne: true},
		{name: "large frames that never end", attack: unfinishedFrames, takesMemory: true},
	}
}

// Strangers use up what a node gives everyone, and honest clients notice nothing: none is
// closed, no message is lost, the node stays ready and within its memory. Those of another
// node, which nobody attacks, are the control. `make hostile` is the whole attack, which
// also compares the latencies and the processor time.
func TestStrangersDoNotUseUpANode(t *testing.T) {
	if !*longFaults {
		t.Parallel()
	}
	for _, e := range exhaustions() {
		t.Run(e.name, func(t *testing.T) {
			if !*longFaults {
				t.Parallel()
			}
			e.run(t)
		})
	}
}

// run attacks one of two nodes.
func (e exhaustion) run(t *testing.T) {
	long := exhaustionShort
	share := exhaustionShare
	if *longFaults {
		long, share = exhaustionLong, 1
	}
	queues := 0
	if !*longFaults {
		queues = exhaustionQueues
	}
	attacked, control := startExhaustionNode(t, queues), startExhaustionNode(t, queues)
	attacked.fillArchive(t)
	honest, unharmed := attacked.startHonest(t), control.startHonest(t)
	testkit.Eventually(t, "the honest clients to publish", func() bool {
		return honest.Progress().Acked > 100 && unharmed.Progress().Acked > 100
	})

	attackedCPU, controlCPU, began := attacked.cpu(t), control.cpu(t), time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	s := &stranger{node: attacked, lasts: long}
	defer context.AfterFunc(ctx, s.closeAll)() // ends what waits for the node
	ended := make(chan struct{})
	go func() { defer close(ended); e.attack(ctx, s, share) }()
	kernel := attacked.watch(ctx, t)
	took := time.Since(began)
	cost := (attacked.cpu(t) - attackedCPU) - (control.cpu(t) - controlCPU)
	<-ended
	s.closeAll()

	honest.Stop()
	unharmed.Stop()
	report, beside := honest.Report(), unharmed.Report()
	memory := peakMemory(t, attacked.Server)
	coreShare := float64(cost) / float64(took)
	t.Logf("%d connections, %d requests; acks p50 %v p99 %v, beside p50 %v p99 %v; %d MiB, sockets %d MiB, %.1f %% of a core",
		s.opened.Load(), s.sent.Load(), report.PublishToAck.Quantile(0.5), report.PublishToAck.Quantile(0.99),
		beside.PublishToAck.Quantile(0.5), beside.PublishToAck.Quantile(0.99), memory>>20, kernel>>20, 100*coreShare)
	for _, r := range []*load.Report{report, beside} {
		if r.Verdict != load.Clean || r.Unknown > 0 || len(r.Refused) > 0 || r.Gaps > 0 || r.Run.Reconnects > 0 || len(r.Run.Rejected) > 0 {
			t.Errorf("honest clients were affected:\n%s", r)
		}
	}
	if memory > exhaustionMemory/4*5 {
		t.Errorf("the node took %d MiB, over a quarter more than %d", memory>>20, exhaustionMemory>>20)
	}
	if closes := metric(t, attacked.Server, "websocket_memory_closes_total"); e.takesMemory && closes == 0 {
		t.Error("nobody was closed for lack of memory: the attack took too little")
	}
	if !*longFaults {
		return
	}
	if kernel > maxSocketMemory { // with other tests beside it the sockets are not the attack's alone
		t.Errorf("the sockets of the machine took %d MiB", kernel>>20)
	}
	if ours, theirs := report.PublishToAck.Quantile(0.99), beside.PublishToAck.Quantile(0.99); ours > 2*theirs {
		t.Errorf("the 99th percentile of acks is %v, over twice %v", ours, theirs)
	}
	if e.byOne && coreShare > maxCoreShare {
		t.Errorf("one user cost %.1f %% of a core", 100*coreShare)
	}
}

// An exhaustionNode is a node with a database and a Redis of its own, with the settings
// that are shipped, less memory, and a trusted proxy in front, so that the story chooses the
// addresses of its clients.
type exhaustionNode struct{ *testkit.Server }

func startExhaustionNode(t *testing.T, queues int) *exhaustionNode {
	t.Helper()
	return &exhaustionNode{testkit.StartPlainServer(t, map[string]string{
		"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL(),
		"AUTH_JWT_SECRET": signingSecret, "API_KEYS": "shop:" + shopKey, "TRUSTED_PROXIES": "127.0.0.1", "AUDIT_LOG": "off",
		"GOMEMLIMIT": strconv.Itoa(exhaustionMemory), "MAX_CONNECTIONS": "5000", "QUEUE_TOTAL_BYTES": strconv.Itoa(queues),
	})}
}

// userToken returns the token of a user who may do everything in all rooms.
func userToken(user string) string {
	return signHS256(`{"alg":"HS256"}`, mustJSON(jsonObject{
		"sub": user, "exp": time.Now().Add(time.Hour).Unix(), "rooms": jsonObject{"*": "rw"},
	}), signingSecret)
}

// fillArchive fills the room that attacks read.
func (n *exhaustionNode) fillArchive(t *testing.T) {
	t.Helper()
	body := `{"data":"` + strings.Repeat("x", archiveSize) + `"}`
	for range archiveMessages {
		if res, answer := testkit.Call(t, http.MethodPost, n.URL()+"/v1/rooms/archive/messages", shopKey, body); res.StatusCode != http.StatusCreated {
			t.Fatalf("%d %s", res.StatusCode, answer)
		}
	}
}

// startHonest starts fifty clients, each of whom publishes twice a second.
func (n *exhaustionNode) startHonest(t *testing.T) *load.Run {
	t.Helper()
	var tokens []string
	for i := range 50 {
		tokens = append(tokens, userToken(fmt.Sprint("honest-", i)))
	}
	run, err := load.Start(t.Context(), load.Plan{
		URLs: []string{n.SocketURL()}, Tokens: tokens, Clients: 50, Rooms: 10, Prefix: "honest", Rate: 100, Settle: 2 * time.Minute,
		Header: func(client int) http.Header {
			return http.Header{"X-Forwarded-For": {fmt.Sprint("198.51.100.", client)}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run.Stop(); <-run.Done() })
	return run
}

// cpu returns the processor time that the node has used.
func (n *exhaustionNode) cpu(t *testing.T) time.Duration {
	t.Helper()
	_, stat, _ := strings.Cut(string(testkit.ReadFile(t, fmt.Sprintf("/proc/%d/stat", n.Pid()))), ") ")
	fields := strings.Fields(stat)
	ticks := 0
	for _, i := range []int{11, 12} { // utime and stime, in hundredths of a second
		used, err := strconv.Atoi(fields[i])
		if err != nil {
			t.Fatal(err)
		}
		ticks += used
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// watch checks that probes find the node ready until ctx ends, and returns the most memory
// that the sockets of the machine had.
func (n *exhaustionNode) watch(ctx context.Context, t *testing.T) (most int) {
	t.Helper()
	page := os.Getpagesize()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return most
		case <-tick.C:
		}
		_, stat, _ := strings.Cut(string(testkit.ReadFile(t, "/proc/net/sockstat")), "TCP: ")
		_, pages, _ := strings.Cut(strings.SplitN(stat, "\n", 2)[0], " mem ")
		if used, err := strconv.Atoi(pages); err == nil {
			most = max(most, used*page)
		}
		if status, body := readiness(t, n.Server); status != http.StatusOK {
			t.Errorf("a probe: %d %s", status, body)
		}
	}
}

// Ten thousand members are a mebibyte behind for a moment, as after a stall of the network.
// Nobody is closed, since what waits for all is in memory once, and everybody gets
// everything. The short form has a hundred.
func TestMembersThatAreBrieflyBehindAreNotClosed(t *testing.T) {
	members := 100
	if *longFaults {
		members = 9_000 // of the 20,000 descriptors that a process may have at least
	} else {
		t.Parallel()
	}
	node := &exhaustionNode{testkit.StartPlainServer(t, map[string]string{
		"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL(), "API_KEYS": "shop:" + shopKey,
		"AUTH_JWT_SECRET": signingSecret, "TRUSTED_PROXIES": "127.0.0.1", "GOMEMLIMIT": "1GiB", "MAX_HANDSHAKE_RATE": "5000",
	})}
	s := &stranger{node: node}
	t.Cleanup(s.closeAll)
	const messages, size = 16, 65_300 // with what surrounds the data just within QUEUE_BYTES
	read, caughtUp := make(chan struct{}), make(chan error, members)
	times(16, 1, func(worker int) {
		for i := worker; i < members; i += 16 {
			c, r := s.connect(userToken(fmt.Sprint("member-", i)), fmt.Sprintf("203.0.%d.%d", i/250, i%250))
			if c == nil {
				t.Errorf("member %d is refused", i)
				return
			}
			s.send(c, `{"type":"join","room":"hall"}`)
			go func() {
				<-read
				got := 0
				for lines := bufio.NewReader(r); got < messages; {
					text, err := lines.ReadString('}')
					if strings.Contains(text, `"type":"message"`) {
						got++
					}
					if err != nil {
						caughtUp <- fmt.Errorf("after %d messages: %w", got, err)
						return
					}
				}
				caughtUp <- nil
			}()
		}
	})
	pollPage(t, "all to be members", func() bool {
		_, page := testkit.Call(t, http.MethodGet, "http://"+node.Admin+"/debug/rooms", "", "")
		return strings.Contains(page, fmt.Sprintf(`"members":%d`, members))
	})
	body := `{"data":"` + strings.Repeat("x", size) + `"}`
	for range messages {
		if res, answer := testkit.Call(t, http.MethodPost, node.URL()+"/v1/rooms/hall/messages", shopKey, body); res.StatusCode != http.StatusCreated {
			t.Fatalf("%d %s", res.StatusCode, answer)
		}
	}
	// The kernel takes a part of what a member does not read; the rest waits in the node.
	var held float64
	pollPage(t, "half of the messages to wait in the node", func() bool {
		held = max(held, metric(t, node.Server, "websocket_queue_memory_bytes"))
		return held > messages*size/2
	})
	t.Logf("%d members, %.0f KiB held, %d MiB at most", members, held/1024, peakMemory(t, node.Server)>>20)
	if places := 40.0 * float64(members*messages); held > messages*(size+150)+places {
		t.Errorf("%v bytes are held, want those of the messages once and a little for each member", held)
	}
	close(read)
	for range members {
		if err := testkit.Receive(t, "a member has caught up", caughtUp); err != nil {
			t.Fatal(err)
		}
	}
	if closed := metric(t, node.Server, "websocket_memory_closes_total") + metric(t, node.Server, `websocket_disconnections_total{reason="slow"}`); closed > 0 {
		t.Errorf("%v were closed", closed)
	}
}
