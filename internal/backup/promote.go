package backup

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// A PromoteRequest says what a promotion may do.
type PromoteRequest struct {
	// StopPrimary is the explicit word to take a primary that still answers out of
	// service first; nothing is lost then.
	StopPrimary bool
}

// A PromoteResult says what a promotion did, and what it cost.
type PromoteResult struct {
	// Service takes writes from now on; Former did.
	Service, Former string
	// Graceful says that the former primary was stopped in order, and that the
	// standby has the checkpoint with which it ended: nothing is lost.
	Graceful bool
	// ReplayedTo is the last position that the standby had, and LastCommit when
	// the last transaction before it was committed. What the former primary acked
	// after that is lost, and declared by the new epoch.
	ReplayedTo LSN
	LastCommit time.Time
	Log        LogStats
	// Took is how long it took from the word to the first write.
	Took time.Duration
}

// ErrPrimaryAnswers refuses a promotion while the primary answers: two of them
// would each take writes that the other lacks.
var ErrPrimaryAnswers = errors.New("it answers: promote-replica --stop-primary stops it first, and loses nothing")

// Promote makes the standby the primary. It may be run again after it was cut
// short anywhere.
func (v *Repository) Promote(ctx context.Context, q PromoteRequest) (*PromoteResult, error) {
	release, err := v.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	began := time.Now()
	former, err := v.ServiceManager.Primary()
	if err != nil {
		return nil, err
	}
	p := &promotion{PromoteResult: &PromoteResult{Former: former, Service: otherPostgres(former)}}
	// The record is made first: where it names one that still follows, a promotion
	// was cut short behind it.
	if s, err := v.standbyStatus(ctx, former); err == nil && s.recovering {
		p.Former, p.Service = p.Service, p.Former
		v.Logger.Info("going on with a promotion that was cut short", "service", p.Service)
	}
	if err := v.checkPromotable(ctx, p, q); err != nil {
		return nil, err
	}
	if err := v.fence(ctx, p); err != nil {
		return nil, err
	}
	if err := v.promoteStandby(ctx, p); err != nil {
		return nil, err
	}
	p.Took = time.Since(began)
	run := runOn(v.Runner, p.Service)
	if p.Log, err = readLogStats(ctx, run); err != nil {
		return nil, err
	}
	findings, err := checkRooms(ctx, run)
	if err == nil && len(findings) > 0 {
		err = &LogIntegrityError{findings}
	}
	return p.PromoteResult, err
}

// A promotion is one under way.
type promotion struct {
	*PromoteResult
	// answered says that the former primary did, before it was stopped.
	primaryAnswered bool
}

const sqlStandby = `SELECT pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn()::text, ''), coalesce(pg_last_wal_receive_lsn()::text, ''),
 coalesce(to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '')`

type standbyStatus struct {
	recovering bool
	replayed   LSN
	received   LSN
	lastCommit time.Time
}

func (v *Repository) standbyStatus(ctx context.Context, service string) (s standbyStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	answer, err := output(ctx, runOn(v.Runner, service), "psql", "-XAt", "-F", "\x1f", "-c", sqlStandby)
	if err != nil {
		return s, err
	}
	f := strings.Split(answer, "\x1f")
	if len(f) != 4 {
		return s, fmt.Errorf("psql answered %q", answer)
	}
	s.recovering = f[0] == "t"
	if f[1] != "" {
		if s.replayed, err = ParseLSN(f[1]); err != nil {
			return s, err
		}
	}
	if f[2] != "" {
		if s.received, err = ParseLSN(f[2]); err != nil {
			return s, err
		}
	}
	if f[3] != "" {
		s.lastCommit, err = time.Parse(time.RFC3339Nano, f[3])
	}
	return s, err
}

// checkPromotable looks before anything is done.
func (v *Repository) checkPromotable(ctx context.Context, p *promotion, q PromoteRequest) error {
	s, err := v.standbyStatus(ctx, p.Service)
	if err != nil {
		return fmt.Errorf("the standby %s can't be promoted: %w", p.Service, err)
	}
	if !s.recovering {
		v.Logger.Info("the standby was promoted before: going on from there", "service", p.Service)
		return nil
	}
	now, err := v.standbyStatus(ctx, p.Former)
	if err != nil {
		return nil //nolint:nilerr // it is gone: that is what this is for
	}
	if now.recovering {
		return fmt.Errorf("%s is in recovery too: there is no primary that a standby could take over from; restore brings one back", p.Former)
	}
	if !q.StopPrimary {
		return fmt.Errorf("%s: %w", p.Former, ErrPrimaryAnswers)
	}
	p.primaryAnswered = true
	return nil
}

