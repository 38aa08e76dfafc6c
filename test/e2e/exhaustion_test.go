package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
// that are shipped, less memory, and a proxy in front that tells clients apart.
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

// A stranger opens connections and sends requests. It is safe for concurrent use.
type stranger struct {
	node         *exhaustionNode
	lasts        time.Duration // of the attack
	opened, sent atomic.Int64

	mu    sync.Mutex // Protects following.
	conns []net.Conn
}

func (s *stranger) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		_ = c.Close()
	}
}

// dial opens a connection, which closeAll closes.
func (s *stranger) dial() (net.Conn, error) {
	c, err := net.Dial("tcp", s.node.Addr)
	if err != nil {
		return nil, err
	}
	s.opened.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, c)
	return c, nil
}

// connect opens a WebSocket with a token, from an address. It returns nil if it is refused.
func (s *stranger) connect(token, address string) (net.Conn, *bufio.Reader) {
	c, err := s.dial()
	if err != nil {
		return nil, nil
	}
	_, _ = io.WriteString(c, strings.Replace(upgradeRequest("Authorization: Bearer "+token, forwardedFor(address)), "chat.example.com", s.node.Addr, 1))
	r := bufio.NewReader(c)
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	res, err := http.ReadResponse(r, nil)
	_ = c.SetReadDeadline(time.Time{})
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		_ = c.Close()
		return nil, nil
	}
	return c, r
}

// send sends a frame, and reports whether it could.
func (s *stranger) send(c io.Writer, frame string) bool {
	s.sent.Add(1)
	_, err := io.WriteString(c, testkit.MaskedFrame(textFrame, frame))
	return err == nil
}

// times calls f at once for 0 to n·share-1, and waits for all.
func times(n int, share float64, f func(i int)) {
	var all sync.WaitGroup
	defer all.Wait()
	for i := range max(1, int(float64(n)*share)) {
		all.Go(func() { f(i) })
	}
}

// loopUntil calls f until it returns false or ctx ends.
func loopUntil(ctx context.Context, f func(i int) bool) {
	for i := 0; ctx.Err() == nil && f(i); i++ {
	}
}

// pause waits a moment, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// comeBack calls f again and again, about every twelfth of the attack. Not all do so at once,
// because the machine measures, too.
func (s *stranger) comeBack(ctx context.Context, f func()) {
	every := s.lasts / 12
	pause(ctx, rand.N(every))
	loopUntil(ctx, func(int) bool {
		f()
		pause(ctx, every*4/5+rand.N(every*2/5))
		return true
	})
}

// stuckReaders are 1,200 sockets of twelve users that ask for history and read nothing.
// They come back when they are closed.
func stuckReaders(ctx context.Context, s *stranger, share float64) {
	ask := strings.Repeat(testkit.MaskedFrame(textFrame, `{"type":"history","room":"archive","ref":"1"}`), 30)
	times(1200, share, func(i int) {
		token := userToken(fmt.Sprint("stranger-", i%12))
		s.comeBack(ctx, func() {
			if c, _ := s.connect(token, fmt.Sprint("203.0.113.", i%12)); c != nil {
				s.sent.Add(30)
				_, _ = io.WriteString(c, ask)
			}
		})
	})
}

// joinReplays are twenty sockets of one user that join a large room from its beginning,
// leave it and join it again.
func joinReplays(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	times(20, max(share, 0.25), func(i int) {
		c, r := s.connect(token, "203.0.113.1")
		if c == nil {
			return
		}
		go func() { _, _ = io.Copy(io.Discard, r) }()
		loopUntil(ctx, func(int) bool {
			pause(ctx, 10*time.Millisecond)
			return s.send(c, `{"type":"join","room":"archive","after":0}`) && s.send(c, `{"type":"leave","room":"archive"}`)
		})
	})
}

// historyCalls are a hundred sockets of one user that ask for history again and again.
func historyCalls(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	times(100, share, func(i int) {
		c, r := s.connect(token, "203.0.113.1")
		if c == nil {
			return
		}
		go func() { _, _ = io.Copy(io.Discard, r) }()
		loopUntil(ctx, func(int) bool {
			pause(ctx, 50*time.Millisecond)
			return s.send(c, `{"type":"history","room":"archive","ref":"1"}`)
		})
	})
}

