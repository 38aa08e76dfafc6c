package http

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/conn"
	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

// Clients that ask for history and take none of it are closed when together they would
// take more memory than the node has for that. Each owes one answer, however often it
// asked. Who reads is not affected.
func TestClientsThatTakeNothingAreClosedWhenMemoryIsSpent(t *testing.T) {
	const total, stuck, asked = 4 << 20, 40, 30
	n := startNode(t, func(c *Config) { c.Memory = conn.NewBudget(total) })
	large := `{"data":"` + strings.Repeat("x", 50<<10) + `"}`
	for range 5 {
		n.call("POST", "/v1/rooms/archive/messages", testKey, large)
	}
	var honest []*browser
	for range 10 {
		b := n.dial(nil)
		b.send(`{"type":"join","room":"lobby"}`)
		b.until("joined")
		honest = append(honest, b)
	}
	most := int64(0)
	for range stuck {
		n.rawHandshake(strings.Repeat(testkit.MaskedFrame(0x81, `{"type":"history","room":"archive"}`), asked))
		most = max(most, n.memory.Held())
	}
	testkit.Eventually(t, "clients to be closed for lack of memory", func() bool {
		most = max(most, n.memory.Held())
		return n.metric("websocket_memory_closes_total") != "0"
	})
	for i := range 100 {
		if res, body := n.call("POST", "/v1/rooms/lobby/messages", testKey, `{"data":1}`); res.StatusCode >= 300 {
			t.Fatalf("message %d: %s %s", i+1, res.Status, body)
		}
		most = max(most, n.memory.Held())
	}
	for i, b := range honest {
		for seq := 1; seq <= 100; seq++ {
			if got := b.until("message"); got["seq"] != float64(seq) {
				t.Fatalf("client %d got %v, want %d", i, got["seq"], seq)
			}
		}
	}
	if most > total/4*5 {
		t.Errorf("%d bytes were held, over a quarter more than %d", most, total)
	}
	testkit.Eventually(t, "the memory to be free again", func() bool { return n.memory.Held() <= total })
	if got := n.metric(`websocket_active_connections`); got == "0" {
		t.Error("everybody was closed")
	}
}

