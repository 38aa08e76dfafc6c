package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// A rawClient is a WebSocket client whose frames are the test's own.
type rawClient struct {
	t  *testing.T
	ws *websocket.Conn
}

func dialRaw(t *testing.T, s *testkit.Server) *rawClient {
	t.Helper()
	ws, _, err := websocket.Dial(t.Context(), s.SocketURL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(4 << 20)
	t.Cleanup(func() { _ = ws.CloseNow() })
	return &rawClient{t, ws}
}

func (c *rawClient) send(frame string) {
	c.t.Helper()
	if err := c.ws.Write(c.t.Context(), websocket.MessageText, []byte(frame)); err != nil {
		c.t.Fatal(err)
	}
}

// readUntil reads on to the next frame of one of the types.
func (c *rawClient) readUntil(types ...string) map[string]any {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), testkit.Timeout)
	defer cancel()
	for {
		_, p, err := c.ws.Read(ctx)
		if err != nil {
			c.t.Fatalf("waiting for %v: %v", types, err)
		}
		var f map[string]any
		d := json.NewDecoder(bytes.NewReader(p))
		d.UseNumber() // JSON has numbers that float64 cannot hold
		if err := d.Decode(&f); err != nil {
			c.t.Fatalf("%.200s: %v", p, err)
		}
		for _, kind := range types {
			if f["type"] == kind {
				return f
			}
		}
	}
}

func nestedArrays(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

func TestEveryBadFrameGetsTheRightError(t *testing.T) {
	t.Parallel()
	c := dialRaw(t, testkit.StartServer(t, nil))
	long := strings.Repeat("9", 60000)
	for _, tt := range []struct{ name, frame, code, says string }{
		{"not JSON", `nonsense`, "malformed", "JSON"},
		{"an array", `[]`, "malformed", "JSON"},
		{"unknown type", `{"type":"dance","room":"a"}`, "unknown_type", "known are"},
		{"type of a wrong type", `{"type":7}`, "malformed", "type"},
		{"a room that was not joined", `{"type":"leave","room":"a"}`, "invalid", "room"},
		{"room of a wrong type", `{"type":"join","room":7}`, "invalid", "room"},
		{"ref of a wrong type", `{"type":"join","room":"a","ref":{}}`, "invalid", "ref"},
		{"invalid room", `{"type":"join","room":"a/b"}`, "invalid", "1 to 128"},
		{"long room", `{"type":"join","room":"` + strings.Repeat("x", 129) + `"}`, "invalid", "1 to 128"},
		{"reserved room", `{"type":"join","room":"_canary.x"}`, "forbidden", "_"},
		{"publish in a reserved room", `{"type":"publish","room":"_x","data":1}`, "forbidden", "_"},
		{"negative seq", `{"type":"join","room":"a","after":-1}`, "invalid", "after must be"},
		{"huge seq", `{"type":"join","room":"a","after":` + long + `,"epoch":"e"}`, "invalid", "9007199254740991"},
		{"a seq with an exponent", `{"type":"join","room":"a","after":1e3,"epoch":"e"}`, "invalid", "after"},
		{"huge limit", `{"type":"history","room":"a","limit":1000000}`, "invalid", "1 to 200"},
		{"deep nesting", `{"type":"publish","room":"a","data":` + nestedArrays(30000) + `}`, "malformed", "JSON"},
		{"data too deep", `{"type":"publish","room":"a","data":` + nestedArrays(129) + `}`, "invalid", "128 deep"},
		{"an id that would break the answer", `{"type":"publish","room":"a","data":1,"id":"a\",\"x\":\"b"}`, "invalid", "id"},
		{"no data", `{"type":"signal","room":"a"}`, "invalid", "data"},
	} {
		c.send(tt.frame)
		if got := c.readUntil("error"); got["code"] != tt.code || !strings.Contains(got["message"].(string), tt.says) {
			t.Errorf("%s: %v, want %s about %q", tt.name, got, tt.code, tt.says)
		}
	}
	// Huge numbers in data come back as they were sent.
	c.send(`{"type":"join","room":"n"}`)
	c.readUntil("joined")
	c.send(`{"type":"publish","room":"n","id":"1","data":[1e400,-0,` + long + `]}`)
	_, p, err := c.ws.Read(t.Context()) // the ack or the message
	for err == nil && !strings.Contains(string(p), `"type":"message"`) {
		_, p, err = c.ws.Read(t.Context())
	}
	if err != nil || !strings.HasSuffix(string(p), `"data":[1e400,-0,`+long+`]}`) {
		t.Errorf("huge numbers came back as %.200s: %v", p, err)
	}
	c.send(`{"type":"publish","room":"n","id":"1","data":2}`)
	if got := c.readUntil("error"); got["code"] != "conflict" {
		t.Errorf("the id again with other data: %v", got)
	}
	// The position is beyond the room's head: it is void, and the server declares a gap.
	c.send(`{"type":"join","room":"n","after":99,"epoch":"` + c.epoch("n") + `"}`)
	if got := c.readUntil("gap"); got["reason"] != "epoch" || got["from"] != json.Number("1") || got["to"] != json.Number("1") {
		t.Errorf("a seq beyond the head: %v", got)
	}
}

// epoch returns the epoch of the log.
func (c *rawClient) epoch(room string) string {
	c.t.Helper()
	c.send(`{"type":"history","room":"` + room + `","limit":1}`)
	return c.readUntil("history")["epoch"].(string)
}

func TestTenThousandJoins(t *testing.T) {
	t.Parallel()
	c := dialRaw(t, testkit.StartServer(t, map[string]string{"MAX_ROOMS": "1000", "RATE_JOIN": "0"}))
	go func() {
		for i := range 10000 {
			frame := fmt.Appendf(nil, `{"type":"join","room":"r%d"}`, i)
			if c.ws.Write(t.Context(), websocket.MessageText, frame) != nil {
				return // the read fails, too
			}
		}
	}()
	joined, refused := 0, 0
	for joined+refused < 10000 {
		f := c.readUntil("joined", "error")
		switch {
		case f["type"] == "joined":
			joined++
		case f["code"] == "too_many_rooms":
			refused++
		default:
			t.Fatalf("got %v", f)
		}
	}
	if joined != 1000 || refused != 9000 {
		t.Errorf("%d joined, %d refused", joined, refused)
	}
	c.send(`{"type":"leave","room":"r5"}`)
	c.readUntil("left")
	c.send(`{"type":"join","room":"again"}`)
	c.readUntil("joined")
}

// handshake opens a WebSocket whose every byte is the test's, and which answers
// nothing by itself.
func handshake(t *testing.T, s *testkit.Server) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(testkit.Timeout))
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("handshake: %v %v", res, err)
	}
	return c, br
}

