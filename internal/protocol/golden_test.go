package protocol

import (
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

var update = flag.Bool("update", false, "rewrite the server's golden frames; wire v1 is released: only add")

// A golden is one file of testdata/v1: a frame of wire v1, byte for byte. The
// tests of every client read the same files.
type golden struct {
	// From is client or server.
	From  string `json:"from"`
	Frame string `json:"frame"`
	// Request is what the service decodes from a client's frame. Error is its
	// answer if it refuses the frame.
	Request *goldenRequest `json:"request,omitempty"`
	Error   *goldenError   `json:"error,omitempty"`
}

type goldenRequest struct {
	Type   Type          `json:"type"`
	Ref    string        `json:"ref,omitempty"`
	Room   message.Room  `json:"room,omitempty"`
	After  *message.Seq  `json:"after,omitempty"`
	Before *message.Seq  `json:"before,omitempty"`
	Epoch  message.Epoch `json:"epoch,omitempty"`
	Limit  int           `json:"limit,omitempty"`
	ID     string        `json:"id,omitempty"`
	// Data is the JSON value, byte for byte.
	Data string `json:"data,omitempty"`

	Token       string `json:"token,omitempty"`
	Node        string `json:"from,omitempty"`
	HandshakeMS int64  `json:"handshake_ms,omitempty"`
}

type goldenError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// goldenDir holds the frames of wire v1. Another version gets a directory of its
// own.
const goldenDir = "testdata/v1"

func readGolden(t *testing.T) map[string]golden {
	t.Helper()
	paths, err := filepath.Glob(goldenDir + "/*.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden frames: %v", err)
	}
	all := map[string]golden{}
	for _, path := range paths {
		b := testkit.ReadFile(t, path)
		var g golden
		if err := json.Unmarshal(b, &g); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all[strings.TrimSuffix(filepath.Base(path), ".json")] = g
	}
	return all
}

func TestGoldenRequestsAreUnderstood(t *testing.T) {
	seen := map[Type]bool{}
	for name, g := range readGolden(t) {
		if g.From != "client" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			r, err := Decode([]byte(g.Frame))
			switch {
			case g.Error != nil:
				if err == nil {
					t.Fatalf("decoded as %+v, want an error", r)
				}
				if e := ErrorFor(err); e.Code != g.Error.Code || e.Message != g.Error.Message {
					t.Errorf("refused with %+v, want %+v", e, g.Error)
				}
			case err != nil:
				t.Fatal(err)
			default:
				seen[r.Type] = true
				if want := g.Request.request(); !equal(r, want) {
					t.Errorf("got %+v, want %+v", r, want)
				}
			}
		})
	}
	for _, kind := range []Type{TypeJoin, TypeLeave, TypePublish, TypeSignal, TypeHistory, TypePresence, TypeAuth, TypeMoved, TypePing} {
		if !seen[kind] {
			t.Errorf("no golden frame has type %s", kind)
		}
	}
}

func (g *goldenRequest) request() Request {
	r := Request{Type: g.Type, Ref: Ref(g.Ref), Room: g.Room, Epoch: g.Epoch, Limit: g.Limit, ID: g.ID, Data: []byte(g.Data)}
	r.Token, r.From, r.HandshakeMS = g.Token, g.Node, g.HandshakeMS
	if r.HasAfter = g.After != nil; r.HasAfter {
		r.After = *g.After
	}
	if r.HasBefore = g.Before != nil; r.HasBefore {
		r.Before = *g.Before
	}
	return r
}

