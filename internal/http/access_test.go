package http

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"nhooyr.io/websocket"

	"switchyard/internal/auth"
	"switchyard/internal/testkit"
)

const tokenSecret = "a-secret-of-32-bytes-or-more-----"

// tokenOf returns a JWT of a user for a duration. rooms is the claim as JSON.
func tokenOf(user string, life time.Duration, rooms string) string {
	b64 := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	claims := fmt.Sprintf(`{"sub":%q,"exp":%d,"rooms":%s}`, user, time.Now().Add(life).Unix(), rooms)
	signed := b64([]byte(`{"alg":"HS256"}`)) + "." + b64([]byte(claims))
	mac := hmac.New(sha256.New, []byte(tokenSecret))
	mac.Write([]byte(signed))
	return signed + "." + b64(mac.Sum(nil))
}

const everyRoom = `{"*":"rw"}`

// startKeyedNode starts a node that accepts tokens signed with tokenSecret.
// anonymous is AUTH_ANONYMOUS.
func startKeyedNode(t testing.TB, anonymous string, change func(*Config)) *node {
	t.Helper()
	v := keyedVerifier(t, anonymous)
	return startNode(t, func(c *Config) {
		c.Verifier = v
		if change != nil {
			change(c)
		}
	})
}

// keyedVerifier accepts tokens signed with tokenSecret.
func keyedVerifier(t testing.TB, anonymous string) Verifier {
	t.Helper()
	v, err := auth.New(t.Context(), auth.Config{
		JWTSecrets: []string{tokenSecret}, Anonymous: anonymous, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func withToken(token string) *websocket.DialOptions {
	return &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + token}}}
}

// welcome reads the first frame, and fails the test unless it is a welcome.
func (b *browser) welcome() map[string]any {
	b.t.Helper()
	got := b.read()
	if got["type"] != "welcome" {
		b.t.Fatalf("first frame %v", got)
	}
	return got
}

