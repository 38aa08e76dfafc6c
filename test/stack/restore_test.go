//go:build stack

package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// waitArchived waits until every commit so far is in the archive.
func (s *stack) waitArchived(t *testing.T, server string) {
	t.Helper()
	segment := s.sql(t, server, "SELECT pg_walfile_name(pg_switch_wal() - 1)")
	testkit.EventuallyNil(t, "the segment in the archive", func() error {
		_, err := os.Stat(filepath.Join(s.path("backups/wal"), segment+".gz"))
		return err
	})
}

// quietMoment returns a moment with no commit for two seconds before and after it, while
// the test itself publishes nothing.
func quietMoment(t *testing.T) string {
	t.Helper()
	pauseFor(t, 2*time.Second)
	at := time.Now().UTC().Format(time.RFC3339Nano)
	pauseFor(t, 2*time.Second)
	return at
}

// assertFails runs a command, and checks that it exits with 1 and says why.
func (s *stack) assertFails(t *testing.T, says string, args ...string) {
	t.Helper()
	code, out, errs := s.runSwitchyard(t, args...)
	if code != 1 || !strings.Contains(errs, says) || out != "" {
		t.Errorf("switchyard %v: exit %d, want 1 and %q\n%s%s", args, code, says, out, errs)
	}
}

// newPublisher connects a client, which joins the room if h handles messages. It returns
// a function that publishes n messages, one after the other, and returns the last ack.
func (s *stack) newPublisher(t *testing.T, room message.Room, h client.Handler) (publish func(n int) client.Ack) {
	t.Helper()
	c := s.connect(t, "publisher", nil)
	if h.Message != nil {
		if _, err := c.Join(t.Context(), room, client.Start(), h); err != nil {
			t.Fatal(err)
		}
	}
	return func(n int) (last client.Ack) {
		t.Helper()
		for i := range n {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			var err error
			last, err = c.Publish(ctx, room, json.RawMessage(fmt.Sprint(i)), "")
			cancel()
			if err != nil {
				t.Fatal(err)
			}
		}
		return last
	}
}