func TestAClientSilentMidFrameIsClosed(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, map[string]string{"HEARTBEAT": "1s"})
	c, br := handshake(t, s)
	// A header that announces 100 bytes, the mask, and 9 of the bytes.
	if _, err := c.Write([]byte("\x81\xe4\x00\x00\x00\x00{\"type\":\"")); err != nil {
		t.Fatal(err)
	}
	const closed = "\x10\x71no_pong" // the payload of the close frame, 4209
	began := time.Now()
	var got []byte
	for !strings.HasSuffix(string(got), closed) {
		b, err := br.ReadByte()
		if err != nil {
			t.Fatalf("after %v: %v after %q, want close 4209 after two heartbeats", time.Since(began), err, got)
		}
		got = append(got, b)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil { // its frame never ends, so that it cannot answer
		t.Error(err)
	}
	if rest, _ := io.ReadAll(br); len(rest) > 0 { // the connection may end by a reset
		t.Errorf("%q came after the close frame", rest)
	}
}

// Redis does not serve nodes, or stores nothing: messages come all the same, and the node
// says what is wrong in its log, in /readyz and in a metric.
func TestRedisThatNeedsAPasswordOrIsFull(t *testing.T) {
	t.Parallel()
	locked := testkit.StartRedis(t, "--requirepass", "hunter2")
	full := testkit.StartRedis(t, "--maxmemory", "1mb", "--maxmemory-policy", "noeviction")
	lonely := testkit.StartRedis(t, "--min-replicas-to-write", "1")
	replica := testkit.StartRedisReplica(t, testkit.StartRedis(t))
	for name, tt := range map[string]struct{ url, broker, sessions, says string }{
		"needs a password":    {"redis://" + locked.Addr(), "down", "refused", "NOAUTH"},
		"out of memory":       {full.URL(), "up", "refused", "OOM"}, // Redis accepts PUBLISH, which stores nothing
		"lacks replicas":      {lonely.URL(), "up", "refused", "NOREPLICAS"},
		"a read-only replica": {replica.URL(), "down", "down", "read-only replica"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": tt.url}
			a, b := testkit.StartServer(t, env), testkit.StartServer(t, env)
			h := load.NewHistory()
			publishFromEachNode(t, h, 20, a, b)
			pollPage(t, "broker "+tt.broker+", sessions "+tt.sessions, func() bool {
				code, body := readiness(t, a)
				return code == http.StatusOK && strings.Contains(body, `"broker":"`+tt.broker+`"`) && strings.Contains(body, `"sessions":"`+tt.sessions+`"`)
			})
			if got := metric(t, a, "session_up"); got != 0 {
				t.Errorf("session_up is %v", got)
			}
			assertClean(t, h)
			if out := a.Output(); !strings.Contains(out, tt.says) || strings.Contains(out, "hunter2") {
				t.Errorf("the log does not say %q, or contains the password:\n%s", tt.says, out)
			}
		})
	}
}