// Beyond the budget nobody comes in, and those who are in stay.
func TestNobodyComesInWhileMemoryIsSpent(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Memory = conn.NewBudget(1 << 20) })
	inside := n.dial(nil)
	client, server := net.Pipe()
	t.Cleanup(func() { _ = client.Close() })
	spender := conn.New(server, nil, conn.Options{QueueBytes: 2 << 20, Budget: n.memory, Tick: new(atomic.Int64)})
	t.Cleanup(spender.Abort)
	spender.Queue(make(protocol.Frame, 1<<20+1))
	_, res, err := websocket.Dial(t.Context(), "ws://"+n.addr+"/ws", nil)
	if err == nil || res == nil || res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "1" {
		t.Errorf("a handshake: %v %v", res, err)
	}
	if got := n.metric(`websocket_connections_total{result="no_memory"}`); got != "1" {
		t.Errorf("%q handshakes are counted", got)
	}
	inside.send(`{"type":"join","room":"a"}`)
	inside.until("joined")
	began := time.Now()
	inside.send(`{"type":"history","room":"a","ref":"h"}`)
	go func() {
		for n.memory.IsSpent() && time.Since(began) < testkit.Timeout {
			if time.Since(began) > 100*time.Millisecond { // the answer waits for that long
				spender.Abort()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if got := inside.until("history"); got["ref"] != "h" || time.Since(began) < 100*time.Millisecond {
		t.Errorf("%v after %v, want the answer once there is memory", got, time.Since(began))
	}
	n.dial(nil)
}

// Ten thousand members that are behind by the same messages take the memory of these
// messages, and none of them is closed.
func TestMembersThatAreBehindTogetherAreNotClosed(t *testing.T) {
	const members, behind = 200, 20
	n := startNode(t, func(c *Config) { c.Memory = conn.NewBudget(2 << 20) })
	for range members {
		n.rawHandshake(testkit.MaskedFrame(0x81, `{"type":"join","room":"a"}`))
	}
	testkit.Eventually(t, "all to be members", func() bool {
		rooms := n.hub.Rooms()
		return len(rooms) == 1 && rooms[0].Members == members
	})
	n.shrinkWriteBuffers()
	for range behind {
		n.call("POST", "/v1/rooms/a/messages", testKey, fmt.Sprintf(`{"data":"%s"}`, strings.Repeat("x", 30<<10)))
	}
	testkit.Eventually(t, "members to be behind", func() bool { return n.memory.Queued() > 5*n.memory.Held() })
	if got := n.metric("websocket_memory_closes_total"); got != "0" || n.memory.IsSpent() {
		t.Errorf("%s were closed at %d bytes of memory for %d queued ones", got, n.memory.Held(), n.memory.Queued())
	}
}

// spendMemory has n bytes wait for a client, until the returned function is called.
func (n *node) spendMemory(bytes int) (free func()) {
	client, server := net.Pipe()
	n.t.Cleanup(func() { _ = client.Close() })
	spender := conn.New(server, nil, conn.Options{QueueBytes: 2 * bytes, Budget: n.memory, Tick: new(atomic.Int64)})
	n.t.Cleanup(spender.Abort)
	spender.Queue(make(protocol.Frame, bytes))
	return spender.Abort
}

// A large frame is read once there is memory for it; a small one needs none.
func TestLargeFramesWaitForMemory(t *testing.T) {
	n := startNode(t, func(c *Config) { c.Memory = conn.NewBudget(4 << 20) })
	b := n.dial(nil)
	free := n.spendMemory(4<<20*3/4 - 1<<10)
	b.send(`{"type":"publish","room":"a","ref":"small","data":"%s"}`, strings.Repeat("x", smallFrame-200))
	if got := b.until("ack"); got["ref"] != "small" {
		t.Errorf("a small frame: %v", got)
	}
	b.send(`{"type":"publish","room":"a","ref":"large","data":"%s"}`, strings.Repeat("x", smallFrame+1))
	testkit.Eventually(t, "the frame to wait for memory", func() bool { _, isShort, _ := n.memory.Shortage(); return isShort })
	free()
	if got := b.until("ack"); got["ref"] != "large" {
		t.Errorf("a large frame: %v", got)
	}
}

// Connections that send the beginnings of large frames, and no more, hold memory. Once
// others wait for it they are closed.
func TestFramesThatDoNotArriveAreClosedWhenMemoryIsShort(t *testing.T) {
	const total = 1 << 20
	n := startNode(t, func(c *Config) { c.Memory = conn.NewBudget(total) })
	text := `{"type":"publish","room":"a","data":"` + strings.Repeat("x", 40<<10) + `"}`
	beginning := testkit.MaskedFrame(0x81, text)[:smallFrame+1<<10]
	for range total*3/4/n.cfg.MaxFrame + 1 {
		n.rawHandshake(beginning)
	}
	b := n.dial(nil)
	b.send(`{"type":"publish","room":"a","ref":"honest","data":"%s"}`, strings.Repeat("x", 8<<10))
	if got := b.until("ack"); got["ref"] != "honest" {
		t.Errorf("a large frame: %v", got)
	}
	if got := n.metric("websocket_memory_closes_total"); got == "0" {
		t.Error("nobody was closed")
	}
}

// fill queues frames for clients that read nothing until so many bytes of the budget are
// used, each frame for shared of them. In a bubble nothing says that they take nothing, as of
// clients that take a little now and then.
func (n *node) fill(bytes int64, shared int) {
	n.t.Helper()
	known := map[*socket]bool{}
	n.openSockets.Each(func(sock *socket) { known[sock] = true })
	for n.memory.Held() < bytes {
		for range shared {
			n.rawHandshake("")
		}
		var fresh []*socket
		testkit.Eventually(n.t, "the sockets to be open", func() bool {
			fresh = nil
			n.openSockets.Each(func(sock *socket) {
				if !known[sock] {
					fresh = append(fresh, sock)
				}
			})
			return len(fresh) == shared
		})
		for range 20 {
			f := protocol.Frame(make([]byte, 40<<10))
			for _, sock := range fresh {
				known[sock] = true
				if n.memory.Held() < bytes {
					sock.conn.Queue(f)
				}
			}
		}
	}
}

// Clients that take a little now and then keep nobody from the memory that is left: who
// waits for it gets it after a second, from those with the most.
func TestSlowClientsMakeWayForWhoWaits(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const total = 4 << 20
		n := startNode(t, func(c *Config) { c.Memory = conn.NewBudget(total) })
		honest := n.dial(nil)
		n.fill(total*3/4, 1)
		began := time.Now()
		honest.send(`{"type":"history","room":"a","ref":"h"}`)
		got := honest.read()
		for got["ref"] == nil {
			got = honest.read()
		}
		if got["type"] != "history" || time.Since(began) > 2*time.Second {
			t.Errorf("%v after %v, want the history within 2 s", got, time.Since(began))
		}
		if got := n.metric("websocket_memory_closes_total"); got != "1" {
			t.Errorf("%s were closed", got)
		}
	})
}

