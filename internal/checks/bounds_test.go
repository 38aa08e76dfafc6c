package checks

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"switchyard/internal/testkit"
)

// A value at a bound is fine, one beyond it is not.
func TestAValueBeyondABoundGetsItsLevel(t *testing.T) {
	high, low := bound{0.8, 0.9}, bound{14, 3}
	for _, tt := range []struct {
		bound bound
		value float64
		want  Level
	}{
		{high, 0.8, OK}, {high, 0.81, Warn}, {high, 0.9, Warn}, {high, 0.91, Fail},
		{low, 14, OK}, {low, 13.9, Warn}, {low, 3, Warn}, {low, 2.9, Fail},
		{unbounded, 1e9, OK}, {anyBound, 0, OK}, {anyBound, 1, Warn}, {anyBound, 1e9, Warn},
	} {
		if got := tt.bound.level(tt.value); got != tt.want {
			t.Errorf("%v at %v: %d, want %d", tt.bound, tt.value, got, tt.want)
		}
	}
}

// A summary has the findings of the worst level, each once, whatever comes after them.
func TestTheWorstFindingsAreTheSummary(t *testing.T) {
	level, text := Summarize([]Finding{{OK, "", "fine"}, {Fail, "redis", "is down"}, {Fail, "redis", "is down"}, {Fail, "", "full"}, {Warn, "", "slow"}})
	if level != Fail || text != "redis is down, full" {
		t.Errorf("%d, %q", level, text)
	}
}

// The bounds of each measurement, as docs/monitoring.md has them. never and never: it
// only informs.
func TestEachMeasurementHasItsBounds(t *testing.T) {
	want := map[string]bound{
		"memory of the host": {0.9, 0.95}, "fullest disk": {0.85, 0.95}, "load per core": {1, 3}, "memory of the fullest node": {0.9, 0.95}, "clock error": {0.1, 1},
		"certificate expires in, days": {14, 3}, "replication lag, seconds": {30, 300}, "memory of Redis": {0.85, 0.95}, "connections of PostgreSQL": {0.85, 0.95},
		"most connections at once": {never, never}, "published": {never, never}, "sent to clients": {never, never}, "ack, p99": {0.1, 1}, "delivery, p99": {0.1, 1},
		"server errors": {0, 1000}, "clients closed as slow": {100, never}, "gap repairs": {10_000, never}, "seconds without the broker": {5, 600},
		"restarts of nodes": {0, never}, "alerts that fired": {0, never},
	}
	measurements := slices.Concat(systemMeasurements, nightMeasurements)
	for _, m := range measurements {
		if w, known := want[m.name]; !known || m.bound != w {
			t.Errorf("%s has %v, want %v", m.name, m.bound, w)
		}
	}
	if len(measurements) != len(want) {
		t.Errorf("%d measurements, want %d", len(measurements), len(want))
	}
}

// The other bounds, as the documents have them.
func TestTheConstantsAreThoseOfTheDocuments(t *testing.T) {
	for _, tt := range []struct {
		name      string
		got, want any
	}{
		{"minDiskFree", minDiskFree, uint64(2 << 30)}, {"secondColorReserve", secondColorReserve, int64(256 << 20)},
		{"MaxBackupAge", MaxBackupAge, 26 * time.Hour}, {"MaxVerificationAge", MaxVerificationAge, 192 * time.Hour}, {"MaxWALAge", MaxWALAge, 10 * time.Minute},
		{"recentErrorsSpan", recentErrorsSpan, 5 * time.Minute}, {"stopReserve", stopReserve, 30 * time.Second}, {"openFilesReserve", openFilesReserve, 1024},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is %v, want %v", tt.name, tt.got, tt.want)
		}
	}
}

// The alert rules have the bounds of the checks. A warning fires beyond warn, a critical
// alert beyond fail. Backups have one bound: no user is harmed that night, so their alerts
// are warnings.
func TestTheAlertRulesHaveTheBounds(t *testing.T) {
	want := map[string]float64{
		"CertificateExpiry warning": -certificateBound.warn * 86400, "CertificateExpiry critical": -certificateBound.fail * 86400,
		"DiskSpaceLow warning": diskBound.warn - 1, "DiskSpaceLow critical": diskBound.fail - 1,
		"HighMemoryUsage warning": memoryBound.warn, "ContainerMemory warning": memoryBound.warn,
		"RedisMemory warning": limitBound.warn, "PostgresConnections warning": limitBound.warn,
		"StandbyBehind warning": standbyBound.warn,
		"BackupTooOld warning":  MaxBackupAge.Seconds(), "BackupUnverified warning": MaxVerificationAge.Seconds(), "WalArchiveFailing warning": MaxWALAge.Seconds(),
	}
	// The last comparison with a number other than 0, such as "< 14 * 86400".
	comparison := regexp.MustCompile(`([<>]) ((?:[\d.]+ \* )?[\d.]+)(?:\s|$)`)
	paths, err := filepath.Glob("../../monitoring/prometheus/rules/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		var file struct {
			Groups []struct {
				Rules []struct {
					Alert, Expr string
					Labels      map[string]string
				}
			}
		}
		if err := yaml.Unmarshal(testkit.ReadFile(t, path), &file); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, g := range file.Groups {
			for _, r := range g.Rules {
				name := r.Alert + " " + r.Labels["severity"]
				limit, known := want[name]
				if !known {
					continue
				}
				delete(want, name)
				sign, got := 1.0, 0.0
				for _, m := range comparison.FindAllStringSubmatch(r.Expr, -1) {
					product := 1.0
					for factor := range strings.SplitSeq(m[2], " * ") {
						n, err := strconv.ParseFloat(factor, 64)
						if err != nil {
							t.Fatalf("%s: %v", name, err)
						}
						product *= n
					}
					if product != 0 {
						got, sign = product, map[string]float64{"<": -1, ">": 1}[m[1]]
					}
				}
				if math.Abs(sign*got-limit) > 1e-9 {
					t.Errorf("%s fires beyond %v, the checks' bound is %v (negative: less is worse): %s", name, sign*got, limit, r.Expr)
				}
			}
		}
	}
	for name := range want {
		t.Errorf("there is no alert %s", name)
	}
}

// docs/monitoring.md has a row for each bound that checks and alert rules share.
func TestTheBoundsAreDocumented(t *testing.T) {
	page := string(testkit.ReadFile(t, "../../docs/monitoring.md"))
	days := func(d time.Duration) string { return fmt.Sprintf("%.0f days", d.Hours()/24) }
	percent := func(share float64) string { return fmt.Sprintf("%.0f%%", 100*share) }
	for _, row := range [][2]string{
		{fmt.Sprintf("%.0f days", certificateBound.warn), fmt.Sprintf("%.0f days", certificateBound.fail)}, {percent(1 - diskBound.warn), percent(1 - diskBound.fail)},
		{percent(memoryBound.warn), percent(memoryBound.fail)}, {percent(limitBound.warn), percent(limitBound.fail)},
		{fmt.Sprintf("%.0f s", standbyBound.warn), fmt.Sprintf("%.0f min", standbyBound.fail/60)},
		{"–", fmt.Sprintf("%.0f hours", MaxBackupAge.Hours())}, {"–", days(MaxVerificationAge)}, {"–", fmt.Sprintf("%.0f min", MaxWALAge.Minutes())},
	} {
		if cells := " | " + row[0] + " | " + row[1] + " |"; !strings.Contains(page, cells) {
			t.Errorf("docs/monitoring.md has no row with%s", cells)
		}
	}
}
