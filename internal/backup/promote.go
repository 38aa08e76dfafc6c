package backup

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// A PromoteRequest has the options of a promotion.
type PromoteRequest struct {
	// StopPrimary allows the command to stop a primary that still answers. Then nothing
	// is lost.
	StopPrimary bool
}

// A PromoteResult is the outcome of a promotion.
type PromoteResult struct {
	// Service is the new primary, Former the former one.
	Service, Former string
	// Graceful says that the former primary was shut down cleanly, and that the
	// standby has its last checkpoint: nothing is lost.
	Graceful bool
	// ReplayedTo is the last position that the standby had replayed, and LastCommit
	// the time of its last transaction. Messages that were committed on the former
	// primary after that are lost, and clients learn of it from the new epoch.
	ReplayedTo LSN
	LastCommit time.Time
	Log        LogStats
	// Took is the time from the call until the new primary accepted writes.
	Took time.Duration
}

// ErrPrimaryAnswers says that the primary still answers, so a promotion could leave
// two servers that accept writes.
var ErrPrimaryAnswers = errors.New("it answers: promote-replica --stop-primary stops it first, and loses nothing")

// Promote makes the standby the primary. A promotion that was interrupted anywhere
// can be run again.
func (repo *Repository) Promote(ctx context.Context, q PromoteRequest) (*PromoteResult, error) {
	release, err := repo.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	began := time.Now()
	former, err := repo.ServiceManager.Primary()
	if err != nil {
		return nil, err
	}
	p := &promotion{PromoteResult: &PromoteResult{Former: former, Service: otherPostgres(former)}}
	// The new primary is recorded before it is promoted: if the record names a server
	// that is still in recovery, a promotion was interrupted in between.
	if s, err := repo.standbyStatus(ctx, former); err == nil && s.recovering {
		p.Former, p.Service = p.Service, p.Former
		repo.Logger.Info("continuing an interrupted promotion", "service", p.Service)
	}
	if err := repo.checkPromotable(ctx, p, q); err != nil {
		return nil, err
	}
	if err := repo.fence(ctx, p); err != nil {
		return nil, err
	}
	if err := repo.promoteStandby(ctx, p); err != nil {
		return nil, err
	}
	p.Took = time.Since(began)
	run := runOn(repo.Runner, p.Service)
	if p.Log, err = readLogStats(ctx, run); err != nil {
		return nil, err
	}
	findings, err := checkRooms(ctx, run)
	if err == nil && len(findings) > 0 {
		err = &LogIntegrityError{findings}
	}
	return p.PromoteResult, err
}

// A promotion is the state of a running promotion.
type promotion struct {
	*PromoteResult
	// primaryAnswered says that the former primary answered before it was stopped.
	primaryAnswered bool
}

const sqlStandby = `SELECT pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn()::text, ''), coalesce(pg_last_wal_receive_lsn()::text, ''),
 coalesce(to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '')`

// standbyStatus is how far a server has replayed and received the WAL.
type standbyStatus struct {
	recovering bool
	replayed   LSN
	received   LSN
	lastCommit time.Time
}

