package http

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"nhooyr.io/websocket"

	"switchyard/internal/auth"
	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

// payloads returns the messages of an operation: the type in the frame, such as
// "joined", and the path of its schema.
func payloads(d *document, operation string) map[string][]string {
	list, _ := d.at("operations", operation, "messages")
	found := map[string][]string{}
	for _, v := range list.([]any) {
		_, pointer := d.follow(v, "")
		key := pointer[strings.LastIndex(pointer, "/")+1:]
		path := []string{"components", "messages", key, "payload"}
		kind, _ := d.object(append(path, "properties", "type")...)["const"].(string)
		if kind == "" {
			kind = key // two messages share the schema
		}
		found[kind] = path
	}
	return found
}

// goldenFrames returns the golden frames of internal/protocol, by file.
func goldenFrames(t *testing.T) map[string]map[string]any {
	t.Helper()
	paths, err := filepath.Glob("../protocol/testdata/v1/*.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden frames: %v", err)
	}
	all := map[string]map[string]any{}
	for _, path := range paths {
		b := testkit.ReadFile(t, path)
		var g map[string]any
		if err := json.Unmarshal(b, &g); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all[filepath.Base(path)] = g
	}
	return all
}

// The frames of the service have exactly the fields of the document, and each field
// of the document is in a golden frame. The same holds for the frames of clients.
func TestGoldenFramesMatchAsyncAPI(t *testing.T) {
	d := readDocument(t, "asyncapi.yaml")
	requests, answers := payloads(d, "request"), payloads(d, "deliver")
	seen := map[string]bool{}
	for file, g := range goldenFrames(t) {
		text := g["frame"].(string)
		var frame map[string]any
		refused := g["error"] != nil
		if err := json.Unmarshal([]byte(text), &frame); err != nil && !refused {
			t.Fatalf("%s: %v", file, err)
		}
		kind, _ := frame["type"].(string)
		schema := requests[kind]
		if g["from"] == "server" {
			schema = answers[kind]
		}
		switch {
		case schema == nil && !refused:
			t.Errorf("%s: %s is not documented", file, kind)
		case schema == nil:
		case (d.checkText(text, schema...) != nil) != refused:
			t.Errorf("%s: the document says %v", file, d.checkText(text, schema...))
		}
		for field := range frame {
			seen[fmt.Sprint(g["from"], " ", kind, " ", field)] = true
		}
	}
	for from, set := range map[string]map[string][]string{"client": requests, "server": answers} {
		for kind, schema := range set {
			for field := range d.object(append(schema, "properties")...) {
				if !seen[from+" "+kind+" "+field] {
					t.Errorf("no golden %s frame shows %s of %s", from, field, kind)
				}
			}
		}
	}
}

// The documented fields of requests are exactly those that are read.
func TestRequestsMatchAsyncAPI(t *testing.T) {
	d := readDocument(t, "asyncapi.yaml")
	requests := payloads(d, "request")
	fields := map[string]bool{}
	for _, schema := range requests {
		for field := range d.object(append(schema, "properties")...) {
			fields[strings.ReplaceAll(field, "_", "")] = true
		}
	}
	want := map[string]bool{}
	for f := range reflect.TypeFor[protocol.Request]().Fields() {
		if !strings.HasPrefix(f.Name, "Has") { // says whether another field was given
			want[strings.ToLower(f.Name)] = true
		}
	}
	if !maps.Equal(fields, want) {
		t.Errorf("documented %v, read %v", slices.Sorted(maps.Keys(fields)), slices.Sorted(maps.Keys(want)))
	}
	for file, g := range goldenFrames(t) {
		var frame map[string]json.RawMessage
		if g["request"] == nil || json.Unmarshal([]byte(g["frame"].(string)), &frame) != nil {
			continue
		}
		whole, _ := protocol.Decode([]byte(g["frame"].(string)))
		for field := range frame {
			less := maps.Clone(frame)
			delete(less, field)
			b, err := json.Marshal(less)
			if err != nil {
				t.Fatal(err)
			}
			part, err := protocol.Decode(b)
			if same := err == nil && reflect.DeepEqual(whole, part); same == fields[strings.ReplaceAll(field, "_", "")] {
				t.Errorf("%s: without %s the request is the same: %v", file, field, same)
			}
		}
	}
	types := slices.Sorted(maps.Keys(requests))
	if known := constants(t, "decode.go", "Type"); !slices.Equal(types, known) {
		t.Errorf("documented %v, known %v", types, known)
	}
}

