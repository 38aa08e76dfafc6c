package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// Limits for the effect of the attacks.
const (
	// maxMemory is the most memory of the process, in bytes. The race detector's own
	// memory is most of it.
	maxMemory = 1 << 30
	// maxExtraGoroutines is how many goroutines the attacks may leave behind.
	maxExtraGoroutines = 20
	// Under attack, the median latency may be maxMedianFactor times the median without
	// attacks, and the longest maxLatencyFactor times. The slack is for a machine that is
	// busy with the attackers, too.
	maxMedianFactor, maxMedianSlack   = 10, time.Second
	maxLatencyFactor, maxLatencySlack = 100, 15 * time.Second
)

// Some three hundred attacks on a server with every protection enabled get the right
// answers, while honest clients publish. The honest clients are not affected: the history
// checker finds every message, and no honest connection was lost. At the end the server
// has released the resources of the attacks. `make faults` also has the two that the
// server ends only after 15 s.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	s := startAttackTarget(t)
	baseline := s.startHonestClients(t, 2*time.Second).Report()
	t.Logf("before any attack:\n%s", baseline)
	honest := s.startHonestClients(t, 0)
	before, _ := scrape(t, s.Server).Sum("go_goroutines")

	began := time.Now()
	slow := slowAttacks()
	checkSlow := s.startAttacks(t, len(slow), slow)
	count := len(slow)
	for _, k := range []struct {
		name    string
		attacks []attack
		atOnce  int
	}{
		{"frames", framingAttacks(), maxConcurrentAttacks},
		{"handshakes", handshakeAttacks(), maxConcurrentAttacks},
		{"json", jsonAttacks(), maxConcurrentAttacks},
		{"bodies", bodyAttacks(), maxConcurrentAttacks},
		{"tokens", tokenAttacks(), maxConcurrentAttacks},
		{"origins and hosts", originAttacks(), maxConcurrentAttacks},
		{"requests", smugglingAttacks(), maxConcurrentAttacks},
		{"permissions and rooms", permissionAttacks(), maxConcurrentAttacks},
		{"identities", impersonationAttacks(), maxConcurrentAttacks},
		{"internal endpoints", internalEndpointAttacks(), maxConcurrentAttacks},
		{"floods", floodAttacks(), 1},
	} {
		s.startAttacks(t, k.atOnce, k.attacks)(k.name)
		count += len(k.attacks)
		t.Logf("%s: %d attacks, at %v", k.name, len(k.attacks), time.Since(began).Round(100*time.Millisecond))
	}
	checkSlow("slowness")
	t.Logf("%d attacks in %v", count, time.Since(began).Round(100*time.Millisecond))
	if count < 60 {
		t.Errorf("only %d attacks", count)
	}
	s.assertUnharmed(t, honest, before)
	assertLatency(t, "ack", baseline.PublishToAck, honest.Report().PublishToAck)
	assertLatency(t, "delivery", baseline.PublishToDelivery, honest.Report().PublishToDelivery)
	s.assertAuditLog(t)
}

// startHonestClients starts honest clients that publish for d, or until they are stopped
// when d is 0.
func (target *attackTarget) startHonestClients(t *testing.T, d time.Duration) *load.Run {
	t.Helper()
	var tokens []string
	for i := range 8 {
		tokens = append(tokens, tokenOf(fmt.Sprint("honest-", i), jsonObject{"rooms": jsonObject{"honest-*": "rw"}}))
	}
	run, err := load.Start(t.Context(), load.Plan{
		URLs: []string{target.SocketURL()}, Tokens: tokens, Clients: 24, Rooms: 4, Prefix: fmt.Sprint("honest-", d), Rate: 60, Duration: d,
		Settle: 2 * time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run.Stop(); <-run.Done() })
	return run
}

// assertUnharmed checks the effect of the attacks on the server and on its honest clients.
func (target *attackTarget) assertUnharmed(t *testing.T, honest *load.Run, goroutines float64) {
	t.Helper()
	if target.Ended() {
		t.Fatalf("the server has ended:\n%s", target.Output())
	}
	var now float64
	pollPage(t, "the goroutines of the attacks to end", func() bool {
		now, _ = scrape(t, target.Server).Sum("go_goroutines")
		return now <= goroutines+maxExtraGoroutines
	})
	worst := peakMemory(t, target.Server)
	honest.Stop()
	report := honest.Report()
	t.Logf("goroutines %v before, %v after; at most %d MiB\n%s", goroutines, now, worst>>20, report)
	if report.Verdict != load.Clean || report.Unknown > 0 || len(report.Refused) > 0 || report.Gaps > 0 {
		t.Errorf("honest clients were affected:\n%s", report)
	}
	if r := report.Run; r.Reconnects > 0 || len(r.Rejected) > 0 || r.Behind > 0 {
		t.Errorf("honest clients were affected: %+v", r)
	}
	if worst > maxMemory {
		t.Errorf("the server took %d MiB, over %d", worst>>20, maxMemory>>20)
	}
	if out := target.Output(); strings.Contains(out, "panic") || strings.Contains(out, `"level":"ERROR"`) {
		t.Errorf("the log has errors:\n%s", out)
	}
}

// assertLatency compares the latency of honest clients under attack with the one before.
func assertLatency(t *testing.T, what string, before, under *load.Latencies) {
	t.Helper()
	usual, most := before.Quantile(0.5), under.Max()
	if got := under.Quantile(0.5); got > maxMedianFactor*usual+maxMedianSlack || most > maxLatencyFactor*usual+maxLatencySlack {
		t.Errorf("under attack, the median latency of the %s was %v, the longest %v; without attacks the median was %v", what, got, most, usual)
	}
}

// peakMemory returns the peak resident memory of the process, in bytes.
func peakMemory(t *testing.T, s *testkit.Server) int {
	t.Helper()
	status := testkit.ReadFile(t, fmt.Sprintf("/proc/%d/status", s.Pid()))
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	line, _, _ := strings.Cut(rest, "kB")
	kib, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("%v in\n%s", err, status)
	}
	return kib << 10
}

// assertAuditLog checks that the audit log has an event of each kind of attack, in whole
// lines of its own format, and no secret.
func (target *attackTarget) assertAuditLog(t *testing.T) {
	t.Helper()
	f, err := os.Open(target.auditFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	events := map[string]int{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var line struct{ Audit, Event, Node, Time string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil || line.Audit != "v1" || line.Node == "" || line.Time == "" {
			t.Errorf("a malformed line: %v: %s", err, lines.Text())
		}
		events[line.Event]++
		assertNoSecret(t, "the audit log", lines.Text())
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	for _, event := range []string{"token_refused", "key_refused", "origin_refused", "host_refused", "right_refused", "limit_reached", "user_removed"} {
		if events[event] == 0 {
			t.Errorf("the audit log has no %s: %v", event, events)
		}
	}
	assertNoSecret(t, "the log", target.Output())
}

func assertNoSecret(t *testing.T, what, text string) {
	t.Helper()
	for name, secret := range map[string]string{
		"a token": base64URL(`{"alg":`)[:8], "a key": shopKey, "another key": tillKey, "a third": drumKey, "the secret": signingSecret,
	} {
		if strings.Contains(text, secret) {
			t.Errorf("%s contains %s: %.500s", what, name, text)
		}
	}
}
