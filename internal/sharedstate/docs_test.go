package sharedstate

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/testkit"
)

// sharedStateDoc returns docs/shared-state.md.
func sharedStateDoc(t *testing.T) string {
	t.Helper()
	return string(testkit.ReadFile(t, "../../docs/shared-state.md"))
}

// The page lists every metric with each value of its label, and no other.
func TestTheDocsListEveryMetric(t *testing.T) {
	reg := prometheus.NewRegistry()
	newMetrics(reg)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(sharedStateDoc(t), "## Metrics")
	table, _, _ := strings.Cut(rest, "\n## ")
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
		for _, m := range f.GetMetric() {
			for _, label := range m.GetLabel() {
				line := regexp.MustCompile("(?m)^.*`" + f.GetName() + "\\{" + label.GetName() + "\\}`.*$").FindString(table)
				if !slices.Contains(regexp.MustCompile(`\w+`).FindAllString(line, -1), label.GetValue()) {
					t.Errorf("the page does not say that %s has %s=%s", f.GetName(), label.GetName(), label.GetValue())
				}
			}
		}
	}
	for _, found := range regexp.MustCompile("`((?:session|presence|limits)_\\w+)").FindAllStringSubmatch(table, -1) {
		if !slices.Contains(names, found[1]) {
			t.Errorf("the page lists %s, which does not exist", found[1])
		}
	}
	for _, name := range names {
		if !strings.Contains(table, "`"+name) {
			t.Errorf("%s is not on the page", name)
		}
	}
}

// The page lists exactly the rights that a node is tested with.
func TestTheDocsListTheRedisCommands(t *testing.T) {
	var onPage []string
	for _, right := range regexp.MustCompile(`(?m)^    \+.*$`).FindAllString(sharedStateDoc(t), -1) {
		onPage = append(onPage, strings.Fields(right)...)
	}
	tested := slices.Clone(aclCommands)
	slices.Sort(onPage)
	slices.Sort(tested)
	if !slices.Equal(onPage, tested) {
		t.Errorf("on the page:\n%v\ntested:\n%v", onPage, tested)
	}
}

// The bounds on the page are those of the code.
func TestTheDocsStateTheBounds(t *testing.T) {
	text := sharedStateDoc(t)
	for what, ok := range map[string]bool{
		"bounded by 500 ms":           callTimeout.Milliseconds() == 500,
		"over 256 KiB":                maxRecord == 256<<10,
		"100,000 sessions and 64 MiB": maxMemorySessions == 100_000 && maxMemoryBytes == 64<<20,
		"silent for 5 s":              nodeExpiry.Seconds() == 5,
		"after another 10 s":          sweepAfter.Seconds() == 10,
		"rooms for 3 s":               DefaultLeaveGrace.Seconds() == 3,
		"at most 20,000 users":        maxBans == 20_000,
		"at most 30 days":             maxBanDuration.Hours() == 30*24,
		"at most a minute":            maxDebt.Minutes() == 1,
		"Four times a second":         syncInterval.Milliseconds() == 250,
		"At most 200,000 users":       maxBuckets == 200_000,
		"one of 16 shards":            shardCount == 16,
	} {
		if !strings.Contains(strings.ReplaceAll(text, "\n", " "), what) || !ok {
			t.Errorf("%q: on the page %v, in the code %v", what, strings.Contains(text, what), ok)
		}
	}
}

// The head comment of every script says what it does with which keys.
func TestEveryLuaScriptIsDocumented(t *testing.T) {
	files, err := luaFiles.ReadDir("lua")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := luaFiles.ReadFile("lua/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(string(b), "\nlocal ")
		if !strings.HasPrefix(head, "-- ") || !strings.Contains(head, "KEYS") {
			t.Errorf("%s does not say what it does with which keys", f.Name())
		}
	}
}
