package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// An edit breaks one rule: in a file of the repository, a text that stands there
// once becomes another.
type edit struct{ file, from, to string }

// A invariant is one of those that the promises hang on, with a server that does
// not keep it, and trouble that brings it to light.
type invariant struct {
	name  string
	edits []edit
	// trouble happens while verify runs; nil: its flags are trouble enough.
	disrupt func(*testing.T, *verifyFixture)
	flags   []string // of verify, in place of the usual rate
	// faults are those of which one at least must be found.
	wantFaults []string
}

// A verifyFixture is what trouble can reach.
type verifyFixture struct {
	pg    *testkit.PG
	nodes []*testkit.Server
}

func invariants() []invariant {
	const store = "internal/store/"
	return []invariant{
		{
			name: "a hole is filled from the log",
			// But for the canaries' room, where nodes of one host make holes for
			// each other: who starts second would seldom be ready.
			edits: []edit{{
				"internal/hub/repair.go", "if !t.needsRepair() || t.repairing || t.repairScheduled {",
				"if !t.room.Reserved() || !t.needsRepair() || t.repairing || t.repairScheduled {",
			}},
			// Without Redis all that comes from the other node is a repair.
			wantFaults: []string{"lost"},
		},
		{
			name: "an ack follows the commit",
			edits: []edit{{
				store + "postgres_write.go", "	w.fingerprintPrefix = id.databaseID + \"/\" + id.timeline\n",
				"	w.fingerprintPrefix = id.databaseID + \"/\" + id.timeline\n	_, _ = conn.Exec(ctx, \"SET synchronous_commit = off\")\n",
			}},
			disrupt:    crashRepeatedly,
			wantFaults: []string{"lost", "stored_twice", "seq_shared", "wrong_ack"},
		},
		{
			name: "an id is stored once",
			edits: []edit{
				{store + "postgres_write.go", "AND m.sender = i.sender AND m.id = i.id\n", "AND m.sender = i.sender AND m.id = i.id AND false\n"},
				{
					store + "postgres_write.go", "	SELECT room_id, sender, id, seq, at, digest FROM numbered WHERE known IS NULL\n",
					"	SELECT room_id, sender, id, seq, at, digest FROM numbered WHERE known IS NULL ON CONFLICT DO NOTHING\n",
				},
			},
			// Connections that are cut lose acks: what was stored is sent again.
			flags:      []string{"--cut", "40ms", "--rate", "0", "--window", "16"},
			wantFaults: []string{"stored_twice"},
		},
		{
			name: "a restored log has another epoch",
			edits: []edit{{
				store + "fingerprint.go", "	return message.Epoch(hex.EncodeToString(b[:]))\n",
				"	return message.Epoch(hex.EncodeToString(make([]byte, 8)))\n",
			}},
			disrupt:    restoreOlderDump,
			wantFaults: []string{"silent_epoch", "seq_shared", "stored_twice", "lost", "reordered", "doubled"},
		},
		{
			// Between the two is a moment that a crash shall meet, and in which many
			// messages gather: of a batch that was told of and then lost, each is sent
			// again with its id, and a single one may get its seq back.
			name: "a broadcast follows the commit",
			edits: []edit{
				{store + "committer.go", "	for _, w := range k.workers {\n		w.onCompleted = onCompleted\n", "	early = onCompleted\n	for _, w := range k.workers {\n		w.onCompleted = onCompleted\n"},
				{store + "postgres_write.go", "	return w.commitIf(ctx, batch, nil)\n", `	return w.commitIf(ctx, batch, func(rs []result) error {
		for i, r := range rs {
			early([]*message.Publication{{Draft: batch[i].pub.Draft, Epoch: earlyEpoch, Seq: r.seq, At: r.at}})
		}
		<-time.After(100 * time.Millisecond)
		return nil
	})
`},
				{store + "postgres_write.go", "	if err == nil && precommit != nil {\n", "	if err == nil && precommit != nil {\n		earlyEpoch = epoch\n"},
				{store + "postgres_write.go", "// pgWriter is the connection of one append", "var (\n	early      func([]*message.Publication)\n	earlyEpoch message.Epoch\n)\n\n// pgWriter is the connection of one append"},
			},
			disrupt:    crashRepeatedly,
			wantFaults: []string{"stored_twice", "seq_shared", "undeclared", "refused_stored", "wrong_ack"},
		},
	}
}

// crashRepeatedly kills PostgreSQL while there is traffic, five times, and lets it come
// back when publishers have been told that it is away.
func crashRepeatedly(t *testing.T, p *verifyFixture) {
	for range 5 {
		waitStored(t, p, 100)
		p.pg.Kill()
		waitUnavailable(t, p)
		p.pg.Start()
		waitReady(t, p)
	}
}

// restoreOlderDump puts an older state of the database back beneath living nodes.
func restoreOlderDump(t *testing.T, p *verifyFixture) {
	waitStored(t, p, 50)
	dump := postgresTool(t, "pg_dump", p.pg.URL(), nil, "--clean", "--if-exists")
	waitStored(t, p, 200)
	postgresTool(t, "psql", p.pg.URL(), dump, "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction")
	waitStored(t, p, 50)
}

// waitStored waits for so many more messages to be stored.
func waitStored(t *testing.T, p *verifyFixture, n int) {
	t.Helper()
	stored := func() float64 { return sumSeries(t, p, "store_batch_messages_sum") }
	before := stored()
	waitUpToAMinute(t, "messages to be stored", func() bool { return stored() >= before+float64(n) })
}