func TestAFailedMigrationStopsTheStart(t *testing.T) {
	t.Parallel()
	pg := testkit.Postgres(t)
	pg.Query("CREATE TABLE rooms (not_ours int)")
	for _, args := range [][]string{nil, {"migrate"}} {
		code, out := run(t, []string{"DATABASE_URL=" + pg.URL(), "LISTEN_ADDR=127.0.0.1:0", "ADMIN_ADDR=127.0.0.1:0"}, args...)
		if code != 1 || !strings.Contains(out, "migrat") || !strings.Contains(out, "rooms") || !strings.Contains(out, "DATABASE_URL") {
			t.Errorf("%v: exit %d: %s", args, code, out)
		}
		if line := strings.TrimSpace(out); strings.Contains(line, "\n") {
			t.Errorf("%v: more than one line:\n%s", args, out)
		}
	}
	if got := strings.TrimSpace(pg.Query("SELECT count(*) FROM information_schema.tables WHERE table_name = 'messages'")); got != "0" {
		t.Errorf("a part of the migration was not rolled back: %s", got)
	}
}

func TestMissingOrContradictorySettings(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		env  []string
		says []string
	}{
		"a queue smaller than a page":  {[]string{"QUEUE_BYTES=600000", "MAX_FRAME=1048576"}, []string{"QUEUE_BYTES", "MAX_FRAME"}},
		"fewer connections than used":  {[]string{"DATABASE_MAX_CONNS=5", "DATABASE_LANES=4"}, []string{"DATABASE_MAX_CONNS", "DATABASE_LANES"}},
		"a secret twice":               {[]string{"API_KEYS=0123456789abcdef", "API_KEYS_FILE=/dev/null"}, []string{"API_KEYS", "unset one"}},
		"a secret's file is missing":   {[]string{"DATABASE_URL_FILE=/no/such/file"}, []string{"DATABASE_URL_FILE"}},
		"an empty database URL's file": {[]string{"DATABASE_URL_FILE=/dev/null"}, []string{"DATABASE_URL"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, out := run(t, tt.env)
			for _, says := range tt.says {
				if code != 1 || !strings.Contains(out, says) {
					t.Errorf("exit %d, want 1 and %q:\n%s", code, says, out)
				}
			}
			if strings.Contains(strings.TrimSpace(out), "\n") {
				t.Errorf("more than one line:\n%s", out)
			}
		})
	}
}

// A batch with one bad message is not stored at all. Corrected, it reaches the members
// on another node.
func TestABatchWithABadMessageIsRefusedWhole(t *testing.T) {
	t.Parallel()
	env := map[string]string{"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL(), "API_KEYS": "shop:" + apiKey}
	a, b := testkit.StartServer(t, env), testkit.StartServer(t, env)
	member := dialRaw(t, b)
	member.send(`{"type":"join","room":"orders:2"}`)
	member.readUntil("joined")
	if res, answer := post(t, a, "/v1/rooms/orders:1/messages", `{"data":1,"id":"used"}`); res.StatusCode != http.StatusCreated {
		t.Fatalf("%s %s", res.Status, answer)
	}
	res, answer := post(t, a, "/v1/messages", `[{"room":"orders:2","data":"early"},{"room":"orders:1","data":2,"id":"used"}]`)
	if res.StatusCode != http.StatusConflict || !strings.Contains(answer, `"index":1`) {
		t.Errorf("an id that was used: %s %s", res.Status, answer)
	}
	res, answer = post(t, a, "/v1/messages", `[{"room":"orders:2","data":"late"},{"room":"orders:1","data":2,"id":"fresh"}]`)
	if res.StatusCode != http.StatusCreated || strings.Count(answer, `"duplicate":false`) != 2 {
		t.Errorf("corrected: %s %s", res.Status, answer)
	}
	if got := member.readUntil("message"); got["data"] != "late" || got["seq"] != json.Number("1") || got["from"] != "api:shop" {
		t.Errorf("the member on the other node got %v", got)
	}
}

// The Go client's errors name the reason of a refusal.
func TestTheClientSeesWhyItWasRefused(t *testing.T) {
	t.Parallel()
	s := testkit.StartServer(t, nil)
	ctx := testkit.Within(t, testkit.Timeout)
	c, err := client.Dial(ctx, client.Options{URLs: []string{s.SocketURL()}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Publish(ctx, "_x", json.RawMessage(`1`), "i"); err == nil || !strings.Contains(err.Error(), "forbidden") && !strings.Contains(err.Error(), "_") {
		t.Errorf("publish in a reserved room: %v", err)
	}
}
