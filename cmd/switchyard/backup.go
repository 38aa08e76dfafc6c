package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"switchyard/internal/backup"
)

// backupCommand returns `switchyard backup` with its subcommands.
func backupCommand() *cobra.Command {
	f := new(repositoryFlags)
	var noDump, verify bool
	c := &cobra.Command{
		Use:   "backup",
		Short: "make a backup of the stack, and remove old ones",
		Long: `Backup makes a base backup of PostgreSQL, a logical dump and a snapshot of Redis,
and packs configuration and certificates. Together with the archive of the
write-ahead log, which PostgreSQL fills by itself, the database can be restored to
any moment from now on. Nothing is stopped meanwhile.

It exits with 0 when the backup is complete on the disk, with 1 when it failed, and
with 2 when it could not begin.`,
		Example: `  switchyard backup --keep 7 --verify
  switchyard backup verify
  switchyard backup list`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.keep < 1 || f.keep > 10_000 {
				return fmt.Errorf("--keep must be 1 to 10000, not %d", f.keep)
			}
			v, err := f.open(c.Context(), c.ErrOrStderr())
			if err != nil {
				return err
			}
			s, err := v.Create(c.Context(), backup.Options{SkipDump: noDump})
			if err != nil {
				return printFailure(c, err)
			}
			fmt.Fprintf(c.OutOrStdout(), "Backup %s: %v, %d messages in %d rooms; restores to any moment from %s on.\n",
				s.Name, backup.Bytes(s.Size()), s.Log.Messages, s.Log.Rooms, s.Consistent.Format(time.RFC3339))
			if !verify {
				return nil
			}
			return verifyBackup(c, v, s.Name)
		},
	}
	f.add(c)
	c.Flags().IntVar(&f.keep, "keep", 7, "how many backups to keep, with the WAL from the oldest one on")
	c.Flags().BoolVar(&noDump, "no-dump", false, "leave out the logical dump")
	c.Flags().BoolVar(&verify, "verify", false, "verify the backup at once")
	c.AddCommand(backupVerifyCommand(f), backupListCommand(f), backupMetricsCommand(f))
	return c
}