func TestATokenIsAcceptedInFourPlaces(t *testing.T) {
	n := startKeyedNode(t, "", func(c *Config) { c.AuthQueryToken = true })
	ann := tokenOf("ann", time.Hour, everyRoom)
	offer := func(protocols ...string) *websocket.DialOptions {
		return &websocket.DialOptions{Subprotocols: protocols}
	}
	header := n.open(withToken(ann))
	subprotocol := n.open(offer("switchyard.v1", "bearer."+ann))
	if got := subprotocol.ws.Subprotocol(); got != "switchyard.v1" {
		t.Errorf("the service chose %q", got)
	}
	ws, res, err := websocket.Dial(t.Context(), "ws://"+n.addr+"/ws?access_token="+ann, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	query := &browser{t, ws}
	frame := n.open(nil)
	frame.send(`{"type":"auth","ref":"a","token":"%s"}`, ann)
	for name, b := range map[string]*browser{"header": header, "subprotocol": subprotocol, "query": query, "frame": frame} {
		got := b.welcome()
		left, _ := got["auth_expires_ms"].(float64)
		if got["user"] != "ann" || left < 3_500_000 || left > 3_600_000 {
			t.Errorf("by %s: %v", name, got)
		}
		b.send(`{"type":"publish","room":"a","data":"%s"}`, name)
		b.until("ack")
	}
	_, body := n.call("GET", "/v1/rooms/a/messages", testKey, "")
	if strings.Count(body, `"from":"ann"`) != 4 {
		t.Errorf("messages: %s", body)
	}
	if logs := n.logs.String(); strings.Contains(logs, ann) || strings.Contains(logs, ann[len(ann)-20:]) {
		t.Error("the log holds a token")
	}
	if strings.Contains(fmt.Sprint(res.Header), ann[:20]) {
		t.Error("the answer holds the token")
	}
}

func TestTheAnswerToAnAuthFrame(t *testing.T) {
	n := startKeyedNode(t, "", nil)
	b := n.open(nil)
	b.send(`{"type":"auth","ref":"1","token":"%s"}`, tokenOf("ann", time.Hour, everyRoom))
	b.welcome()
	if got := b.read(); got["type"] != "authenticated" || got["ref"] != "1" || got["user"] != "ann" {
		t.Errorf("%v", got)
	}
}

func TestATokenInTheQueryIsNotReadUnlessAllowed(t *testing.T) {
	n := startKeyedNode(t, "public:r", nil)
	ann := tokenOf("ann", time.Hour, everyRoom)
	ws, _, err := websocket.Dial(t.Context(), "ws://"+n.addr+"/ws?access_token="+ann, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	b := &browser{t, ws}
	if got := b.welcome(); got["user"] != nil {
		t.Errorf("welcome: %v", got)
	}
	res, body := n.call("GET", "/v1/rooms/a/messages?access_token="+ann, "", "")
	if res.StatusCode != http.StatusUnauthorized || strings.Contains(body, ann) || strings.Contains(n.logs.String(), ann) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// The service can't know which of two tokens a proxy on the way has checked.
func TestOneTokenAtATime(t *testing.T) {
	n := startKeyedNode(t, "", func(c *Config) { c.AuthQueryToken = true })
	ann, bob := tokenOf("ann", time.Hour, everyRoom), tokenOf("bob", time.Hour, everyRoom)
	for name, tt := range map[string]struct {
		path   string
		header http.Header
	}{
		"header and subprotocol": {"/ws", http.Header{"Authorization": {"Bearer " + ann}, "Sec-Websocket-Protocol": {"switchyard.v1, bearer." + bob}}},
		"the same twice":         {"/ws", http.Header{"Authorization": {"Bearer " + ann}, "Sec-Websocket-Protocol": {"bearer." + ann}}},
		"two headers":            {"/ws", http.Header{"Authorization": {"Bearer " + ann, "Bearer " + bob}}},
		"two subprotocols":       {"/ws", http.Header{"Sec-Websocket-Protocol": {"switchyard.v1, bearer." + ann + ", bearer." + bob}}},
		"header and query":       {"/ws?access_token=" + ann, http.Header{"Authorization": {"Bearer " + bob}}},
		"query and query":        {"/ws?access_token=" + ann + "&access_token=" + bob, http.Header{}},
		"an empty header":        {"/ws", http.Header{"Authorization": {"Bearer "}}},
		"an empty query":         {"/ws?access_token=", http.Header{}},
		"a header over a bound":  {"/ws", http.Header{"Authorization": {"Bearer " + strings.Repeat("x", 8193)}}},
		"a query over a bound":   {"/ws?access_token=" + strings.Repeat("x", 8193), http.Header{}},
	} {
		h := upgradeHeader()
		for k, v := range tt.header {
			h[k] = v
		}
		res, body := n.request("GET", tt.path, h, strings.NewReader(""))
		if res.StatusCode != http.StatusBadRequest || !strings.Contains(body, `"code":"invalid"`) || strings.Contains(body, ann[:30]) {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
	}
	// The same holds for API keys over HTTP.
	h := http.Header{"Authorization": {"Bearer " + testKey, "Bearer " + testKey}}
	if res, _ := n.request("GET", "/v1/rooms", h, strings.NewReader("")); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("two keys: %d", res.StatusCode)
	}
}

// A browser can't see the status of a handshake, so a refused token is answered
// with a close code. Frames on such a connection are ignored.
func TestAWrongTokenIsAnsweredWithACloseCode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startKeyedNode(t, "*:rw", func(c *Config) { c.maxRejecting = fewRejecting })
		for name, bad := range map[string]string{
			"nonsense": "x", "ended": tokenOf("ann", -time.Hour, everyRoom), "another's signature": tokenOf("ann", time.Hour, everyRoom) + "A",
			"the name of an API key": tokenOf("api:shop", time.Hour, everyRoom), "no rooms": tokenOf("ann", time.Hour, `"all"`),
			"an API key": testKey,
		} {
			if got := n.dialRejected(withToken(bad)); got != 4001 {
				t.Errorf("%s: closed with %d, want 4001", name, got)
			}
		}
		_, br := n.rawHandshake(testkit.MaskedFrame(0x81, `{"type":"publish","room":"a","data":1}`)+testkit.MaskedFrame(0x88, "\x03\xe8"), "Authorization: Bearer x")
		if code, reason := readClose(t, readDocument(t, "asyncapi.yaml"), br); code != 4001 || reason != "unauthorized" {
			t.Errorf("%d %s", code, reason)
		}
		if _, body := n.call("GET", "/v1/rooms/a/messages", testKey, ""); !strings.Contains(body, `"head":0`) {
			t.Errorf("a connection without a good token has published: %s", body)
		}
		testkit.Eventually(t, "all connections to end", func() bool { return n.admission.Count() == 0 })
		for range fewRejecting {
			n.rawHandshake("", "Authorization: Bearer x") // reads nothing, so that its close waits
		}
		res, body := n.request("GET", "/ws", upgradeHeader("Authorization", "Bearer x"), strings.NewReader(""))
		if res.StatusCode != http.StatusUnauthorized || res.Header.Get("WWW-Authenticate") == "" || !strings.Contains(body, "malformed") {
			t.Errorf("one more is answered with %d %s", res.StatusCode, body)
		}
	})
}

