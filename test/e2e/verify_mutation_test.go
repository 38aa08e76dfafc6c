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

	"switchyard/internal/testkit"
)

// An edit replaces a text that occurs exactly once in a file of the repository.
type edit struct{ file, from, to string }

// An invariant is a rule that the service's promises depend on, with edits that break
// it and the fault that reveals the break.
type invariant struct {
	name  string
	edits []edit
	// disrupt happens while verify runs. Without it, verify's flags reveal the break.
	disrupt func(*testing.T, *verifyFixture)
	flags   []string // of verify, in place of the usual rate
	// wantFaults are the faults of which verify must find at least one.
	wantFaults []string
	// keptLongOnly leaves the server as it is to the long form.
	keptLongOnly bool
}

// A verifyFixture has the processes that disrupt may stop.
type verifyFixture struct {
	pg    *testkit.PG
	nodes []*testkit.Server
}

func invariants() []invariant {
	const store = "internal/store/"
	return []invariant{
		{
			name: "a gap is filled from the log",
			// The canaries' rooms keep their repairs: there the nodes of one host share a
			// room, so its canaries need repairs too, and without them the second node
			// would seldom be ready.
			edits: []edit{{
				"internal/hub/repair.go", "if !t.needsRepair() || t.repairing || t.repairScheduled {",
				"if !t.room.Reserved() || !t.needsRepair() || t.repairing || t.repairScheduled {",
			}},
			// Without Redis, each message from the other node needs a repair. So it does
			// where an id is stored once, whose server as it is loses nothing either.
			wantFaults:   []string{"lost"},
			keptLongOnly: true,
		},
		{
			name: "an ack follows the commit",
			edits: []edit{{
				store + "postgres_write.go", "	w.fingerprintPrefix, w.epoch = id.databaseID+\"/\"+id.timeline, epoch\n",
				"	w.fingerprintPrefix, w.epoch = id.databaseID+\"/\"+id.timeline, epoch\n	_, _ = conn.Exec(ctx, \"SET synchronous_commit = off\")\n",
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
			// Connections that are cut lose acks, so clients resend stored messages.
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
			// The server waits between the broadcast and the commit, so that a crash is
			// likely to come in between, with many messages uncommitted. Clients resend
			// each message of a batch that was broadcast and then lost; few get their
			// former seqs.
			name: "a broadcast follows the commit",
			edits: []edit{
				{store + "committer.go", "	for _, w := range c.workers {\n		w.onCompleted = onCompleted\n", "	early = onCompleted\n	for _, w := range c.workers {\n		w.onCompleted = onCompleted\n"},
				{store + "postgres_write.go", "	return w.commitIf(ctx, batch, nil)\n", `	return w.commitIf(ctx, batch, func(rs []result) error {
		for i, r := range rs {
			early([]*message.Publication{{Draft: batch[i].pub.Draft, Epoch: earlyEpoch, Seq: r.seq, At: r.at}})
		}
		<-time.After(100 * time.Millisecond)
		return nil
	})
`},
				{store + "postgres_write.go", "	if err == nil && precommit != nil {\n", "	if err == nil && precommit != nil {\n		earlyEpoch = epoch\n"},
				{store + "postgres_write.go", "// A pgWriter has the connection of one append", "var (\n	early      func([]*message.Publication)\n	earlyEpoch message.Epoch\n)\n\n// A pgWriter has the connection of one append"},
			},
			disrupt:    crashRepeatedly,
			wantFaults: []string{"stored_twice", "seq_shared", "undeclared", "refused_stored", "wrong_ack"},
		},
	}
}

// crashRepeatedly kills PostgreSQL under traffic five times, and starts it again once
// publishers have received `unavailable`.
func crashRepeatedly(t *testing.T, f *verifyFixture) {
	for range 5 {
		waitStored(t, f, 100)
		f.pg.Kill()
		waitUnavailable(t, f)
		f.pg.Start()
		waitReady(t, f)
	}
}

// restoreOlderDump restores an older state of the database while nodes run.
func restoreOlderDump(t *testing.T, f *verifyFixture) {
	waitStored(t, f, 50)
	dump := postgresTool(t, "pg_dump", f.pg.URL(), nil, "--clean", "--if-exists")
	waitStored(t, f, 200)
	postgresTool(t, "psql", f.pg.URL(), dump, "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction")
	waitStored(t, f, 50)
}

// waitStored waits until n more messages are stored.
func waitStored(t *testing.T, f *verifyFixture, n int) {
	t.Helper()
	stored := func() float64 { return sumSeries(t, f, "store_batch_messages_sum") }
	before := stored()
	pollPage(t, "messages to be stored", func() bool { return stored() >= before+float64(n) })
}

// waitUnavailable waits until a node has answered with `unavailable`.
func waitUnavailable(t *testing.T, f *verifyFixture) {
	t.Helper()
	count := func() float64 { return sumSeries(t, f, `websocket_errors_total{type="unavailable"}`) }
	before := count()
	pollPage(t, "a publish to be unavailable", func() bool { return count() > before })
}

func waitReady(t *testing.T, f *verifyFixture) {
	t.Helper()
	for _, s := range f.nodes {
		if err := s.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// sumSeries returns the sum of a series across all nodes.
func sumSeries(t *testing.T, f *verifyFixture, series string) (total float64) {
	t.Helper()
	for _, s := range f.nodes {
		total += metric(t, s, series)
	}
	return total
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

// `switchyard verify` passes the server under each disruption, and finds each broken
// invariant. The broken servers are built from edited copies (go build -overlay). An
// edit whose text is not found fails the test, so that none goes stale unnoticed. The
// short form publishes for half as long, only builds the servers whose disruption needs
// a database of its own, and has the server as it is once; `make faults` runs all.
func TestVerifyFindsEachBrokenInvariant(t *testing.T) {
	parallelUnlessLong(t)
	for _, inv := range invariants() {
		t.Run(inv.name, func(t *testing.T) {
			parallelUnlessLong(t)
			if inv.disrupt != nil && !*longFaults {
				buildWithEdits(t, inv.edits, "switchyard/internal/store", "switchyard/internal/hub") // it still applies, and compiles
				return
			}
			if !inv.keptLongOnly || *longFaults {
				t.Run("kept", func(t *testing.T) {
					parallelUnlessLong(t)
					if code, _, out := runVerify(t, &inv, testkit.BuildServer(t), "20s"); code != 0 {
						t.Errorf("exit %d of verify on the server as it is:\n%s", code, out)
					}
				})
			}
			t.Run("broken", func(t *testing.T) {
				parallelUnlessLong(t)
				// A message that is missing after ten readings of the feed never comes.
				code, found, out := runVerify(t, &inv, buildMutant(t, inv.edits), "3s")
				if code != 1 {
					t.Errorf("exit %d, want 1:\n%s", code, out)
				}
				if !slices.ContainsFunc(inv.wantFaults, func(f string) bool { return found[f] > 0 }) {
					t.Errorf("found %v, and none of %v:\n%s", found, inv.wantFaults, out)
				}
				t.Logf("found %v", found)
			})
		})
	}
}

// runVerify runs verify against two nodes of a program during a disruption. Verify waits
// for the last deliveries for up to settle.
func runVerify(t *testing.T, inv *invariant, program, settle string) (code int, faults map[string]int, out string) {
	t.Helper()
	f := &verifyFixture{}
	if inv.disrupt == nil {
		f.pg = testkit.Postgres(t)
	} else {
		f.pg = testkit.StartPostgres(t, "commit_delay=20000", "commit_siblings=0")
	}
	env := map[string]string{"DATABASE_URL": f.pg.URL(), "APPEND_TIMEOUT": "500ms"}
	for range 2 {
		f.nodes = append(f.nodes, testkit.StartServerProgram(t, program, env))
	}
	duration := "1500ms"
	if *longFaults {
		duration = "3s"
	}
	if inv.disrupt != nil {
		duration = "2m" // interrupted below, once disrupt is done
	}
	verify := startSwitchyard(t, append([]string{
		"verify", "--json", "--clients", "24", "--rooms", "3", "--rate", "200", "--duration", duration, "--settle", settle,
		"--url", f.nodes[0].SocketURL(), "--url", f.nodes[1].SocketURL(),
	}, inv.flags...)...)
	if inv.disrupt != nil {
		inv.disrupt(t, f)
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
		t.Errorf("verify names no message:\n%s", out)
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

// buildWithEdits runs go build on edited copies of the repository's files.
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
		text, loaded := texts[path]
		if !loaded {
			b := testkit.ReadFile(t, path)
			text = string(b)
		}
		if n := strings.Count(text, e.from); n != 1 {
			t.Fatalf("%s has the text of an edit %d times, want once: %q", e.file, n, e.from)
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