// Clients with a little waiting are not closed for who waits for memory: it would not help.
// Those with more are.
func TestClientsWithALittleStay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const total = 4 << 20
		n := startNode(t, func(c *Config) { c.Memory = conn.NewBudget(total) })
		n.rawHandshake("")
		synctest.Wait()
		n.openSockets.Each(func(sock *socket) { sock.conn.Queue(make(protocol.Frame, 1000)) })
		honest := n.dial(nil)
		n.spendMemory(total * 3 / 4)
		honest.send(`{"type":"history","room":"a","ref":"h"}`)
		if got := honest.until("error"); got["code"] != "unavailable" || !strings.Contains(got["message"].(string), "QUEUE_TOTAL_BYTES") {
			t.Errorf("without memory: %v", got)
		}
		if got := n.metric("websocket_memory_closes_total"); got != "0" {
			t.Errorf("%s were closed", got)
		}
		const little = 16 << 10 // decision 24
		for _, size := range []int{little - 1000, little + 1} {
			n.rawHandshake("")
			synctest.Wait()
			n.openSockets.Each(func(sock *socket) {
				if share, _ := sock.conn.Share(); share < 1000 { // the newest
					sock.conn.Queue(make(protocol.Frame, size))
				}
			})
		}
		n.call("GET", "/v1/rooms/a/messages", testKey, "") // waits in vain as well
		if got := n.metric("websocket_memory_closes_total"); got != "1" {
			t.Errorf("%s were closed, want the one with more than %d bytes", got, little)
		}
	})
}

// To share what they owe does not protect those who use up the memory, and a client with a
// single answer that waits is not closed in their place, and neither is one that is
// sending a large frame.
func TestThoseWhoShareWhatTheyOweAreClosed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const total = 4 << 20
		n := startNode(t, func(c *Config) { c.Memory = conn.NewBudget(total) })
		n.call("POST", "/v1/rooms/archive/messages", testKey, `{"data":"`+strings.Repeat("x", 50<<10)+`"}`)
		reader, lines := n.rawHandshake(testkit.MaskedFrame(0x81, `{"type":"history","room":"archive"}`))
		text := `{"type":"publish","room":"b","id":"1","data":"` + strings.Repeat("x", 8<<10) + `"}`
		frame := testkit.MaskedFrame(0x81, text)
		publisher, acks := n.rawHandshake(frame[:smallFrame+1<<10])
		n.fill(total+1, 2)
		testkit.Eventually(t, "memory to be free", func() bool { return !n.memory.IsSpent() })
		_ = reader.SetDeadline(time.Now().Add(testkit.Timeout))
		for found := false; !found; {
			_, payload := readFrame(t, lines)
			found = strings.Contains(payload, `"type":"history"`)
		}
		if _, err := publisher.Write([]byte(frame[smallFrame+1<<10:])); err != nil {
			t.Fatal(err)
		}
		for found := false; !found; {
			_, payload := readFrame(t, acks)
			found = strings.Contains(payload, `"type":"ack"`)
		}
	})
}

