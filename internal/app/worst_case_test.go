package app

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"switchyard/internal/admission"
	"switchyard/internal/config"
	httpd "switchyard/internal/http"
	"switchyard/internal/hub"
	"switchyard/internal/store"
	"switchyard/internal/testkit"
)

// A worstCase is the most that one party can cause on a node at a time, or in a second
// for longer than a burst lasts.
type worstCase struct {
	party       string
	descriptors int
	memory      int64 // bytes
	calls       int   // for history and presence; a second
	frames      int   // others, such as joins; a second
	read        int64 // bytes of answers to them; a second
	publishes   int   // a second
	written     int64 // bytes of them; a second
}

const (
	historyPage = 256 << 10 // bytes: see docs/limits.md
	batchBody   = 1 << 20   // bytes
)

// worstCases multiplies the bounds. A product over what all parties together may have is
// what they may have.
func worstCases(c *config.Config, memory int64) []worstCase {
	plan := planMemory(memory, c.HTTP.MaxConnections, c.HTTP.QueueTotalBytes)
	l := c.Limits
	connected := func(party string, connections, publishes int, bytes int64) worstCase {
		memberships := min(connections*c.Hub.MaxRooms, hub.MaxRoomsOfReader(c.Hub.MaxRooms, memory/8))
		return worstCase{
			party: party, descriptors: connections,
			memory: int64(connections*connectionBytes) + min(int64(connections*c.HTTP.QueueBytes), plan.queues) +
				min(int64(memberships)*(hub.MemberBytes+hub.TopicBytes), plan.hub),
			calls: l.UserHistory, frames: httpd.FrameLimit(connections, plan.connections).PerSecond, read: int64(l.UserReadBytes),
			publishes: publishes, written: bytes,
		}
	}
	perConnection := func(connections int) (publishes int, bytes int64) {
		return connections * l.Publish, int64(connections) * int64(l.Bytes)
	}
	publishes, bytes := perConnection(l.MaxPerAddress)
	address := connected("an address, all of whose clients are anonymous", l.MaxPerAddress, publishes, bytes)
	address.descriptors += admission.MaxHTTPConnsPerAddress
	user := connected("a user", l.MaxPerUser, l.UserPublish, int64(l.UserBytes))
	key := worstCase{
		party: "an API key", descriptors: admission.MaxHTTPConns,
		memory: min(int64(admission.MaxHTTPConns*batchBody), plan.queues*3/4),
		calls:  l.API, read: int64(l.API) * historyPage, publishes: l.API * 256, written: int64(l.API) * batchBody,
	}
	all := worstCase{
		party:       "all together",
		descriptors: plan.connections + admission.MaxRejecting + admission.MaxHTTPConns + ownDescriptors + c.Store.MaxConns,
		memory:      processBytes + plan.queues + plan.pending + plan.hub + int64(plan.connections)*connectionBytes,
		written:     plan.pending,
	}
	return []worstCase{address, user, key, all}
}

// markdown returns the table of docs/limits.md.
func markdown(cases []worstCase) string {
	var b strings.Builder
	b.WriteString("| who | descriptors | memory | history and presence calls | other frames | bytes read | publishes | bytes written |\n|---|---|---|---|---|---|---|---|\n")
	for _, w := range cases[:len(cases)-1] {
		fmt.Fprintf(&b, "| %s | %d | %s | %d/s | %s | %s/s | %d/s | %s/s |\n",
			w.party, w.descriptors, mebibytes(w.memory), w.calls, perSecond(w.frames), mebibytes(w.read), w.publishes, mebibytes(w.written))
	}
	all := cases[len(cases)-1]
	fmt.Fprintf(&b, "| %s | %d | %s | %d reads at a time | – | %d KiB a read | %d that wait | %s that wait |\n",
		all.party, all.descriptors, mebibytes(all.memory), hub.ConcurrentReads, historyPage>>10, store.DefaultMaxPending, mebibytes(all.written))
	return b.String()
}

func perSecond(n int) string {
	if n == 0 {
		return "–"
	}
	return strconv.Itoa(n) + "/s"
}

func mebibytes(n int64) string { return strconv.FormatInt((n+1<<19)>>20, 10) + " MiB" }