// Configuration, Redis and an earlier timeline of the database are restored by flags of
// their own. Only --replace overwrites what is there.
func TestEachPartIsRestored(t *testing.T) {
	primary, standby := sharedStack.servers(t)
	publish := sharedStack.newPublisher(t, "parts", client.Handler{})
	redis := func(args ...string) string {
		t.Helper()
		out, err := sharedStack.compose(append([]string{"exec", "-T", "redis", "sh", "-c",
			`REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /run/secrets/redis_auth) exec redis-cli "$@"`, "redis-cli"}, args...)...)
		return must(t, out, err)
	}
	env, secret := sharedStack.path(".env"), sharedStack.path("secrets/grafana_admin_password")
	settings, password := read(t, env), read(t, secret)
	redis("SET", "story", "one")
	first := publish(3)
	sharedStack.mustSucceed(t, []string{"Backup "}, "backup")
	redis("SET", "story", "two")
	if err := sharedStack.setEnv(map[string]string{"LOG_LEVEL": "debug"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(secret); err != nil {
		t.Fatal(err)
	}

	sharedStack.mustSucceed(t, []string{"Configuration: 2 files differed .* the replaced files are in .*/configuration-before-"}, "restore", "--to", "latest", "--no-database", "--configuration")
	info, err := os.Stat(secret)
	if err != nil || read(t, secret) != password || info.Mode().Perm() != 0o400 || info.Sys().(*syscall.Stat_t).Uid != 472 {
		t.Errorf("the secret is not as it was: %v, %v", info, err)
	}
	if read(t, env) != settings {
		t.Error(".env is not as it was")
	}

	sharedStack.assertFails(t, "--replace", "restore", "--to", "latest", "--no-database", "--redis")
	if got := redis("GET", "story"); got != "two" {
		t.Errorf("a refused restore left %q in Redis", got)
	}
	sharedStack.mustSucceed(t, []string{"Redis: restored from the backup"}, "restore", "--to", "latest", "--no-database", "--redis", "--replace")
	if got := redis("GET", "story"); got != "one" {
		t.Errorf("Redis has %q", got)
	}

	timeline := sharedStack.sql(t, primary, `SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int`)
	to := quietMoment(t)
	second := publish(5)
	sharedStack.assertFails(t, "there is already a database: restore --replace discards it", "restore", "--to", to)
	if again := publish(1); again.Epoch != first.Epoch || again.Seq != second.Seq+1 {
		t.Errorf("after a refused restore: %+v, before it %+v", again, second)
	}
	sharedStack.waitArchived(t, primary)
	sharedStack.mustSucceed(t, []string{"Database: restored from"}, "restore", "--to", to, "--replace")
	third := publish(1)
	if third.Seq != first.Seq+1 || third.Epoch == first.Epoch {
		t.Errorf("restored to before %+v, then %+v", second, third)
	}
	// That was the wrong moment: the operator returns to the timeline before.
	sharedStack.mustSucceed(t, []string{"Database: restored from"}, "restore", "--to", "latest", "--timeline", timeline, "--replace")
	fourth := publish(1)
	if fourth.Seq != second.Seq+2 || fourth.Epoch == first.Epoch || fourth.Epoch == third.Epoch {
		t.Errorf("back on timeline %s: %+v, %+v, %+v", timeline, second, third, fourth)
	}
	sharedStack.mustSucceed(t, []string{"Good: restored"}, "backup", "--verify")
	sharedStack.rebuildStandby(t, standby)
}

// The whole drill: there is a backup, publishing continues, the primary's volume is
// destroyed, and the stack is restored to a moment and serves. Clients resume, or
// receive a gap with the right range.
func TestRestoreDrill(t *testing.T) {
	primary, standby := sharedStack.servers(t)
	var mu sync.Mutex
	var gaps []client.Gap
	publish := sharedStack.newPublisher(t, "drill", client.Handler{
		Message: func(message.Message) {}, Gap: func(g client.Gap) { mu.Lock(); defer mu.Unlock(); gaps = append(gaps, g) },
	})
	run := sharedStack.startPublishers(t, 100)
	publish(20)
	sharedStack.mustSucceed(t, []string{"Backup "}, "backup")
	kept := publish(20)
	to := quietMoment(t)
	lost := publish(10)
	sharedStack.waitArchived(t, primary)
	// Both servers and the primary's disk are lost.
	for _, server := range []string{standby, primary} {
		out, err := sharedStack.compose("rm", "-sf", server)
		must(t, out, err)
	}
	out, err := sharedStack.run("docker", "volume", "rm", sharedStack.name+"_"+primary)
	must(t, out, err)

	began := time.Now()
	sharedStack.mustSucceed(t, []string{"Database: restored from"}, "restore", "--to", to)
	next := publish(1)
	t.Logf("restored and serving %v after the command", time.Since(began).Round(time.Second))
	if next.Epoch == lost.Epoch || next.Seq != kept.Seq+1 {
		t.Errorf("before the moment %+v, after it %+v, after the restore %+v", kept, lost, next)
	}
	// The publish was acked; the client may still be rejoining the room.
	testkit.EventuallyNil(t, "a gap", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(gaps) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	mu.Lock()
	// The gap goes to the room's head at the rejoin, which may be the new message.
	if g := gaps[0]; g.Reason != "epoch" || g.Epoch != next.Epoch || g.From != 1 || g.To < kept.Seq || g.To > next.Seq {
		t.Errorf("gaps %+v, want 1 to %d or %d of epoch %s", gaps, kept.Seq, next.Seq, next.Epoch)
	}
	mu.Unlock()
	waitAcked(t, run, 200)
	sharedStack.assertLossDeclared(t, run)
	sharedStack.mustSucceed(t, []string{"Good: restored"}, "backup", "--verify")
	sharedStack.rebuildStandby(t, standby)
}
