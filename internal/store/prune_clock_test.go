package store

import (
	"fmt"
	"testing"
	"time"
)

// setClock sets the clock of the database forward, as an operator or NTP does.
func (f *fixture) setClock(n *node, by time.Duration) {
	f.t.Helper()
	if f.pg != nil {
		f.exec(fmt.Sprintf(`UPDATE public.clock SET ahead = ahead + interval '%d s'`, int(by.Seconds())))
		return
	}
	// The clock of this process can't be set: instead all that it showed is older.
	f.exec(fmt.Sprintf(`UPDATE message_ids SET at = at - %[1]d; UPDATE commits SET at = at - %[1]d; UPDATE messages SET at = at - %[1]d`, by.Microseconds()))
	for i := range n.clock().origins {
		n.clock().origins[i].at = n.clock().origins[i].at.Add(-by)
	}
}

// passTime lets time pass on all clocks.
func (f *fixture) passTime(n *node, d time.Duration) {
	f.t.Helper()
	f.setClock(n, d)
	n.clock().started = n.clock().started.Add(-d)
}

func (n *node) clock() *pruneClock {
	if p, ok := n.logUnderTest.(*Postgres); ok {
		return p.clock
	}
	return n.logUnderTest.(*SQLite).clock
}

// The clock of the database is set forward by an hour, or a standby takes over whose
// clock is ahead. Ids, the feed and messages are kept for as long as promised.
func TestAClockThatIsSetForwardMakesNothingOld(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		if f.pg != nil { // before PostgreSQL's own
			f.pg.Exec(`CREATE TABLE public.clock AS SELECT interval '0 s' AS ahead`,
				`CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
					AS 'SELECT pg_catalog.clock_timestamp() + ahead FROM public.clock'`,
				`ALTER DATABASE `+f.pg.Database()+` SET search_path = public, pg_catalog`)
		}
		n := f.startNode(func(c *Config) { c.RetentionAge = 30 * time.Minute })
		feed := feedReader{n: n, cursor: n.currentCursor()}
		prune := func() {
			t.Helper()
			n.mustPrune()
			if f.pg != nil {
				f.exec(`UPDATE retention SET begun = '-infinity'`) // a walk is due
			}
			if err := n.retention().runOnce(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		n.mustPublish("room", "id", "x")
		prune()
		f.setClock(n, time.Hour)
		prune()
		if got := feed.read(); got != "map[room:1]" || feed.incomplete {
			t.Errorf("the feed reports %s, incomplete %v", got, feed.incomplete)
		}
		if p := n.mustPublish("room", "id", "x"); !p.Duplicate {
			t.Errorf("a resend after the clock was set is stored again: %+v", p)
		}
		if all := n.readAll("room"); len(all) != 1 {
			t.Errorf("%d messages are left, want 1", len(all))
		}
		f.passTime(n, 11*time.Minute)
		prune()
		if p := n.mustPublish("room", "id", "x"); p.Duplicate || p.Seq != 2 {
			t.Errorf("a resend after 11 min, when the id is forgotten: %+v", p)
		}
	})
}

func TestAPruneClockHoldsWhatTheDatabaseShows(t *testing.T) {
	const kept = 10 * time.Minute
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	minutes := func(n float64) time.Duration { return time.Duration(n * float64(time.Minute)) }
	for name, test := range map[string]struct {
		ahead func(elapsed time.Duration) time.Duration // how far the clock is ahead
		want  map[time.Duration]time.Duration           // elapsed: the cutoff since begin
	}{
		"steady": {func(time.Duration) time.Duration { return 0 },
			map[time.Duration]time.Duration{0: -kept, minutes(5): minutes(-5), minutes(30): minutes(20)}},
		"set forward": {func(at time.Duration) time.Duration {
			if at < minutes(14.5) {
				return 0
			}
			return time.Hour
		}, map[time.Duration]time.Duration{minutes(14): minutes(4), minutes(15): minutes(5), minutes(24): minutes(14), minutes(26): minutes(76)}},
		"set back": {func(at time.Duration) time.Duration {
			if at < minutes(14.5) {
				return 0
			}
			return -time.Hour
		}, map[time.Duration]time.Duration{minutes(14): minutes(4), minutes(15): minutes(-55), minutes(30): minutes(-40)}},
		"forward and back": {func(at time.Duration) time.Duration {
			if at < minutes(14.5) || at > minutes(16.5) {
				return 0
			}
			return time.Hour
		}, map[time.Duration]time.Duration{minutes(16): minutes(6), minutes(17): minutes(7), minutes(40): minutes(30)}},
		"unsteady after a step": {func(at time.Duration) time.Duration {
			if at < minutes(14.5) {
				return 0
			}
			return time.Hour + time.Duration(int64(at/time.Minute)*7919%1000)*time.Millisecond
		}, map[time.Duration]time.Duration{minutes(24): minutes(14), minutes(26): minutes(76), minutes(40): minutes(90)}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newPruneClock(kept)
			for elapsed := time.Duration(0); elapsed <= minutes(40); elapsed += time.Minute {
				c.observeAt(begin.Add(elapsed+test.ahead(elapsed)), elapsed)
				want, ok := test.want[elapsed]
				if got := c.cutoffAt(kept, elapsed).Sub(begin); ok && (got < want || got > want+2*time.Second) {
					t.Errorf("after %v the cutoff is at %v, want %v", elapsed, got, want)
				}
			}
			if n := len(c.origins); n > 3 {
				t.Errorf("%d origins are remembered", n)
			}
		})
	}
}
