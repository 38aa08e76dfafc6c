//go:build stack

package stack

import (
	"fmt"
	"net/http"
	"strconv"
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
	for _, v := range visits {
		if v.err != nil {
			t.Errorf("%v after the kill: %v", v.began-at, v.err)
		} else if v.color != color {
			t.Errorf("%v after the kill: on %s, while two replicas of %s were there", v.began-at, v.color, color)
		}
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
	// Who is led there by mistake meets the one that serves.
	the.rename(t, other)
	p = the.probe(t.Context(), 40)
	wait(t, 3*time.Second)
	on(t, p.stop(), color)
	the.rename(t, color)
	out, err = the.compose("up", "-d", "--wait", "--no-deps", "app_"+other)
	must(t, out, err)
}

// on fails for each newcomer that was not welcomed by a replica of the color.
func on(t *testing.T, visits []visit, color string) {
	t.Helper()
	for _, v := range visits {
		if v.err != nil || v.color != color {
			t.Errorf("begun after %v, %v later on %q: %v; want %s", v.began, v.took, v.color, v.err, color)
		}
	}
	t.Logf("%d newcomers, the slowest waited %v", len(visits), slowest(visits))
}

// All replicas of the live color die at once, while the other is ready, as it is
// in a deploy's watch: no newcomer is turned away, and they go back by themselves.
func TestTheOtherColourStandsIn(t *testing.T) {
	color, other := the.live(t)
	eventually(t, 30*time.Second, other+" in Traefik", func() error {
		if up := the.serversUp(t, other); up != 3 {
			return fmt.Errorf("%d servers are up", up)
		}
		return nil
	})
	replicas := []string{the.container("app_"+color, 1), the.container("app_"+color, 2), the.container("app_"+color, 3)}
	p := the.probe(t.Context(), 40)
	wait(t, time.Second)
	died := time.Since(p.start)
	out, err := the.run("docker", append([]string{"kill"}, replicas...)...)
	must(t, out, err)
	at := time.Since(p.start)
	eventually(t, 15*time.Second, "nobody up in "+color, func() error {
		if up := the.serversUp(t, color); up != 0 {
			return fmt.Errorf("%d servers are up", up)
		}
		return nil
	})
	noticed := time.Since(p.start)
	wait(t, time.Second)
	visits := p.stop()
	for _, v := range visits {
		if v.began <= at && v.began+v.took > died {
			continue // a replica had it when it died: perhaps it was done
		}
		if v.err != nil || v.began > at && v.color != other {
			t.Errorf("begun %v after they died, %v later on %q: %v", v.began-at, v.took, v.color, v.err)
		}
	}
	t.Logf("%d newcomers; the slowest waited %v, Traefik noticed after %v", len(visits), slowest(visits), noticed-at)
	// A page, too, comes from the other color.
	if res, _ := the.get(t, "https://"+domain+"/"); res.StatusCode != http.StatusOK {
		t.Errorf("the page: %s", res.Status)
	}
	out, err = the.run("docker", append([]string{"start"}, replicas...)...)
	must(t, out, err)
	eventually(t, time.Minute, color+" in Traefik again", func() error {
		if up := the.serversUp(t, color); up != 3 {
			return fmt.Errorf("%d servers are up", up)
		}
		return nil
	})
	p = the.probe(t.Context(), 40)
	wait(t, time.Second)
	on(t, p.stop(), color)
}
