package release

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

type seqAndID struct {
	Seq message.Seq
	ID  string
}

// A visitorReport is what a visitor (testdata/visitor, visit.mjs) received.
type visitorReport struct {
	Version   string
	Acks      map[string]message.Seq
	Messages  []seqAndID
	Duplicate bool
	Conflict  string
	Signal    json.RawMessage
	History   []seqAndID
	More      bool
	Gap       string
}

// runVisitor runs a visitor against a server that is killed and restarted once the
// visitor has published half of its messages, and checks the visitor's report.
func runVisitor(t *testing.T, s *testkit.Server, program string, args ...string) *visitorReport {
	t.Helper()
	p, err := testkit.Start(testkit.Program{Path: program, Args: args, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx := testkit.Within(t, 2*testkit.Timeout)
	if err := p.WaitOutput(ctx, "half\n"); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	if err := p.Wait(ctx); err != nil {
		t.Fatalf("%v\n%s", err, p.Output())
	}
	_, last, _ := strings.Cut(p.Output(), "half\n")
	var r visitorReport
	if err := json.Unmarshal([]byte(last), &r); err != nil {
		t.Fatalf("%v: %s", err, last)
	}
	want := visitorReport{
		Version: r.Version, Acks: map[string]message.Seq{}, Duplicate: true, Conflict: "conflict",
		Signal: json.RawMessage(`{"typing":true}`), More: true, Gap: "1-20 epoch",
	}
	for i := message.Seq(1); i <= 20; i++ {
		id := fmt.Sprintf("id-%d", i)
		want.Acks[id] = i
		want.Messages = append(want.Messages, seqAndID{i, id})
	}
	want.History = want.Messages[17:]
	if !reflect.DeepEqual(r, want) {
		t.Errorf("reports\n%+v\nwant\n%+v", r, want)
	}
	return &r
}

func TestGoClientsAcrossReleases(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *release) {
		t.Run("old client, new server", func(t *testing.T) {
			t.Parallel()
			s := testkit.StartServer(t, nil)
			if v := runVisitor(t, s, r.visitor(t), s.SocketURL(), "lobby").Version; v == r.name {
				t.Errorf("served by %s", v)
			}
		})
		t.Run("new client, old server", func(t *testing.T) {
			t.Parallel()
			s := testkit.StartServerProgram(t, r.server(t), nil)
			if v := runVisitor(t, s, buildVisitor(t), s.SocketURL(), "lobby").Version; v != r.name {
				t.Errorf("served by %s", v)
			}
		})
	})
}

// buildVisitor builds the visitor with the client of this release, once.
func buildVisitor(t *testing.T) string {
	t.Helper()
	path, err := currentVisitor()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var currentVisitor = sync.OnceValues(func() (string, error) {
	dir, err := testkit.TempDir("visitor", nil)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "visitor")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", path, "./testdata/visitor").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the visitor: %w\n%s", err, out)
	}
	return path, nil
})

func TestBrowserClientsAcrossReleases(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatalf("Node is missing, Debian's package nodejs (18 or newer): %v", err)
	}
	script, err := filepath.Abs("visit.mjs")
	if err != nil {
		t.Fatal(err)
	}
	currentClient, err := filepath.Abs("../../web/client.js")
	if err != nil {
		t.Fatal(err)
	}
	eachRelease(t, func(t *testing.T, r *release) {
		t.Run("old client, new server", func(t *testing.T) {
			t.Parallel()
			s := testkit.StartServer(t, nil)
			if v := runVisitor(t, s, node, script, filepath.Join(r.dir, "web", "client.js"), s.SocketURL(), "lobby").Version; v == r.name {
				t.Errorf("served by %s", v)
			}
		})
		t.Run("new client, old server", func(t *testing.T) {
			t.Parallel()
			s := testkit.StartServerProgram(t, r.server(t), nil)
			if v := runVisitor(t, s, node, script, currentClient, s.SocketURL(), "lobby").Version; v != r.name {
				t.Errorf("served by %s", v)
			}
		})
	})
}

// A golden is one of a release's golden frames, from its internal/protocol/testdata.
type golden struct {
	From, Frame string
	Request     *struct {
		Type, Ref, Room, Epoch, ID, Data string
		After, Before                    *message.Seq
		Limit                            int
	}
	Error *struct{ Code string }
}

func TestGoldenFramesOfOldReleases(t *testing.T) {
	eachRelease(t, func(t *testing.T, r *release) {
		paths, err := filepath.Glob(r.dir + "/internal/protocol/testdata/v1/*.json")
		if err != nil || len(paths) < 30 {
			t.Fatalf("%d golden frames, %v", len(paths), err)
		}
		for _, path := range paths {
			t.Run(filepath.Base(path), func(t *testing.T) {
				old := readGolden(t, path)
				if old.From == "server" {
					assertKeepsFields(t, old, readGolden(t, "../../internal/protocol/testdata/v1/"+filepath.Base(path)))
				} else {
					assertDecodes(t, old)
				}
			})
		}
	})
}

func readGolden(t *testing.T, path string) (g golden) {
	t.Helper()
	b := testkit.ReadFile(t, path)
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

// assertDecodes checks that an old client's frame has the same meaning today.
func assertDecodes(t *testing.T, g golden) {
	t.Helper()
	got, err := protocol.Decode([]byte(g.Frame))
	if g.Error != nil {
		if err == nil || protocol.ErrorFor(err).Code != g.Error.Code {
			t.Errorf("%v (%+v), want %s", err, got, g.Error.Code)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	w := g.Request
	want := protocol.Request{
		Type: protocol.Type(w.Type), Ref: protocol.Ref(w.Ref), Room: message.Room(w.Room),
		Epoch: message.Epoch(w.Epoch), ID: w.ID, Limit: w.Limit,
	}
	if want.HasAfter = w.After != nil; want.HasAfter {
		want.After = *w.After
	}
	if want.HasBefore = w.Before != nil; want.HasBefore {
		want.Before = *w.Before
	}
	data := string(got.Data)
	if got.Data = nil; data != w.Data || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded as %+v with %s, want %+v with %s", got, data, want, w.Data)
	}
}

// assertKeepsFields checks that today's frame has every field of the old one, with a
// value of the same kind, so that an old client can read it. Texts for people may change.
func assertKeepsFields(t *testing.T, old, current golden) {
	t.Helper()
	var was, is map[string]any
	if err := json.Unmarshal([]byte(old.Frame), &was); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(current.Frame), &is); err != nil {
		t.Fatal(err)
	}
	for field, value := range was {
		now, there := is[field]
		if !there || reflect.TypeOf(now) != reflect.TypeOf(value) || field != "message" && !reflect.DeepEqual(now, value) {
			t.Errorf("%s was %v and is %v", field, value, now)
		}
	}
}