// fence keeps the former primary from coming back by itself. One that was alive
// sends the rest of its WAL before it ends.
func (v *Repository) fence(ctx context.Context, p *promotion) error {
	var last LSN
	if p.primaryAnswered {
		answer, err := output(ctx, runOn(v.Runner, p.Former), "psql", "-XAtc", "SELECT pg_current_wal_flush_lsn()")
		if err != nil {
			return err
		}
		if last, err = ParseLSN(answer); err != nil {
			return err
		}
	}
	v.Logger.Info("stopping", "services", p.Former)
	if err := v.ServiceManager.Stop(ctx, p.Former); err != nil {
		return fmt.Errorf("nothing was promoted: %w", err)
	}
	if !p.primaryAnswered {
		return v.waitReplayed(ctx, p, last)
	}
	// It took writes until it was stopped: what it had in the end is known only now.
	end, err := v.lastCheckpoint(ctx, p.Former)
	if err != nil {
		v.Logger.Warn("whether the former primary had sent all is not known", "service", p.Former, "error", err)
		return v.waitReplayed(ctx, p, last)
	}
	if err := v.waitReplayed(ctx, p, max(last, end+1)); err != nil { // behind its first byte: the record is replayed
		return err
	}
	p.Graceful = p.ReplayedTo > end
	return nil
}

var (
	shutDown   = regexp.MustCompile(`(?m)^Database cluster state: +shut down$`)
	checkpoint = regexp.MustCompile(`(?m)^Latest checkpoint location: +(\S+)$`)
)

// lastCheckpoint returns where the checkpoint lies with which the primary on
// record was shut down: no record comes after it.
func (v *Repository) lastCheckpoint(ctx context.Context, service string) (lsn LSN, err error) {
	ctx, cancel := context.WithTimeout(ctx, shortLimit)
	defer cancel()
	if primary, err := v.ServiceManager.Primary(); err != nil || primary != service {
		return 0, errors.Join(err, fmt.Errorf("%s is on record, whose disk is another one", primary))
	}
	server, err := v.Runner.ScratchServer(ctx, false)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, server.Close(context.WithoutCancel(ctx))) }()
	controlData, err := output(ctx, server.Run, "env", "LC_ALL=C", "pg_controldata", server.Paths().LiveData)
	if err != nil {
		return 0, err
	}
	m := checkpoint.FindStringSubmatch(controlData)
	if m == nil || !shutDown.MatchString(controlData) {
		return 0, errors.New("it was not shut down in order")
	}
	return ParseLSN(m[1])
}

// replayTimeout bounds the replay of what the standby has received.
const replayTimeout = 5 * time.Minute

// waitReplayed waits until the standby has replayed what it received, and at least
// up to last.
func (v *Repository) waitReplayed(ctx context.Context, p *promotion, last LSN) error {
	ctx, cancel := context.WithTimeoutCause(ctx, replayTimeout, fmt.Errorf("%s did not replay what it received within %v", p.Service, replayTimeout))
	defer cancel()
	for {
		s, err := v.standbyStatus(ctx, p.Service)
		if err != nil {
			return err
		}
		if !s.recovering {
			return nil
		}
		p.ReplayedTo, p.LastCommit = s.replayed, s.lastCommit
		if s.replayed >= s.received && s.replayed >= last {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w: it is at %s of %s; nothing was promoted, and %s is stopped", context.Cause(ctx), s.replayed, max(s.received, last), p.Former)
		}
	}
}

// promoteStandby writes down who is the primary, and promotes it. In this order: a
// primary that is not on record would not start again.
func (v *Repository) promoteStandby(ctx context.Context, p *promotion) error {
	if err := v.ServiceManager.SetPrimary(p.Service); err != nil {
		return err
	}
	s, err := v.standbyStatus(ctx, p.Service)
	if err != nil || !s.recovering {
		return err
	}
	v.Logger.Info("promoting", "service", p.Service, "replayed_to", s.replayed.String())
	answer, err := output(ctx, runOn(v.Runner, p.Service), "psql", "-XAtc", "SELECT pg_promote(true, 120)")
	if err != nil {
		return err
	}
	if answer != "t" {
		return fmt.Errorf("%s was not promoted within 120 s: run this again", p.Service)
	}
	return nil
}
