package backup

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

// addStandby starts a standby of the primary.
func (fx *fixture) addStandby() *testkit.PG {
	fx.t.Helper()
	pg := testkit.StartPreparedPostgres(fx.t, func(data string, user *syscall.Credential) error {
		return fx.stack.exec(fx.t.Context(), nil, user, stack.Program{Args: []string{
			"pg_basebackup", "-h", "127.0.0.1", "-p", strconv.Itoa(fx.pg.Port()), "-U", "postgres", "-D", data, "-R", "-X", "stream", "-c", "fast", "--no-sync",
		}})
	})
	fx.stack.postgres[stack.PostgresReplicaService] = pg
	return pg
}

// startNodeOnBoth starts a node that connects to the server that takes writes.
func (fx *fixture) startNodeOnBoth(standby *testkit.PG) {
	fx.t.Helper()
	url := fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable&target_session_attrs=read-write&connect_timeout=2", fx.pg.Port(), standby.Port())
	fx.node = testkit.StartServer(fx.t, map[string]string{"DATABASE_URL": url, "RATE_PUBLISH": "0"})
	fx.stack.apps["app_blue"] = true
}

// newReplicatedFixture returns a fixture with a standby and a node on both servers,
// and a number of messages in the room lobby.
func newReplicatedFixture(t *testing.T, messages int) (fx *fixture, standby *testkit.PG) {
	t.Helper()
	fx = newFixture(t)
	standby = fx.addStandby()
	fx.startNodeOnBoth(standby)
	publish(t, fx.client(client.Options{}), "lobby", messages)
	return fx, standby
}

// The primary dies under load, and the standby takes over. Only lost messages are
// declared as lost.
func TestAPromotionDeclaresWhatWasLost(t *testing.T) {
	t.Parallel()
	fx, standby := newReplicatedFixture(t, 5)
	if _, err := fx.repository.Promote(t.Context(), PromoteRequest{}); !errors.Is(err, ErrPrimaryAnswers) || !fx.pg.Running() {
		t.Fatalf("while the primary answers: %v", err)
	}
	run, err := load.Start(t.Context(), load.Plan{URLs: []string{fx.node.SocketURL()}, Clients: 10, Rooms: 3, Rate: 100})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "100 messages are acked", func() bool { return run.Progress().Acked > 100 })
	killed := time.Now()
	fx.pg.Kill()
	p, err := fx.repository.Promote(t.Context(), PromoteRequest{})
	if err != nil {
		t.Fatal(err)
	}
	acked := run.Progress().Acked
	testkit.Eventually(t, "a message is acked again", func() bool { return run.Progress().Acked > acked })
	pause := time.Since(killed)
	testkit.Eventually(t, "100 more messages are acked", func() bool { return run.Progress().Acked > acked+100 })
	run.Stop()
	report := run.Report()
	if report.Verdict != load.Clean || report.Epochs != 2 {
		t.Errorf("%s", report)
	}
	if p.Service != stack.PostgresReplicaService || p.Graceful || p.LastCommit.IsZero() || p.Log.Messages == 0 || fx.stack.primary != stack.PostgresReplicaService {
		t.Errorf("%+v", p)
	}
	t.Logf("promoted in %v; stored again %v after the primary died", p.Took, pause.Round(time.Millisecond))
	// The next backup is of the new primary, with the same archive.
	fx.pg = standby
	s := fx.createBackup()
	if _, err := fx.repository.Verify(t.Context(), s.Name); err != nil {
		t.Error(err)
	}
	if _, err := fx.repository.Promote(t.Context(), PromoteRequest{}); err == nil || !strings.Contains(err.Error(), "the standby postgres can't be promoted") {
		t.Errorf("a second promotion, without a standby: %v", err)
	}
}

// A promotion that was interrupted after the record was written can be run again.
func TestAnInterruptedPromotionCanBeResumed(t *testing.T) {
	t.Parallel()
	fx := newFixture(t)
	standby := fx.addStandby()
	fx.pg.Stop()
	fx.stack.beforeRun = func(_ string, p *stack.Program) error {
		if strings.Contains(strings.Join(p.Args, " "), "pg_promote") {
			return errors.New("killed")
		}
		return nil
	}
	if _, err := fx.repository.Promote(t.Context(), PromoteRequest{}); err == nil || fx.stack.primary != stack.PostgresReplicaService {
		t.Fatalf("%v, %s", err, fx.stack.primary)
	}
	fx.stack.beforeRun = nil
	// The database has no tables, so that the check after the promotion fails. The
	// promotion itself does not.
	_, err := fx.repository.Promote(t.Context(), PromoteRequest{})
	if got := standby.Query("SELECT pg_is_in_recovery()"); got != "f" || fx.stack.primary != stack.PostgresReplicaService {
		t.Errorf("in recovery: %s; %s is recorded; %v", got, fx.stack.primary, err)
	}
}

// The promotion of a standby whose primary is stopped cleanly loses nothing.
func TestAGracefulPromotionLosesNothing(t *testing.T) {
	t.Parallel()
	fx, standby := newReplicatedFixture(t, 50)
	p, err := fx.repository.Promote(t.Context(), PromoteRequest{StopPrimary: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := standby.Query(`SELECT head FROM rooms WHERE name = 'lobby'`); got != "50" || !p.Graceful || fx.pg.Running() {
		t.Errorf("head %s, %+v", got, p)
	}
}

// A primary that was killed after its grace period may have messages that the
// standby lacks: the promotion does not claim that nothing is lost.
func TestAPromotionOfAKilledPrimaryIsNotGraceful(t *testing.T) {
	t.Parallel()
	fx, _ := newReplicatedFixture(t, 5)
	fx.stack.stopKills = true
	p, err := fx.repository.Promote(t.Context(), PromoteRequest{StopPrimary: true})
	if err != nil {
		t.Fatal(err)
	}
	if p.Graceful || p.LastCommit.IsZero() || p.Service != stack.PostgresReplicaService {
		t.Errorf("%+v", p)
	}
}