// standbyStatus queries a server for its status.
func (repo *Repository) standbyStatus(ctx context.Context, service string) (s standbyStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	answer, err := output(ctx, runOn(repo.Runner, service), "psql", "-XAt", "-F", "\x1f", "-c", sqlStandby)
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

// checkPromotable returns an error if the standby can't be promoted, or must not be
// because the primary answers. It changes nothing.
func (repo *Repository) checkPromotable(ctx context.Context, p *promotion, q PromoteRequest) error {
	s, err := repo.standbyStatus(ctx, p.Service)
	if err != nil {
		return fmt.Errorf("the standby %s can't be promoted: %w", p.Service, err)
	}
	if !s.recovering {
		repo.Logger.Info("the standby is promoted already: continuing from there", "service", p.Service)
		return nil
	}
	now, err := repo.standbyStatus(ctx, p.Former)
	if err != nil {
		return nil //nolint:nilerr // a primary that does not answer is the reason for a promotion
	}
	if now.recovering {
		return fmt.Errorf("%s is in recovery, too: there is no primary that a standby could take over from; use restore", p.Former)
	}
	if !q.StopPrimary {
		return fmt.Errorf("%s: %w", p.Former, ErrPrimaryAnswers)
	}
	p.primaryAnswered = true
	return nil
}

// fence stops the former primary, so that it can't start again by itself, and waits
// until the standby has replayed its WAL. A primary that was alive sends the rest of
// its WAL before it ends.
func (repo *Repository) fence(ctx context.Context, p *promotion) error {
	var last LSN
	if p.primaryAnswered {
		answer, err := output(ctx, runOn(repo.Runner, p.Former), "psql", "-XAtc", "SELECT pg_current_wal_flush_lsn()")
		if err != nil {
			return err
		}
		if last, err = ParseLSN(answer); err != nil {
			return err
		}
	}
	repo.Logger.Info("stopping", "services", p.Former)
	if err := repo.ServiceManager.Stop(ctx, p.Former); err != nil {
		return fmt.Errorf("nothing was promoted: %w", err)
	}
	if !p.primaryAnswered {
		return repo.waitReplayed(ctx, p, last)
	}
	// The primary accepted writes until it was stopped: only now is the end of its WAL
	// known.
	end, err := repo.lastCheckpoint(ctx, p.Former)
	if err != nil {
		repo.Logger.Warn("it is unknown whether the former primary had sent all of its WAL", "service", p.Former, "error", err)
		return repo.waitReplayed(ctx, p, last)
	}
	// A position past the record's first byte means that the record is replayed.
	if err := repo.waitReplayed(ctx, p, max(last, end+1)); err != nil {
		return err
	}
	p.Graceful = p.ReplayedTo > end
	return nil
}

var (
	shutDown   = regexp.MustCompile(`(?m)^Database cluster state: +shut down$`)
	checkpoint = regexp.MustCompile(`(?m)^Latest checkpoint location: +(\S+)$`)
)

// lastCheckpoint returns the position of the checkpoint with which the recorded
// primary was shut down. It is the last record of its WAL.
func (repo *Repository) lastCheckpoint(ctx context.Context, service string) (lsn LSN, err error) {
	ctx, cancel := context.WithTimeout(ctx, shortLimit)
	defer cancel()
	if primary, err := repo.ServiceManager.Primary(); err != nil || primary != service {
		return 0, errors.Join(err, fmt.Errorf("can't read the disk of %s: the recorded primary is %s", service, primary))
	}
	server, err := repo.Runner.ScratchServer(ctx, false)
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
		return 0, errors.New("it was not shut down cleanly")
	}
	return ParseLSN(m[1])
}

// replayTimeout bounds the replay of what the standby has received.
const replayTimeout = 5 * time.Minute

// waitReplayed waits until the standby has replayed what it received, and the WAL up
// to last.
func (repo *Repository) waitReplayed(ctx context.Context, p *promotion, last LSN) error {
	ctx, cancel := context.WithTimeoutCause(ctx, replayTimeout, fmt.Errorf("%s did not replay what it received within %v", p.Service, replayTimeout))
	defer cancel()
	for {
		s, err := repo.standbyStatus(ctx, p.Service)
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

// promoteStandby records the standby as the primary, and promotes it. The record
// comes first: a primary that is not recorded would not start again.
func (repo *Repository) promoteStandby(ctx context.Context, p *promotion) error {
	if err := repo.ServiceManager.SetPrimary(p.Service); err != nil {
		return err
	}
	s, err := repo.standbyStatus(ctx, p.Service)
	if err != nil || !s.recovering {
		return err
	}
	repo.Logger.Info("promoting", "service", p.Service, "replayed_to", s.replayed.String())
	answer, err := output(ctx, runOn(repo.Runner, p.Service), "psql", "-XAtc", "SELECT pg_promote(true, 120)")
	if err != nil {
		return err
	}
	if answer != "t" {
		return fmt.Errorf("%s was not promoted within 120 s: run the command again", p.Service)
	}
	return nil
}
