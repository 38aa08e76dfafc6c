//go:build stack

package stack

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"switchyard/internal/load"
)

// live says which colour a newcomer meets.
func (s *stack) live(t *testing.T) (color, other string) {
	t.Helper()
	color, _, err := s.visit(t.Context(), address(0))
	if err != nil {
		t.Fatal(err)
	}
	return color, map[string]string{"blue": "green", "green": "blue"}[color]
}

func (s *stack) inspect(t *testing.T, container, format string) string {
	t.Helper()
	out, err := s.run("docker", "inspect", "-f", format, container)
	return must(t, out, err)
}

// A replica crashes: its clients come back and miss nothing, whoever comes
// meanwhile is served, and the engine starts it again.
func TestAKilledReplicasClientsComeBack(t *testing.T) {
	color, _ := the.live(t)
	run := the.run500(t, load.Plan{Clients: 90, Rooms: 9, Rate: 90, RampUp: time.Second}, 200)
	p := the.probe(t.Context(), 40)
	wait(t, time.Second)
	victim := the.container("app_"+color, 2)
	pid, err := strconv.Atoi(the.inspect(t, victim, "{{.State.Pid}}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	at := time.Since(p.start)
	eventually(t, 30*time.Second, "clients that come back", func() error {
		if n := run.Progress().Reconnects; n < 10 {
			return fmt.Errorf("%d came back", n)
		}
		return nil
	})
	eventually(t, time.Minute, "the replica in Traefik again", func() error {
		if up := the.serversUp(t, color); up != 3 {
			return fmt.Errorf("%d servers are up", up)
		}
		if the.inspect(t, victim, "{{.State.Running}} {{.RestartCount}}") != "true 1" {
			return fmt.Errorf("not restarted")
		}
		return nil
	})
	visits := p.stop()
	back := run.Progress().Reconnects
	judge(t, run)
	failed := failures(visits)
	for _, v := range failed {
		t.Errorf("%v after the kill: %v", v.began-at, v.err)
	}
	t.Logf("%d clients came back; %d of %d newcomers failed, the slowest waited %v", back, len(failed), len(visits), slowest(visits))
}

// The same for one that does not start again by itself, and for one that hangs.
func TestAReplicaThatIsAwayOrHangs(t *testing.T) {
	color, other := the.live(t)
	victim := the.container("app_"+color, 3)
	for _, fault := range []struct {
		name, do, undo string
		most           int // newcomers that may fail
	}{
		{"gone", "kill", "start", 0},
		// Whom Traefik sent there before it noticed waits in vain. By "power of two
		// choices" few are sent where many wait.
		{"hung", "pause", "unpause", 12},
	} {
		p := the.probe(t.Context(), 40)
		wait(t, time.Second)
		out, err := the.run("docker", fault.do, victim)
		must(t, out, err)
		eventually(t, 15*time.Second, fault.name+": out of Traefik's rotation", func() error {
			if up := the.serversUp(t, color); up != 2 {
				return fmt.Errorf("%d servers are up", up)
			}
			return nil
		})
		// A reload, as any switch brings, makes Traefik forget who was down.
		the.rename(t, other)
		the.rename(t, color)
		wait(t, 3*time.Second)
		out, err = the.run("docker", fault.undo, victim)
		must(t, out, err)
		eventually(t, time.Minute, fault.name+": back", func() error {
			if up := the.serversUp(t, color); up != 3 {
				return fmt.Errorf("%d servers are up", up)
			}
			return nil
		})
		visits := p.stop()
		failed := failures(visits)
		t.Logf("%s: %d of %d newcomers failed, the slowest waited %v", fault.name, len(failed), len(visits), slowest(visits))
		if len(failed) > fault.most {
			for _, v := range failed[:min(5, len(failed))] {
				t.Errorf("%s: begun after %v, failed after %v: %v", fault.name, v.began, v.took, v.err)
			}
		}
	}
}

func slowest(visits []visit) (most time.Duration) {
	for _, v := range visits {
		most = max(most, v.took)
	}
	return most
}

// The idle colour may be absent: the live one does not suffer, and Traefik says
// what is wrong with the other.
func TestAnAbsentColour(t *testing.T) {
	color, other := the.live(t)
	out, err := the.compose("stop", "--timeout", "120", "app_"+other)
	must(t, out, err)
	eventually(t, 15*time.Second, "nobody up in "+other, func() error {
		if up := the.serversUp(t, other); up != 0 {
			return fmt.Errorf("%d servers are up", up)
		}
		return nil
	})
	p := the.probe(t.Context(), 40)
	wait(t, 2*time.Second)
	the.rename(t, color) // a reload
	wait(t, 3*time.Second)
	visits := p.stop()
	failed := failures(visits)
	t.Logf("%s is absent: %d of %d newcomers to %s failed, the slowest waited %v", other, len(failed), len(visits), color, slowest(visits))
	if len(failed) > 0 {
		t.Errorf("for example %v", failed[0].err)
	}
	// Led there by mistake, users are told so at once, and come back with the file.
	the.rename(t, other)
	eventually(t, 10*time.Second, "an error", func() error {
		if _, _, err := the.visit(t.Context(), address(1)); err == nil || !strings.Contains(err.Error(), "50") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	_, _, err = the.visit(t.Context(), address(2))
	t.Logf("a newcomer who is led to an absent colour: %v", err)
	the.rename(t, color)
	eventually(t, 5*time.Second, "service again", func() error {
		_, _, err := the.visit(t.Context(), address(3))
		return err
	})
	out, err = the.compose("up", "-d", "--wait", "--no-deps", "app_"+other)
	must(t, out, err)
}