// verifyBackup verifies a backup and prints what was proved.
func verifyBackup(c *cobra.Command, v *backup.Repository, name string) error {
	p, err := v.Verify(c.Context(), name)
	if err != nil {
		return printFailure(c, err)
	}
	fmt.Fprintf(c.OutOrStdout(), "Good: restored and replayed to %v (%d segments, last commit %s) in %s; %d messages in %d rooms without a hole, epoch %s.\n",
		p.ReplayedTo, p.Segments, orNone(p.LastCommit), p.Took, p.Log.Messages, p.Log.Rooms, p.Log.Epoch)
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func backupVerifyCommand(f *repositoryFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "verify [NAME]",
		Short: "restore a backup into a scratch server, and check every room",
		Long: `Verify restores a backup (the newest, unless one is named) into a scratch server
beside the live one, replays the whole WAL archive, and checks each room's
sequence, the counts and the epoch against each other and against those that the
backup recorded. The dump, the snapshot of Redis and the configuration are read to
their ends.

It exits with 0 when the backup is good, and with 1 when it is not. The error names
the damaged file or room.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			v, err := f.open(c.Context(), c.ErrOrStderr())
			if err != nil {
				return err
			}
			return verifyBackup(c, v, strings.Join(args, ""))
		},
	}
}

func backupListCommand(f *repositoryFlags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "list the backups, and how far the WAL archive reaches",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v, err := f.open(c.Context(), c.ErrOrStderr())
			if err != nil {
				return err
			}
			s, err := v.Status()
			if err != nil {
				return printFailure(c, err)
			}
			if err := printAs(c, asJSON, backupListing{s}); err != nil {
				return err
			}
			if len(s.Damaged) > 0 {
				return errFailed
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// A backupListing prints the state of a repository of backups.
type backupListing struct{ *backup.Status }

func (l backupListing) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	if len(l.Sets) > 0 {
		fmt.Fprintln(w, "NAME\tSIZE\tMESSAGES\tROOMS\tRESTORES FROM\tVERIFIED")
	}
	for _, s := range l.Sets {
		verified := "never"
		if s.VerifyResult != nil {
			verified = s.VerifyResult.Verified.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%v\t%d\t%d\t%s\t%s\n", s.Name, backup.Bytes(s.Size()), s.Log.Messages, s.Log.Rooms, s.Consistent.Format(time.RFC3339), verified)
	}
	_ = w.Flush()
	if len(l.Sets) == 0 {
		fmt.Fprintln(&b, "No backups.")
	}
	for _, err := range l.Damaged {
		fmt.Fprintf(&b, "Damaged: %v\n", err)
	}
	if l.Segments == 0 {
		fmt.Fprintln(&b, "The WAL archive is empty.")
	} else {
		fmt.Fprintf(&b, "WAL archive: %d segments, %v, the newest from %s.\n", l.Segments, backup.Bytes(l.WALSize), l.NewestWAL.Format(time.RFC3339))
	}
	return b.String()
}

// MarshalJSON implements json.Marshaler. Errors are printed as text.
func (l backupListing) MarshalJSON() ([]byte, error) {
	out := struct {
		Sets     []*backup.Set `json:"sets"`
		Damaged  []string      `json:"damaged"`
		Segments int           `json:"wal_segments"`
		WALSize  int64         `json:"wal_bytes"`
		Newest   time.Time     `json:"wal_newest,omitzero"`
	}{Sets: l.Sets, Segments: l.Segments, WALSize: l.WALSize, Newest: l.NewestWAL}
	for _, err := range l.Damaged {
		out.Damaged = append(out.Damaged, err.Error())
	}
	return json.Marshal(out)
}

func backupMetricsCommand(f *repositoryFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "write the age of backups, proofs and WAL for node_exporter",
		Long: `Metrics writes metrics/switchyard_backup.prom in the folder of the backups,
atomically, for node_exporter's textfile collector. Backup and verify write it,
too; a timer runs metrics in between, for the age of the archive.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v, err := f.open(c.Context(), c.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := v.WriteMetrics(); err != nil {
				return printFailure(c, err)
			}
			return nil
		},
	}
}

func restoreCommand() *cobra.Command {
	f := new(repositoryFlags)
	var q backup.RestoreRequest
	var to string
	var timeline int
	var noDatabase bool
	c := &cobra.Command{
		Use:   "restore --to TIME|latest",
		Short: "restore the stack to a moment",
		Long: `Restore brings the database back to a moment: it then has every message whose
transaction was committed before that moment, and no other. The database is rebuilt
from the newest backup before the moment and the WAL archive, and each room is
checked, before existing data is touched. Then service and database are stopped, the
data is swapped, and both are started. Clients receive a gap that says that their
positions are void.

An existing database is only replaced with the flag --replace. After an
interruption, run the same command again; while the data is being swapped, every
other restore is refused.

It exits with 0 when everything was restored, with 1 when it was not, and with 2
when it could not begin.`,
		Example: `  switchyard restore --to 2026-11-26T10:00:00Z
  switchyard restore --to latest --replace
  switchyard restore --to latest --configuration --redis --replace`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			when, err := parseRestoreTime(to)
			if err != nil {
				return err
			}
			if timeline < 0 {
				return fmt.Errorf("--timeline must be 1 or more, not %d", timeline)
			}
			q.To, q.Timeline, q.Database = when, uint32(timeline), !noDatabase
			if noDatabase && !q.Redis && !q.Configuration {
				return fmt.Errorf("--no-database leaves nothing to restore: add --configuration or --redis")
			}
			v, err := f.open(c.Context(), c.ErrOrStderr())
			if err != nil {
				return err
			}
			r, err := v.Restore(c.Context(), q)
			if err != nil {
				return printFailure(c, err)
			}
			printRestored(c.OutOrStdout(), r, q)
			return nil
		},
	}
	f.add(c)
	flags := c.Flags()
	flags.StringVar(&to, "to", "", "the moment, such as 2026-11-26T10:00:00Z, or latest: the end of the archive")
	flags.StringVar(&q.Set, "backup", "", "begin with this backup, not the newest before the moment")
	flags.IntVar(&timeline, "timeline", 0, "follow this timeline, where earlier restores made several; 0: the latest")
	flags.BoolVar(&q.Replace, "replace", false, "replace the existing database")
	flags.BoolVar(&q.Configuration, "configuration", false, "restore configuration and certificates, too; the replaced files are kept")
	flags.BoolVar(&q.Redis, "redis", false, "restore the snapshot of Redis, too: sessions and presence of that time")
	flags.BoolVar(&noDatabase, "no-database", false, "do not restore the database")
	return c
}

