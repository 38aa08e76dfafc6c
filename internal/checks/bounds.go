package checks

import (
	"math"
	"time"
)

// The bounds. A value beyond one gets its level, a value at the bound does not.
// docs/monitoring.md lists them, and the alert rules in monitoring/prometheus/rules have
// the same (TestTheAlertRulesHaveTheBounds).
const (
	// Traefik renews a certificate 30 days before its end: with 14 days left it has
	// failed for two weeks. 3 days are a weekend, in which nobody may be there.
	CertificateWarn = 14 * 24 * time.Hour
	CertificateFail = 3 * 24 * time.Hour

	// Shares of a disk that are free. A full disk stops PostgreSQL, and less than 5%
	// fill within hours.
	DiskFreeWarn = 0.15
	DiskFreeFail = 0.05
	// A new image, its logs and the state of a deploy take up to 2 GiB.
	MinDiskFree = uint64(2 << 30)

	// Used shares of the host's memory, and of a node's limit. At the limit the kernel
	// kills, and a catch-up of many clients at once takes some percent.
	MemoryWarn = 0.90
	MemoryFail = 0.95
	// A second color needs as much memory as the first one, a fifth more for the
	// clients that reconnect, and a reserve.
	secondColorReserve = int64(256 << 20)

	// Used shares of limits at which clients get errors at once: the memory of Redis, the
	// connections of PostgreSQL. Unlike memory they do not come back by themselves.
	LimitWarn = 0.85
	LimitFail = 0.95

	// How far the standby is behind. The nodes' canaries write each second, so 30 s is no
	// pause between writes. Five minutes it does not catch up by itself.
	StandbyLagWarn = 30 * time.Second
	StandbyLagFail = 5 * time.Minute

	// Ages of backups: a backup a day and two hours for its run, a verification a week
	// and a day, and WAL segments, of which archive_timeout makes one a minute.
	MaxBackupAge       = 26 * time.Hour
	MaxVerificationAge = 8 * 24 * time.Hour
	MaxWALAge          = 10 * time.Minute

	// Of this span are the errors that count as present ones.
	recentErrorsSpan = 5 * time.Minute
	// Docker stops a container this much after a drain had to end.
	stopReserve = 30 * time.Second
	// Files that a process opens beside those of its clients.
	openFilesReserve = 1024
)

// A bound says beyond which values a finding is a warning or a failure. If fail is
// less than warn, smaller values are worse.
type bound struct{ warn, fail float64 }

var never = math.Inf(1)

var (
	unbounded         = bound{never, never}
	certificateBound  = bound{CertificateWarn.Hours() / 24, CertificateFail.Hours() / 24}
	diskBound         = bound{1 - DiskFreeWarn, 1 - DiskFreeFail}
	memoryBound       = bound{MemoryWarn, MemoryFail}
	limitBound        = bound{LimitWarn, LimitFail}
	standbyBound      = bound{StandbyLagWarn.Seconds(), StandbyLagFail.Seconds()}
	loadBound         = bound{1, 3}       // of a core: processes wait; three times as many as can run
	clockBound        = bound{0.1, 1}     // seconds: log lines get out of order; tokens are refused early
	nightLatencyBound = bound{0.1, 1}     // seconds, p99 of many hours: the objective of a delivery; users notice
	serverErrorsBound = bound{0, 1000}    // any; so many that it was no single fault
	slowClientsBound  = bound{100, never} // a bad network of some clients is normal
	repairsBound      = bound{10_000, never}
	brokerDownBound   = bound{5, 600} // seconds: a restart of Redis takes less; nobody had presence
	anyBound          = bound{0, never}
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