// constants returns the values of the string constants of a file of
// internal/protocol whose names begin with prefix.
func constants(t *testing.T, file, prefix string) (values []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../protocol/"+file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, prefix) || len(spec.Values) == 0 {
			return true
		}
		if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			value, _ := strconv.Unquote(lit.Value)
			values = append(values, value)
		}
		return true
	})
	slices.Sort(values)
	return values
}

// Each documented error code is sent on a real connection, and no other is.
func TestEveryErrorCodeIsSent(t *testing.T) {
	n := startNode(t, func(c *Config) { c.now = new(manualClock).now })
	d := readDocument(t, "asyncapi.yaml")
	answers := payloads(d, "deliver")
	b := n.dial(nil)
	met := map[string]bool{}
	expect := func(frame, code string) {
		t.Helper()
		b.send("%s", frame)
		v := b.until("error")
		if err := d.check(v, answers["error"]...); err != nil || v["code"] != code {
			t.Errorf("%s: %v: %v", frame, v, err)
		}
		met[v["code"].(string)] = true
	}
	expect(`nonsense`, "malformed")
	expect(`{"type":"join","room":"a b","ref":"r"}`, "invalid")
	expect(`{"type":"dance","room":"a"}`, "unknown_type")
	expect(`{"type":"join","room":"_x"}`, "forbidden")
	b.send(`{"type":"publish","room":"a","id":"i","data":1}`)
	b.until("ack")
	expect(`{"type":"publish","room":"a","id":"i","data":2}`, "conflict")
	n.log.setFailure(message.ErrUnavailable)
	expect(`{"type":"publish","room":"a","data":2}`, "unavailable")
	n.log.setFailure(message.ErrRejected)
	expect(`{"type":"publish","room":"a","data":2}`, "internal")
	n.log.failure.Store(nil)
	for i := range 1000 {
		b.send(`{"type":"join","room":"r%d"}`, i)
		b.until("joined")
	}
	expect(`{"type":"join","room":"one-more"}`, "too_many_rooms")
	for range 10 { // docs/limits.md
		expect(`{"type":"auth","token":"t"}`, "unauthorized")
	}
	expect(`{"type":"auth","token":"t"}`, "rate_limited")
	documented := d.strings(append(answers["error"], "properties", "code", "enum")...)
	slices.Sort(documented)
	if got := slices.Sorted(maps.Keys(met)); !slices.Equal(got, documented) {
		t.Errorf("sent %v, documented %v", got, documented)
	}
}

// readClose reads a connection to its close frame, and validates every frame before
// it against the document.
func readClose(t *testing.T, d *document, br *bufio.Reader) (code uint16, reason string) {
	t.Helper()
	answers := payloads(d, "deliver")
	for {
		op, text := readFrame(t, br)
		payload := []byte(text)
		switch op {
		case 0x88:
			return binary.BigEndian.Uint16(payload), string(payload[2:])
		case 0x81:
			var f struct{ Type string }
			if err := json.Unmarshal(payload, &f); err != nil || answers[f.Type] == nil {
				t.Fatalf("%q: %v", payload, err)
			}
			if err := d.checkText(string(payload), answers[f.Type]...); err != nil {
				t.Errorf("%s: %v", payload, err)
			}
		}
	}
}

// fixedVerifier is a Verifier for which every token is ann's.
type fixedVerifier struct{}

func (fixedVerifier) Verify(context.Context, string) (auth.Identity, error) {
	return auth.Identity{User: "ann"}, nil
}

func (fixedVerifier) Anonymous() (auth.Identity, bool) { return auth.Identity{}, false }

func disconnectAnn(n *node) {
	testkit.Eventually(n.t, "ann", func() bool { return n.admission.CountOf("ann") == 1 })
	n.call("POST", "/v1/users/ann/disconnect", testKey, "")
}