// serverFrames returns the frames of the server's golden files. A key is the
// function that encodes the frame, then - and a variant if there are several.
func serverFrames() map[string]Frame {
	m := storedMessage(`{"x":1}`)
	m.ID, m.Epoch = "0d5f", "e1"
	named := storedMessage(`[1, 2.50, "\u0000"]`)
	named.From = `o"brien`
	page := &message.Page{Epoch: "e1", Head: 7, First: 1, Messages: []message.Message{*m, *named}, More: true}
	pub := &message.Publication{Draft: m.Draft, Epoch: "e1", Seq: 7}
	duplicate := *pub
	duplicate.Duplicate = true
	user := "ann"
	welcome := Welcome{Session: "n1-1", Node: "n1", Color: "blue", Deployment: "d1", Version: "v1.0.0", HeartbeatMS: 25000, MaxFrame: 65536, IDWindowMS: 600000}
	resumed := welcome
	resumed.User, resumed.Resumed = &user, true
	withToken := resumed
	withToken.Session, withToken.AuthExpiresMS = "5PQ.k3QbZ2", 3_600_000
	withLimits := welcome
	withLimits.Limits = &Limits{Publish: &Limit{PerSecond: 200, Burst: 400, Left: 399}, Join: &Limit{PerSecond: 100, Burst: 1000, Left: 1000}}
	ann, bob := PresenceEntry{Session: "5PQ", User: &user}, PresenceEntry{Session: "7xT"}
	deploy := Move{AfterMS: 1200, DeadlineMS: 30000, Avoid: Avoid{Deployment: "d1"}, Reason: "deploy"}
	restart := Move{DeadlineMS: 25000, Avoid: Avoid{Node: "n1"}, Reason: "restart"}
	return map[string]Frame{
		"Welcome.Encode":              welcome.Encode(),
		"Welcome.Encode-user":         resumed.Encode(),
		"Welcome.Encode-token":        withToken.Encode(),
		"Welcome.Encode-limits":       withLimits.Encode(),
		"Move.Encode":                 deploy.Encode(),
		"Move.Encode-node":            restart.Encode(),
		"Authenticated":               Authenticated(`"r8"`, "ann", time.Hour),
		"Authenticated-for-good":      Authenticated("", "", 0),
		"Presence.Encode":             Presence{Room: "a", Count: 2, Members: []PresenceEntry{ann, bob}}.Encode(`"r9"`),
		"Presence.Encode-nobody":      Presence{Room: "a", Members: []PresenceEntry{}}.Encode(`"r9"`),
		"Presence.Encode-many":        Presence{Room: "a", Count: 12000}.Encode(""),
		"Presence.Encode-changes":     Presence{Room: "a", Count: 1, Joined: []PresenceEntry{ann}, Left: []PresenceEntry{bob, bob}}.Encode(""),
		"Message":                     Message(m),
		"Message-user":                Message(named),
		"Signal":                      Signal("a", "", []byte(`"typing"`)),
		"Signal-user":                 Signal("a", "api:shop", []byte(`{"n":1}`)),
		"Ack":                         Ack(`"r1"`, pub),
		"Ack-duplicate":               Ack("", &duplicate),
		"Joined":                      Joined(`"r2"`, "a", "e1", 7, 3),
		"Joined-empty":                Joined("", "a", "e1", 0, 1),
		"Left":                        Left(`"r3"`, "a", "e1", 7, 3),
		"Pong":                        Pong(`"r1"`),
		"Gap":                         Gap("a", "e1", 1, 2, GapTrimmed),
		"Gap-epoch":                   Gap("a", "e2", 1, 9, GapEpoch),
		"Heartbeat":                   Heartbeat(m.At),
		"History":                     History(`"r4"`, "a", page),
		"History-empty":               History("", "a", &message.Page{Epoch: "e1", First: 1}),
		"Error.Encode":                (&Error{Code: CodeMalformed, Message: "a frame is one JSON object"}).Encode("", "", ""),
		"Error.Encode-of-a-publish":   ErrorFor(message.ErrUnavailable).Encode(`"r5"`, "a", "0d5f"),
		"Error.Encode-of-a-join":      (&Error{Code: CodeForbidden, Message: `a "b"`, RetryAfter: 1500 * time.Millisecond}).Encode(`"r6"`, "a", ""),
		"Error.Encode-without-a-room": ErrorFor(invalidError("room", "must be 1 to 128 of A-Z a-z 0-9 . _ - :")).Encode(`"r7"`, "", ""),
	}
}

func goldenFileName(name string) string {
	return "server-" + strings.ToLower(strings.ReplaceAll(name, ".Encode", ""))
}

func TestServerFramesMatchTheGoldenFrames(t *testing.T) {
	frames := serverFrames()
	if *update {
		for name, f := range frames {
			b, err := json.MarshalIndent(golden{From: "server", Frame: string(Payload(f))}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(goldenDir, goldenFileName(name)+".json"), append(b, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	files := readGolden(t)
	for name, f := range frames {
		decodeFrame(t, f)
		if got, want := string(Payload(f)), files[goldenFileName(name)].Frame; got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, want)
		}
		delete(files, goldenFileName(name))
	}
	for name, g := range files {
		if g.From == "server" {
			t.Errorf("%s.json: no encoder produces it", name)
		}
	}
}

// Every exported function that encodes a frame has a golden frame.
func TestEveryEncoderHasAGoldenFrame(t *testing.T) {
	tested := map[string]bool{"PingFrame": true, "CloseFrame": true} // control frames: TestControlFrames
	for name := range serverFrames() {
		name, _, _ = strings.Cut(name, "-")
		tested[name] = true
	}
	for _, name := range encoders(t) {
		if !tested[name] {
			t.Errorf("%s has no golden frame", name)
		}
	}
}

// encoders returns the exported functions and methods that return a Frame.
func encoders(t *testing.T) []string {
	t.Helper()
	found := map[string]bool{}
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %d source files: %v", len(files), err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !fn.Name.IsExported() || fn.Type.Results == nil {
				continue
			}
			if result, ok := fn.Type.Results.List[0].Type.(*ast.Ident); !ok || result.Name != "Frame" {
				continue
			}
			name := fn.Name.Name
			if fn.Recv != nil {
				recv := fn.Recv.List[0].Type
				if star, ok := recv.(*ast.StarExpr); ok {
					recv = star.X
				}
				name = recv.(*ast.Ident).Name + "." + name
			}
			found[name] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}
