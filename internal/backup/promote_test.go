package backup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// addStandby gives the world's primary a standby.
func (w *fixture) addStandby() *testkit.PG {
	w.t.Helper()
	pg := testkit.StartPostgres(w.t)
	pg.Stop()
	if err := os.RemoveAll(pg.DataDir()); err != nil {
		w.t.Fatal(err)
	}
	dir := filepath.Dir(pg.DataDir())
	script := fmt.Sprintf(`pg_basebackup -h 127.0.0.1 -p %d -U postgres -D %s -R -X stream -c fast &&
		printf "port=%d\nunix_socket_directories='%s'\n" >> %[2]s/postgresql.conf`, w.pg.Port(), pg.DataDir(), pg.Port(), dir)
	if err := w.stack.exec(w.t.Context(), nil, w.stack.user, Program{Args: []string{"sh", "-c", script}}); err != nil {
		w.t.Fatal(err)
	}
	pg.Start()
	w.stack.postgres[PostgresReplicaService] = pg
	return pg
}

// startNodeOnBoth starts a node that goes with whichever server takes writes.
func (w *fixture) startNodeOnBoth(standby *testkit.PG) {
	w.t.Helper()
	url := fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable&target_session_attrs=read-write&connect_timeout=2", w.pg.Port(), standby.Port())
	w.node = testkit.StartServer(w.t, map[string]string{"DATABASE_URL": url, "RATE_PUBLISH": "0"})
	w.stack.apps["app_blue"] = true
}

// newReplicatedFixture is a world with a standby and a node that knows both, with so many
// messages in the lobby.
func newReplicatedFixture(t *testing.T, messages int) (w *fixture, standby *testkit.PG) {
	t.Helper()
	w = newFixture(t)
	standby = w.addStandby()
	w.startNodeOnBoth(standby)
	publish(t, w.client(client.Options{}), "lobby", messages)
	return w, standby
}

// The primary dies under load, the standby takes over: what was lost is
// declared, and nothing else is.
func TestAPromotionDeclaresWhatWasLost(t *testing.T) {
	t.Parallel()
	w, standby := newReplicatedFixture(t, 5)
	if _, err := w.repository.Promote(t.Context(), PromoteRequest{}); !errors.Is(err, ErrPrimaryAnswers) || !w.pg.Running() {
		t.Fatalf("while the primary answers: %v", err)
	}
	run, err := load.Start(t.Context(), load.Plan{URLs: []string{w.node.SocketURL()}, Clients: 10, Rooms: 3, Rate: 100})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "messages go round", func() bool { return run.Progress().Acked > 100 })
	killed := time.Now()
	w.pg.Kill()
	p, err := w.repository.Promote(t.Context(), PromoteRequest{})
	if err != nil {
		t.Fatal(err)
	}
	acked := run.Progress().Acked
	until(t, "the service stores again", func() bool { return run.Progress().Acked > acked })
	pause := time.Since(killed)
	until(t, "it goes on", func() bool { return run.Progress().Acked > acked+100 })
	run.Stop()
	report := run.Report()
	if report.Verdict != load.Clean || report.Epochs != 2 {
		t.Errorf("%s", report)
	}
	if p.Service != PostgresReplicaService || p.Graceful || p.LastCommit.IsZero() || p.Log.Messages == 0 || w.stack.primary != PostgresReplicaService {
		t.Errorf("%+v", p)
	}
	t.Logf("promoted in %v; stored again %v after the primary died", p.Took, pause.Round(time.Millisecond))
	// The new primary is the one that is backed up, and the archive goes on.
	w.pg = standby
	s := w.createBackup()
	if _, err := w.repository.Verify(t.Context(), s.Name); err != nil {
		t.Error(err)
	}
	if _, err := w.repository.Promote(t.Context(), PromoteRequest{}); err == nil || !strings.Contains(err.Error(), "the standby postgres can't be promoted") {
		t.Errorf("a second time, without a standby: %v", err)
	}
}

// A promotion that was cut short after the record was made goes on.
func TestAnInterruptedPromotionCanBeResumed(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	standby := w.addStandby()
	w.pg.Stop()
	w.stack.beforeRun = func(_ string, p *Program) error {
		if strings.Contains(strings.Join(p.Args, " "), "pg_promote") {
			return errors.New("killed")
		}
		return nil
	}
	if _, err := w.repository.Promote(t.Context(), PromoteRequest{}); err == nil || w.stack.primary != PostgresReplicaService {
		t.Fatalf("%v, %s", err, w.stack.primary)
	}
	w.stack.beforeRun = nil
	// The log is not there, so that what follows the promotion fails; the
	// promotion does not.
	_, err := w.repository.Promote(t.Context(), PromoteRequest{})
	if got := standby.Query("SELECT pg_is_in_recovery()"); got != "f" || w.stack.primary != PostgresReplicaService {
		t.Errorf("in recovery: %s; %s is on record; %v", got, w.stack.primary, err)
	}
}

// A primary that is well can be sent off without losing anything.
func TestAGracefulPromotionLosesNothing(t *testing.T) {
	t.Parallel()
	w, standby := newReplicatedFixture(t, 50)
	p, err := w.repository.Promote(t.Context(), PromoteRequest{StopPrimary: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := standby.Query(`SELECT head FROM rooms WHERE name = 'lobby'`); got != "50" || !p.Graceful || w.pg.Running() {
		t.Errorf("head %s, %+v", got, p)
	}
}

// A primary that answered, and was killed when its grace period was over, may
// have stored what nobody sent: it is not said that nothing is lost.
func TestAPromotionOfAKilledPrimaryIsNotGraceful(t *testing.T) {
	t.Parallel()
	w, _ := newReplicatedFixture(t, 5)
	w.stack.stopKills = true
	p, err := w.repository.Promote(t.Context(), PromoteRequest{StopPrimary: true})
	if err != nil {
		t.Fatal(err)
	}
	if p.Graceful || p.LastCommit.IsZero() || p.Service != PostgresReplicaService {
		t.Errorf("%+v", p)
	}
}