// Who has just begun to send a large frame is not closed for it, however short memory is.
func TestWhoSendsALargeFrameHasTime(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const total = 4 << 20
		n := startNode(t, func(c *Config) { c.Memory = conn.NewBudget(total) })
		frame := testkit.MaskedFrame(0x81, `{"type":"publish","room":"b","id":"1","data":"`+strings.Repeat("x", 8<<10)+`"}`)
		publisher, acks := n.rawHandshake(frame[:smallFrame+1<<10])
		go func() {
			time.Sleep(100 * time.Millisecond) // what came before is read
			n.spendMemory(total + 1)
			time.Sleep(time.Second)
			_, _ = publisher.Write([]byte(frame[smallFrame+1<<10:]))
		}()
		for found := false; !found; {
			_, payload := readFrame(t, acks)
			found = strings.Contains(payload, `"type":"ack"`)
		}
		if got := n.metric("websocket_memory_closes_total"); got != "0" {
			t.Errorf("%s were closed", got)
		}
	})
}

// A large body of a backend waits for memory, and is refused before it is read if there
// is none.
func TestLargeBodiesWaitForMemory(t *testing.T) {
	n := startNode(t, func(c *Config) {
		c.Memory = conn.NewBudget(2 << 20)
		c.Memory.Timeout = 10 * time.Millisecond
	})
	free := n.spendMemory(2<<20*3/4 - 1<<10)
	message := `{"data":"` + strings.Repeat("x", smallFrame) + `"}`
	if res, body := n.call("POST", "/v1/rooms/a/messages", testKey, message[:40]+`"}`); res.StatusCode != http.StatusCreated {
		t.Errorf("a small body: %d %s", res.StatusCode, body)
	}
	if res, body := n.call("POST", "/v1/rooms/a/messages", testKey, message); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "QUEUE_TOTAL_BYTES") {
		t.Errorf("without memory: %d %s", res.StatusCode, body)
	}
	free()
	if res, body := n.call("POST", "/v1/rooms/a/messages", testKey, message); res.StatusCode != http.StatusCreated {
		t.Errorf("with memory: %d %s", res.StatusCode, body)
	}
}

// History over HTTP waits for memory like that over a socket, and one user has some calls
// under way and no more. One that does not take its answer makes way.
func TestHistoryCallsUnderWayAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startKeyedNode(t, "", func(c *Config) {
			c.Memory, c.Rates.History = conn.NewBudget(2<<20), 0
			c.Memory.Timeout = time.Second
		})
		n.call("POST", "/v1/rooms/a/messages", testKey, `{"data":"`+strings.Repeat("x", 50<<10)+`"}`)
		free := n.spendMemory(2<<20*3/4 - 1<<10)
		ann, bob := tokenOf("ann", time.Hour, everyRoom), tokenOf("bob", time.Hour, everyRoom)
		read := func(token string) (int, string) {
			res, body := n.call("GET", "/v1/rooms/a/messages", token, "")
			return res.StatusCode, body
		}
		statuses := func(calls int) map[int]int {
			answers := make(chan int, calls)
			for range calls {
				go func() {
					status := 0
					defer func() { answers <- status }()
					status, _ = read(ann)
				}()
			}
			got := map[int]int{}
			for range calls {
				got[<-answers]++
			}
			return got
		}
		if got := statuses(17); got[http.StatusTooManyRequests] != 1 || got[http.StatusServiceUnavailable] != 16 {
			t.Errorf("seventeen calls without memory: %v", got)
		}
		if status, body := read(bob); status != http.StatusServiceUnavailable || !strings.Contains(body, "QUEUE_TOTAL_BYTES") {
			t.Errorf("another user, without memory: %d %s", status, body)
		}
		free()
		if got := statuses(16); got[http.StatusOK] != 16 {
			t.Errorf("sixteen calls with memory: %v", got)
		}
		for range 4 { // as many as the memory has place for
			c, err := n.dialRaw(n.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = fmt.Fprintf(c, "GET /v1/rooms/a/messages HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", n.addr, ann)
		}
		n.memory.Timeout = conn.ReserveTimeout
		synctest.Wait()
		if status, body := read(bob); status != http.StatusOK {
			t.Errorf("beside calls whose answers are not taken: %d %s", status, body)
		}
	})
}