func TestAConnectionWithoutATokenMayOnlyAuthenticate(t *testing.T) {
	n := startKeyedNode(t, "", func(c *Config) { c.Heartbeat, c.AuthTimeout = 100*time.Millisecond, time.Minute })
	b := n.open(nil)
	for _, frame := range []string{
		`{"type":"join","ref":"x","room":"a"}`, `{"type":"publish","ref":"x","room":"a","data":1}`, `{"type":"signal","ref":"x","room":"a","data":1}`,
		`{"type":"history","ref":"x","room":"a"}`, `{"type":"presence","ref":"x","room":"a"}`, `{"type":"leave","ref":"x","room":"a"}`,
		`{"type":"moved","ref":"x","from":"n","handshake_ms":1}`,
	} {
		b.send("%s", frame)
		if got := b.until("error"); got["code"] != "unauthorized" || got["ref"] != "x" {
			t.Errorf("%s: %v", frame, got)
		}
	}
	if _, body := n.call("GET", "/v1/rooms/a/messages", testKey, ""); !strings.Contains(body, `"head":0`) {
		t.Errorf("the connection has published: %s", body)
	}
	// A wrong token closes the connection.
	b.send(`{"type":"auth","ref":"y","token":"x"}`)
	if got := b.until("error"); got["code"] != "unauthorized" || got["ref"] != "y" {
		t.Errorf("a wrong token: %v", got)
	}
	if got := b.closed(); got != 4001 {
		t.Errorf("closed with %d", got)
	}
}

func TestAConnectionThatNeverAuthenticatesIsClosed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startKeyedNode(t, "", func(c *Config) { c.AuthTimeout = time.Second })
		late := n.open(nil)
		in := n.open(nil)
		in.send(`{"type":"auth","token":"%s"}`, tokenOf("ann", time.Hour, everyRoom))
		in.welcome()
		began := time.Now()
		if got := late.closed(); got != 4001 || time.Since(began) < time.Second/2 {
			t.Errorf("closed with %d after %v, want 4001 after a second", got, time.Since(began))
		}
		in.send(`{"type":"join","room":"a"}`)
		in.until("joined")
	})
}

// Connections that have not sent a token yet are closed with all others.
func TestAStopClosesConnectionsWithoutAToken(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startKeyedNode(t, "", nil)
		b := n.open(nil)
		testkit.Eventually(t, "the connection", func() bool { return n.admission.Count() == 1 })
		go func() { _ = n.drain.CloseClients(context.Background()) }()
		if got := b.closed(); got != 1012 {
			t.Errorf("closed with %d", got)
		}
	})
}

func TestATokenIsRefreshedOnAnOpenConnection(t *testing.T) {
	n := startKeyedNode(t, "", nil)
	b := n.dial(withToken(tokenOf("ann", time.Hour, `{"a":"rw","b":"rw","c":"r"}`)))
	for _, room := range []string{"a", "b", "c"} {
		b.send(`{"type":"join","room":"%s"}`, room)
		b.until("joined")
	}
	refuse := func(what, tok, code string) {
		t.Helper()
		b.send(`{"type":"auth","ref":"no","token":"%s"}`, tok)
		if got := b.until("error"); got["code"] != code || got["ref"] != "no" {
			t.Errorf("%s: %v, want %s", what, got, code)
		}
	}
	refuse("a wrong one", "x", "unauthorized")
	refuse("an expired one", tokenOf("ann", -time.Hour, everyRoom), "unauthorized")
	refuse("another user's", tokenOf("bob", time.Hour, everyRoom), "forbidden")
	b.send(`{"type":"publish","room":"b","data":1}`)
	b.until("ack") // the old one stays in use

	b.send(`{"type":"auth","ref":"yes","token":"%s"}`, tokenOf("ann", 2*time.Hour, `{"a":"r","b":"w","d":"rw"}`))
	left := map[any]bool{}
	for {
		got := b.read()
		if got["type"] == "error" && (got["code"] != "forbidden" || got["ref"] != nil) {
			t.Errorf("%v", got)
		}
		if got["type"] == "left" {
			left[got["room"]] = true
		}
		if got["type"] == "authenticated" {
			if ms := got["auth_expires_ms"].(float64); got["ref"] != "yes" || got["user"] != "ann" || ms < 7_000_000 {
				t.Errorf("%v", got)
			}
			break
		}
	}
	if len(left) != 2 || !left["b"] || !left["c"] {
		t.Errorf("left %v, want b and c, which the new token does not allow to read", left)
	}
	for _, room := range []string{"a", "b", "c"} {
		n.call("POST", "/v1/rooms/"+room+"/messages", testKey, `{"data":"after"}`)
	}
	b.send(`{"type":"publish","ref":"p","room":"a","data":1}`)
	b.send(`{"type":"join","ref":"d","room":"d"}`)
	seen := ""
	for got := b.read(); got["type"] != "joined"; got = b.read() {
		if got["type"] == "message" {
			seen += got["room"].(string)
		}
		if got["ref"] == "p" && got["code"] != "forbidden" {
			t.Errorf("a publish without the right to: %v", got)
		}
	}
	if seen != "a" {
		t.Errorf("got messages of %q, want a's only", seen)
	}
}

