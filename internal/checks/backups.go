package checks

import (
	"context"
	"fmt"
	"time"
)

// backups checks the backups in their folder.
func backups(_ context.Context, f *Facts) []Finding {
	if f.Backups == nil {
		return found(Fail, "folder", "BACKUP_DIR is unknown")
	}
	state, err := f.Backups.Status()
	if err != nil {
		return found(Fail, "folder", "%v", err)
	}
	var findings []Finding
	for _, err := range state.Damaged {
		findings = append(findings, Finding{Fail, "damaged", err.Error()})
	}
	var finished, verified time.Time
	if n := state.Newest(); n != nil {
		finished = n.Finished
	}
	if _, p := state.LastVerified(); p != nil {
		verified = p.Verified
	}
	for _, c := range []struct {
		subject   string
		at        time.Time
		limit     time.Duration
		ifMissing string
	}{
		{"newest backup", finished, f.MaxBackupAge, "there is none: run switchyard backup"},
		{"last verification", verified, f.MaxProofAge, "no backup has been verified yet: run switchyard backup verify"},
		{"newest WAL segment", state.NewestWAL, f.MaxWALAge, "the archive is empty"},
	} {
		switch age := f.now().Sub(c.at); {
		case c.at.IsZero():
			findings = append(findings, Finding{Fail, c.subject, c.ifMissing})
		case age > c.limit:
			findings = append(findings, Finding{Fail, c.subject, fmt.Sprintf("is %s old, over the limit of %s", formatAge(age), formatAge(c.limit))})
		default:
			findings = append(findings, Finding{OK, c.subject, fmt.Sprintf("is %s old", formatAge(age))})
		}
	}
	return findings
}

// formatAge prints an age for people.
func formatAge(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 72*time.Hour:
		return fmt.Sprintf("%.1f h", d.Hours())
	}
	return fmt.Sprintf("%.1f d", d.Hours()/24)
}

// verifiedBackup checks that a backup was verified recently, as Prometheus knows it: the
// folder of the backups may be on another host.
func verifiedBackup(ctx context.Context, f *Facts) []Finding {
	if f.Prometheus == nil {
		return Failed(f.PrometheusErr)
	}
	at, _, err := f.Prometheus.QueryValue(ctx, `max(switchyard_backup_last_verified_timestamp_seconds)`, f.now())
	if err != nil {
		return Failed(err)
	}
	if at == 0 {
		return Failf("no backup has been verified yet: `switchyard backup` makes one, `switchyard backup verify` verifies it; Prometheus sees it within half a minute")
	}
	age := f.now().Sub(time.Unix(int64(at), 0)).Round(time.Minute)
	if age > MaxVerificationAge {
		return Failf("the last backup was verified %v ago, over %v", age, MaxVerificationAge)
	}
	return Okf("verified %v ago", age)
}