// parseRestoreTime reads --to.
func parseRestoreTime(s string) (time.Time, error) {
	if s == "latest" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() < 2000 {
		return t, fmt.Errorf("--to must be a moment with its zone, such as 2026-11-26T10:00:00Z, or latest, not %q", s)
	}
	return t, nil
}

// printRestored prints what was restored.
func printRestored(w io.Writer, r *backup.RestoreResult, q backup.RestoreRequest) {
	if q.Configuration {
		fmt.Fprintf(w, "Configuration: %d files differed from the backup %s", len(r.Configuration), r.Set.Name)
		if r.ReplacedArchive != "" {
			fmt.Fprintf(w, " and were restored; the replaced files are in %s", r.ReplacedArchive)
		}
		fmt.Fprintln(w, ".")
	}
	if q.Redis {
		fmt.Fprintf(w, "Redis: restored from the backup %s.\n", r.Set.Name)
	}
	if !q.Database {
		return
	}
	fmt.Fprintf(w, "Database: restored from %s; the last commit is from %s; %d messages in %d rooms without a hole; downtime %v.\n",
		r.Set.Name, orNone(r.LastCommit), r.Log.Messages, r.Log.Rooms, r.Downtime.Round(time.Millisecond))
	fmt.Fprintf(w, "Clients receive a gap (reason epoch). Make a backup now: switchyard backup --verify\n")
}

// promoteCommand returns `switchyard promote-replica`.
func promoteCommand() *cobra.Command {
	f := new(repositoryFlags)
	var q backup.PromoteRequest
	c := &cobra.Command{
		Use:   "promote-replica",
		Short: "make the standby of PostgreSQL the primary",
		Long: `Promote-replica makes the standby the primary when the primary is lost. It makes
sure that the primary does not start again by itself, waits until the standby has
replayed everything that it received, promotes it, and records the new roles. Nodes
find the new primary by themselves.

Messages that the primary acked and the standby had not received are lost; the epoch
changes, and clients receive a gap. With a synchronous standby nothing is lost
(SYNCHRONOUS_STANDBY_NAMES, DATABASE_TRUST_FAILOVER).

It may be run again after an interruption. It exits with 0 when the standby is the
primary, and with 1 when it is not.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v, err := f.open(c.Context(), c.ErrOrStderr())
			if err != nil {
				return err
			}
			p, err := v.Promote(c.Context(), q)
			if err != nil {
				return printFailure(c, err)
			}
			printPromoted(c.OutOrStdout(), p)
			return nil
		},
	}
	f.add(c)
	c.Flags().BoolVar(&q.StopPrimary, "stop-primary", false, "stop a primary that still answers first, so that nothing is lost")
	return c
}

// printPromoted prints the outcome of a promotion.
func printPromoted(w io.Writer, p *backup.PromoteResult) {
	fmt.Fprintf(w, "%s takes writes now, after %v; %d messages in %d rooms without a hole.\n", p.Service, p.Took.Round(time.Millisecond), p.Log.Messages, p.Log.Rooms)
	switch {
	case p.Graceful:
		fmt.Fprintf(w, "%s had sent everything to it: nothing is lost.\n", p.Former)
	case p.LastCommit.IsZero():
		fmt.Fprintf(w, "It had replayed up to %v.\n", p.ReplayedTo)
	default:
		fmt.Fprintf(w, "Its last commit is from %s (%v): messages that %s acked after that are lost, and clients receive a gap.\n",
			p.LastCommit.Format(time.RFC3339Nano), p.ReplayedTo, p.Former)
	}
	fmt.Fprintf(w, "Next: switchyard backup --verify; then remove the volume of %s and start it, so that it becomes a standby.\n", p.Former)
}