// A connection keeps its identity: an anonymous one can't get a user, because what
// it published is anonymous.
func TestAnAnonymousConnectionStaysAnonymous(t *testing.T) {
	n := startKeyedNode(t, "*:rw", nil)
	b := n.dial(nil)
	b.send(`{"type":"auth","ref":"x","token":"%s"}`, tokenOf("ann", time.Hour, everyRoom))
	if got := b.until("error"); got["code"] != "forbidden" || got["ref"] != "x" {
		t.Errorf("%v", got)
	}
}

func TestAConnectionEndsWithItsToken(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n := startKeyedNode(t, "", nil)
		brief := n.dial(withToken(tokenOf("ann", 2*time.Second, everyRoom)))
		fresh := n.dial(withToken(tokenOf("bob", 2*time.Second, everyRoom)))
		fresh.send(`{"type":"auth","token":"%s"}`, tokenOf("bob", time.Hour, everyRoom))
		fresh.until("authenticated")
		if got := brief.closed(); got != 4001 {
			t.Errorf("closed with %d, want 4001", got)
		}
		fresh.send(`{"type":"join","room":"a"}`)
		fresh.until("joined")
		testkit.Eventually(t, "the close to be counted", func() bool {
			return n.metric(`websocket_disconnections_total{reason="unauthorized"}`) == "1"
		})
	})
}

// A faultyVerifier is a real verifier whose keys can be made unavailable.
type faultyVerifier struct {
	Verifier
	unavailable atomic.Bool
}

func (v *faultyVerifier) Verify(ctx context.Context, token string) (auth.Identity, error) {
	if v.unavailable.Load() {
		return auth.Identity{}, auth.ErrUnavailable
	}
	return v.Verifier.Verify(ctx, token)
}

// A token that can't be checked is not refused: open connections stay, and new ones
// are asked to come again with the same token.
func TestTokensThatCannotBeCheckedNow(t *testing.T) {
	var v *faultyVerifier
	n := startKeyedNode(t, "", func(c *Config) { v = &faultyVerifier{Verifier: c.Verifier}; c.Verifier = v })
	ann := tokenOf("ann", time.Hour, everyRoom)
	b := n.dial(withToken(ann))
	waiting := n.open(nil)
	v.unavailable.Store(true)
	res, body := n.request("GET", "/ws", upgradeHeader("Authorization", "Bearer "+ann), strings.NewReader(""))
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" || !strings.Contains(body, "unavailable") {
		t.Errorf("a handshake: %d %s", res.StatusCode, body)
	}
	if res, _ := n.call("GET", "/v1/rooms/a/messages", ann, ""); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a call: %d", res.StatusCode)
	}
	for _, b := range []*browser{b, waiting} {
		b.send(`{"type":"auth","token":"%s"}`, ann)
		if got := b.until("error"); got["code"] != "unavailable" || got["retry_after_ms"] == nil {
			t.Errorf("an auth frame: %v", got)
		}
	}
	v.unavailable.Store(false)
	waiting.send(`{"type":"auth","token":"%s"}`, ann)
	waiting.until("welcome")
	b.send(`{"type":"join","room":"a"}`)
	b.until("joined")
}