// idleConnections are more connections than a node keeps that are no WebSockets. Each has
// made one request, so that it is kept alive.
func idleConnections(ctx context.Context, s *stranger, share float64) {
	times(40, 1, func(int) {
		loopUntil(ctx, func(i int) bool {
			c, err := s.dial()
			if err == nil && i%2 == 0 {
				s.sent.Add(1)
				_, _ = io.WriteString(c, "GET /no-such-page HTTP/1.1\r\nHost: "+s.node.Addr+"\r\n\r\n")
			}
			if i >= int(100*max(share, 0.6)) {
				pause(ctx, time.Second)
			}
			return i < 300
		})
	})
}

// junkTokens are handshakes of eight strangers of one address with tokens whose signature
// is wrong.
func junkTokens(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	token = token[:len(token)-4] + "AAAA"
	times(8, share, func(int) {
		loopUntil(ctx, func(int) bool {
			s.sent.Add(1)
			if c, _ := s.connect(token, "203.0.113.1"); c != nil {
				_ = c.Close()
			}
			return true
		})
	})
}

// roomJoins are a hundred sockets of one user that join one room after the other.
func roomJoins(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	times(100, share, func(socket int) {
		c, r := s.connect(token, "203.0.113.1")
		if c == nil {
			return
		}
		go func() { _, _ = io.Copy(io.Discard, r) }()
		loopUntil(ctx, func(i int) bool {
			pause(ctx, 10*time.Millisecond)
			return s.send(c, fmt.Sprintf(`{"type":"join","room":"r-%d-%d","ref":"1"}`, socket, i%5000)) &&
				(i < 900 || s.send(c, fmt.Sprintf(`{"type":"leave","room":"r-%d-%d"}`, socket, (i-900)%5000)))
		})
	})
}

// controlFrames are a hundred sockets of one user that send what costs little: pongs, empty
// fragments and refused publishes.
func controlFrames(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	frames := strings.Repeat(testkit.MaskedFrame(0x8A, "x"), 20) + testkit.MaskedFrame(0x01, "") +
		strings.Repeat(testkit.MaskedFrame(0x00, ""), 18) + testkit.MaskedFrame(0x80, `{"type":"leave"}`) +
		strings.Repeat(testkit.MaskedFrame(textFrame, `{"type":"signal","room":"x","data":1}`), 20)
	times(100, share, func(int) {
		c, r := s.connect(token, "203.0.113.1")
		if c == nil {
			return
		}
		go func() { _, _ = io.Copy(io.Discard, r) }()
		loopUntil(ctx, func(int) bool {
			pause(ctx, 20*time.Millisecond)
			s.sent.Add(60)
			_, err := io.WriteString(c, frames)
			return err == nil
		})
	})
}

// reconnects are connections of one user that are opened and closed again.
func reconnects(ctx context.Context, s *stranger, share float64) {
	token := userToken("stranger")
	times(8, share, func(i int) {
		loopUntil(ctx, func(n int) bool {
			if c, _ := s.connect(token, fmt.Sprintf("203.0.%d.%d", i, n%250)); c != nil {
				_ = c.Close()
			}
			return true
		})
	})
}

// unfinishedFrames are 1,200 sockets that send most of a large frame, and no more.
func unfinishedFrames(ctx context.Context, s *stranger, share float64) {
	frame := testkit.MaskedFrame(textFrame, `{"type":"publish","room":"a","data":"`+strings.Repeat("x", 60<<10)+`"}`)
	times(1200, share, func(i int) {
		token := userToken(fmt.Sprint("stranger-", i%12))
		s.comeBack(ctx, func() {
			if c, _ := s.connect(token, fmt.Sprint("203.0.113.", i%12)); c != nil {
				s.sent.Add(1)
				_, _ = io.WriteString(c, frame[:59<<10])
			}
		})
	})
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
	held := metric(t, node.Server, "websocket_queue_memory_bytes")
	t.Logf("%d members, %.0f KiB held, %d MiB at most", members, held/1024, peakMemory(t, node.Server)>>20)
	if places := 40.0 * float64(members*messages); held == 0 || held > messages*(size+150)+places {
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
