package checks

import (
	"math"
	"time"
)

// A bound says beyond which values a finding is a warning or a failure. If fail is
// less than warn, smaller values are worse. A value at a bound is not beyond it.
type bound struct{ warn, fail float64 }

var never = math.Inf(1)

// The bounds. docs/monitoring.md lists them, and the alert rules in
// monitoring/prometheus/rules have the same (TestTheAlertRulesHaveTheBounds).
var (
	// Days until it expires. Traefik renews 30 days before: with 14 left it has failed
	// for two weeks. 3 days are a weekend, in which nobody may be there.
	certificateBound = bound{14, 3}
	// Used share of a disk. A full one stops PostgreSQL, and 5% can fill within hours.
	diskBound = bound{0.85, 0.95}
	// Used share of the host's memory, and of a node's limit. At the limit the kernel
	// kills, and a catch-up of many clients at once takes some percent.
	memoryBound = bound{0.90, 0.95}
	// Used share of the memory of Redis and the connections of PostgreSQL. At these limits
	// clients get errors at once.
	limitBound = bound{0.85, 0.95}
	// Seconds that the standby is behind. The nodes' canaries write each second, so 30 s
	// is no pause between writes. Five minutes it does not catch up by itself.
	standbyBound = bound{30, 300}
	// Of processes per core: some wait; three times as many as can run.
	loadBound = bound{1, 3}
	// Seconds: log lines get out of order; tokens are refused.
	clockBound = bound{0.1, 1}
	// Seconds, the p99 of many hours: the objective of a delivery; users notice.
	nightLatencyBound = bound{0.1, 1}
	// Errors: warn on any, fail on so many that it was no single fault.
	serverErrorsBound = bound{0, 1000}
	// The bad network of some clients is normal, and so are repairs after a restart.
	slowClientsBound = bound{100, never}
	repairsBound     = bound{10_000, never}
	// Seconds: a restart of Redis takes less; presence was wrong for long.
	brokerDownBound = bound{5, 600}
	anyBound        = bound{0, never}
	unbounded       = bound{never, never}
)

// The failure bounds of ages of backups: a backup a day and two hours for its run, a
// verification a week and a day, and a WAL segment each minute (archive_timeout).
const (
	MaxBackupAge       = 26 * time.Hour
	MaxVerificationAge = 8 * 24 * time.Hour
	MaxWALAge          = 10 * time.Minute
)

// Bounds that only a deploy has.
const (
	// A new image, its logs and the state of a deploy take up to 2 GiB of a disk.
	minDiskFree = uint64(2 << 30)
	// A second color needs as much memory as the first one, a fifth more for the clients
	// that reconnect, and a reserve.
	secondColorReserve = int64(256 << 20)
	// Errors of this span count as present ones.
	recentErrorsSpan = 5 * time.Minute
	// Docker stops a container this much after a drain had to end.
	stopReserve = 30 * time.Second
	// Files that a process opens beside those of its clients.
	openFilesReserve = 1024
)

func (b bound) level(v float64) Level {
	beyond := func(limit float64) bool {
		if b.fail < b.warn {
			return v < limit
		}
		return v > limit
	}
	switch {
	case beyond(b.fail):
		return Fail
	case beyond(b.warn):
		return Warn
	}
	return OK
}