// waitUnavailable waits until a node has answered that the log is away.
func waitUnavailable(t *testing.T, p *verifyFixture) {
	t.Helper()
	count := func() float64 { return sumSeries(t, p, `websocket_errors_total{type="unavailable"}`) }
	before := count()
	waitUpToAMinute(t, "word that the log is away", func() bool { return count() > before })
}

func waitReady(t *testing.T, p *verifyFixture) {
	t.Helper()
	for _, s := range p.nodes {
		if err := s.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// sumSeries adds a series up over all nodes.
func sumSeries(t *testing.T, p *verifyFixture, series string) (total float64) {
	t.Helper()
	for _, s := range p.nodes {
		for line := range strings.Lines(get(t, s.URL()+"/metrics")) {
			if value, ok := strings.CutPrefix(line, series+" "); ok {
				var v float64
				if err := json.Unmarshal([]byte(strings.TrimSpace(value)), &v); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				total += v
			}
		}
	}
	return total
}

func waitUpToAMinute(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

func postgresTool(t *testing.T, name, url string, input []byte, args ...string) []byte {
	t.Helper()
	path, err := testkit.FindPostgresProgram(name)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, append(args, "-d", url)...)
	cmd.Stdin = strings.NewReader(string(input))
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%s: %v: %s", name, err, exit.Stderr)
		}
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// The checker is checked: `switchyard verify` passes the server, under each
// trouble, and finds each rule out that a server was built without. The broken
// servers are built from edited copies (go build -overlay); an edit whose text
// is not found fails, so that none of them can go stale unseen. Rules that need
// a database in trouble are for the long form: `make faults`.
func TestVerifyFindsEachBrokenInvariant(t *testing.T) {
	parallelUnlessLong := func(t *testing.T) {
		if !*longFaults { // where the database dies of one, and others wait for it
			t.Parallel()
		}
	}
	parallelUnlessLong(t)
	for _, r := range invariants() {
		t.Run(r.name, func(t *testing.T) {
			parallelUnlessLong(t)
			if r.disrupt != nil && !*longFaults {
				buildWithEdits(t, r.edits, "switchyard/internal/store", "switchyard/internal/hub") // it still applies, and compiles
				return
			}
			t.Run("kept", func(t *testing.T) {
				parallelUnlessLong(t)
				if code, _, out := runVerify(t, &r, testkit.BuildServer(t), "20s"); code != 0 {
					t.Errorf("exit %d of verify on the server as it is:\n%s", code, out)
				}
			})
			t.Run("broken", func(t *testing.T) {
				parallelUnlessLong(t)
				// What has not come after twenty readings of the feed never will.
				code, found, out := runVerify(t, &r, buildMutant(t, r.edits), "5s")
				if code != 1 {
					t.Errorf("exit %d, want 1:\n%s", code, out)
				}
				if !slices.ContainsFunc(r.wantFaults, func(f string) bool { return found[f] > 0 }) {
					t.Errorf("found %v, and none of %v:\n%s", found, r.wantFaults, out)
				}
				t.Logf("found %v", found)
			})
		})
	}
}

// runVerify runs verify against two nodes of a program, in trouble, and lets what is
// on its way settle.
func runVerify(t *testing.T, r *invariant, program, settle string) (code int, faults map[string]int, out string) {
	t.Helper()
	p := &verifyFixture{pg: testkit.StartPostgres(t, "commit_delay=20000", "commit_siblings=0")}
	env := map[string]string{"DATABASE_URL": p.pg.URL(), "APPEND_TIMEOUT": "500ms"}
	for range 2 {
		p.nodes = append(p.nodes, testkit.StartServerProgram(t, program, env))
	}
	duration := "4s"
	if r.disrupt != nil {
		duration = "2m" // until the trouble is over
	}
	verify := startSwitchyard(t, append([]string{
		"verify", "--json", "--clients", "24", "--rooms", "3", "--rate", "200", "--duration", duration, "--settle", settle,
		"--url", p.nodes[0].SocketURL(), "--url", p.nodes[1].SocketURL(),
	}, r.flags...)...)
	if r.disrupt != nil {
		r.disrupt(t, p)
		if err := verify.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
	}
	code, out, _ = verify.result()
	var report struct {
		Faults   map[string]int
		Findings []struct{ Text, ID, Room string }
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("exit %d: %v\n%s", code, err, out)
	}
	if code == 1 && len(report.Findings) == 0 {
		t.Errorf("no message is named:\n%s", out)
	}
	return code, report.Faults, out
}

// buildMutant builds cmd/server with edits.
func buildMutant(t *testing.T, edits []edit) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "server")
	buildWithEdits(t, edits, "-o", program, "switchyard/cmd/server")
	return program
}

// buildWithEdits runs go build with edits, which touch no file of the repository.
func buildWithEdits(t *testing.T, edits []edit, args ...string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	texts := map[string]string{}
	for _, e := range edits {
		path := filepath.Join(root, e.file)
		text, again := texts[path]
		if !again {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
		}
		if n := strings.Count(text, e.from); n != 1 {
			t.Fatalf("%s holds %d times what the edit looks for: %q", e.file, n, e.from)
		}
		texts[path] = strings.Replace(text, e.from, e.to, 1)
	}
	replace := map[string]string{}
	for path, text := range texts {
		replace[path] = filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(replace[path], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-buildvcs=false", "-overlay", file}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a broken server: %v\n%s", err, out)
	}
}