// The products of the bounds, for the settings and the memory of the stack that is
// shipped. `go test ./internal/app -run TestTheProductsOfTheLimits -update` writes them
// into the page.
func TestTheProductsOfTheLimits(t *testing.T) {
	const page, from, to = "../../docs/limits.md", "<!-- products -->\n", "<!-- end of products -->\n"
	c, err := config.Load()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../deploy/compose/docker-compose.prod.yml")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`GOMEMLIMIT: \$\{NODE_GOMEMLIMIT:-(\d+)MiB\}`).FindSubmatch(text)
	if found == nil {
		t.Fatal("no GOMEMLIMIT in the compose file")
	}
	limit, _ := strconv.ParseInt(string(found[1]), 10, 64)
	memory := limit << 20
	cases := worstCases(&c, memory)
	if all := cases[len(cases)-1]; all.memory > memory {
		t.Errorf("all together can take %s of %d MiB", mebibytes(all.memory), limit)
	}
	for _, w := range cases {
		if w.memory > memory {
			t.Errorf("%s can take %s of %d MiB", w.party, mebibytes(w.memory), limit)
		}
	}
	if len(planMemory(memory, c.HTTP.MaxConnections, c.HTTP.QueueTotalBytes).capped) > 0 {
		t.Errorf("the settings of the stack are more than its memory: %q", planMemory(memory, c.HTTP.MaxConnections, c.HTTP.QueueTotalBytes).capped)
	}
	doc, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(doc), from)
	now, after, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", page)
	}
	want := markdown(cases)
	if flag.Lookup("update").Value.String() == "true" { // of the other test package of this folder
		if err := os.WriteFile(page, []byte(before+from+want+to+after), 0o600); err != nil {
			t.Fatal(err)
		}
	} else if now != want {
		t.Errorf("%s differs:\n%s\nwant\n%s", page, now, want)
	}
}

// What is too much for the memory is capped, and named.
func TestSettingsAreCappedByTheMemory(t *testing.T) {
	c, err := config.Load()
	if err != nil {
		t.Fatal(err)
	}
	if p := planMemory(64<<30, c.HTTP.MaxConnections, c.HTTP.QueueTotalBytes); len(p.capped) > 0 || p.connections != c.HTTP.MaxConnections || p.queues != 64<<30/5 {
		t.Errorf("with 64 GiB: %+v", p)
	}
	if p := planMemory(0, c.HTTP.MaxConnections, c.HTTP.QueueTotalBytes); p.limit != assumedMemory || len(p.capped) > 0 {
		t.Errorf("with an unknown memory: %+v", p)
	}
	c.HTTP.QueueTotalBytes = 300 << 20
	p := planMemory(512<<20, c.HTTP.MaxConnections, c.HTTP.QueueTotalBytes)
	if sum := processBytes + p.queues + p.pending + p.hub + int64(p.connections)*connectionBytes; sum > p.limit || sum < p.limit-connectionBytes {
		t.Errorf("%d of %d bytes are planned", sum, p.limit)
	}
	if p.queues != 256<<20 || len(p.capped) != 2 || !strings.Contains(p.capped[0], "QUEUE_TOTAL_BYTES=314572800") || !strings.Contains(p.capped[1], "MAX_CONNECTIONS=15000") {
		t.Errorf("with 512 MiB: %+v", p)
	}
}

// With less memory than the settings need the log says so, and STRICT_SETTINGS refuses to
// start.
func TestTooLittleMemoryIsNamed(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(64 << 20))
	c, err := config.Load()
	if err != nil {
		t.Fatal(err)
	}
	logs := new(testkit.Logs)
	a := &App{opt: Options{Config: c}, lifecycle: lifecycle{log: logs.Logger()}}
	if err := a.planMemory(t.Context()); err != nil || logs.Count("MAX_CONNECTIONS=15000") != 1 || a.memory.connections != leastConnections {
		t.Errorf("with 64 MiB: %v, %d connections, %s", err, a.memory.connections, logs)
	}
	a.opt.Config.Settings.Strict = true
	if err := a.planMemory(t.Context()); err == nil || !strings.Contains(err.Error(), "MAX_CONNECTIONS=15000") || !strings.Contains(err.Error(), "STRICT_SETTINGS") {
		t.Errorf("with STRICT_SETTINGS: %v", err)
	}
}