// Each documented close code is sent, with its reason, and no other is.
func TestEveryCloseCodeIsSent(t *testing.T) {
	d := readDocument(t, "asyncapi.yaml")
	quick := func(c *Config) { c.Heartbeat = 200 * time.Millisecond }
	join := testkit.MaskedFrame(0x81, `{"type":"join","room":"a"}`)
	closed, err := auth.New(t.Context(), auth.Config{JWTSecrets: []string{tokenSecret}, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	met := map[string]bool{}
	for want, tt := range map[string]struct {
		change func(*Config)
		sends  string
		then   func(*node)
	}{
		"1000": {nil, testkit.MaskedFrame(0x88, "\x03\xe8"), nil},
		"1002": {nil, "\x81\x02{}", nil},
		"1003": {nil, testkit.MaskedFrame(0x82, "x"), nil},
		"1007": {nil, testkit.MaskedFrame(0x81, "\"\xff\""), nil},
		"1008": {nil, strings.Repeat(testkit.MaskedFrame(0x81, "x"), 3), nil},
		"1009": {func(c *Config) { c.MaxFrame = 1024 }, testkit.MaskedFrame(0x81, strings.Repeat("x", 1025)), nil},
		"1012": {nil, "", func(n *node) { go n.drain.CloseClients(n.t.Context()) }},
		"4009": {nil, "", func(n *node) {
			saved := &n.cfg.Sessions.(*observedSessions).lastSaved
			testkit.Eventually(n.t, "the session to be saved", func() bool { return saved.Load() != nil })
			n.HandleTakeover(message.NodeEvent{Kind: message.EventSessionLive, Session: saved.Load().ID, Generation: 2})
		}},
		"4001": {func(c *Config) { c.Verifier = closed }, testkit.MaskedFrame(0x81, `{"type":"auth","token":"x"}`), nil},
		"4003": {func(c *Config) { c.Verifier = fixedVerifier{} }, testkit.MaskedFrame(0x81, `{"type":"auth","token":"x"}`), disconnectAnn},
		"4103": {func(c *Config) { c.MaxConnections = 1 }, "", nil},
		"4129": {func(c *Config) { c.Rates.Publish = 1 }, strings.Repeat(testkit.MaskedFrame(0x81, `{"type":"signal","room":"a","data":1}`), 3+maxRefused), nil},
		"4208": {func(c *Config) { c.QueueBytes = 600 << 10 }, join, floodRoom},
		"4209": {quick, "", nil},
	} {
		t.Run(want, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				change := tt.change
				if want == "4009" {
					change = withSessions(t)
				}
				n := startNode(t, change)
				if want == "4103" {
					n.dial(nil)
				}
				_, br := n.rawHandshake(tt.sends)
				if tt.then != nil {
					testkit.Eventually(t, "the connection", func() bool { return n.metric("websocket_active_connections") == "1" })
					tt.then(n)
				}
				code, reason := readClose(t, d, br)
				said := d.object("channels", "socket", "x-close-codes", want)
				if fmt.Sprint(code) != want || want != "1000" && said["reason"] != reason {
					t.Errorf("closed with %d %q, want %s %v", code, reason, want, said["reason"])
				}
				met[fmt.Sprint(code)] = true
			})
		})
	}
	documented := d.object("channels", "socket", "x-close-codes")
	for code := range documented {
		if !met[code] {
			t.Errorf("%s is documented and was not sent", code)
		}
	}
}

// floodRoom publishes more than QUEUE_BYTES in a room whose only member reads
// nothing.
func floodRoom(n *node) {
	testkit.Eventually(n.t, "the member", func() bool { return len(n.hub.Rooms()) == 1 && n.hub.Rooms()[0].Members == 1 })
	data := `"` + strings.Repeat("x", 60<<10) + `"`
	for range 20 {
		if _, err := n.hub.Publish(n.t.Context(), draft("a", data)); err != nil {
			n.t.Fatal(err)
		}
	}
}

// The documents are served as they are in the folder web.
func TestTheAPIDocumentsAreServed(t *testing.T) {
	n := startNode(t, nil)
	for _, name := range []string{"/openapi.yaml", "/asyncapi.yaml"} {
		res, body := n.call("GET", name, "", "")
		if res.Header.Get("Content-Type") != "application/yaml" || !strings.Contains(body, "title: Switchyard") {
			t.Errorf("%s: %s %.60s", name, res.Header.Get("Content-Type"), body)
		}
	}
	ws, res, err := websocket.Dial(t.Context(), "ws://"+n.addr+"/ws", nil)
	if err != nil || res.Header.Get("X-Request-Id") == "" {
		t.Fatalf("handshake: %v %v", res, err)
	}
	_ = ws.Close(websocket.StatusNormalClosure, "")
	testkit.Eventually(t, "the log line with the handshake's request id", func() bool {
		return strings.Contains(n.logs.String(), `"request_id":"`+res.Header.Get("X-Request-Id")+`"`)
	})
}
