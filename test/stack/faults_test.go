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

// liveColor says which colour a newcomer meets.
func (s *stack) liveColor(t *testing.T) (color, other string) {
	t.Helper()
	color, _, err := s.probeOnce(t.Context(), testAddress(0))
	if err != nil {
		t.Fatal(err)
	}
	return color, map[string]string{"blue": "green", "green": "blue"}[color]
}

func (s *stack) dockerInspect(t *testing.T, container, format string) string {
	t.Helper()
	out, err := s.run("docker", "inspect", "-f", format, container)
	return must(t, out, err)
}

// A replica crashes: its clients come back and miss nothing, whoever comes
// meanwhile is served, and the engine starts it again.
func TestAKilledReplicasClientsComeBack(t *testing.T) {
	color, _ := sharedStack.liveColor(t)
	run := sharedStack.startRun(t, load.Plan{Clients: 90, Rooms: 9, Rate: 90, RampUp: time.Second}, 200)
	p := sharedStack.startProber(t.Context(), 40)
	pauseFor(t, time.Second)
	victim := sharedStack.container("app_"+color, 2)
	pid, err := strconv.Atoi(sharedStack.dockerInspect(t, victim, "{{.State.Pid}}"))
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
		if up := sharedStack.serversUp(t, color); up != 3 {
			return fmt.Errorf("%d servers are up", up)
		}
		if sharedStack.dockerInspect(t, victim, "{{.State.Running}} {{.RestartCount}}") != "true 1" {
			return fmt.Errorf("not restarted")
		}
		return nil
	})
	results := p.stop()
	back := run.Progress().Reconnects
	stopAndAssertClean(t, run)
	failed := failures(results)
	for _, v := range results {
		if v.err != nil {
			t.Errorf("%v after the kill: %v", v.began-at, v.err)
		} else if v.color != color {
			t.Errorf("%v after the kill: on %s, while two replicas of %s were there", v.began-at, v.color, color)
		}
	}
	t.Logf("%d clients came back; %d of %d newcomers failed, the slowest waited %v", back, len(failed), len(results), slowest(results))
}

// The same for one that does not start again by itself, and for one that hangs.
func TestAReplicaThatIsAwayOrHangs(t *testing.T) {
	color, other := sharedStack.liveColor(t)
	victim := sharedStack.container("app_"+color, 3)
	for _, fault := range []struct {
		name, do, undo string
		most           int // newcomers that may fail
	}{
		{"gone", "kill", "start", 0},
		// Whom Traefik sent there before it noticed waits in vain. By "power of two
		// choices" few are sent where many wait.
		{"hung", "pause", "unpause", 12},
	} {
		p := sharedStack.startProber(t.Context(), 40)
		pauseFor(t, time.Second)
		out, err := sharedStack.run("docker", fault.do, victim)
		must(t, out, err)
		eventually(t, 15*time.Second, fault.name+": out of Traefik's rotation", func() error {
			if up := sharedStack.serversUp(t, color); up != 2 {
				return fmt.Errorf("%d servers are up", up)
			}
			return nil
		})
		// A reload, as any switch brings, makes Traefik forget who was down.
		sharedStack.activateColor(t, other)
		sharedStack.activateColor(t, color)
		pauseFor(t, 3*time.Second)
		out, err = sharedStack.run("docker", fault.undo, victim)
		must(t, out, err)
		eventually(t, time.Minute, fault.name+": back", func() error {
			if up := sharedStack.serversUp(t, color); up != 3 {
				return fmt.Errorf("%d servers are up", up)
			}
			return nil
		})
		results := p.stop()
		failed := failures(results)
		t.Logf("%s: %d of %d newcomers failed, the slowest waited %v", fault.name, len(failed), len(results), slowest(results))
		if len(failed) > fault.most {
			for _, v := range failed[:min(5, len(failed))] {
				t.Errorf("%s: begun after %v, failed after %v: %v", fault.name, v.began, v.took, v.err)
			}
		}
	}
}

func slowest(results []probeResult) (most time.Duration) {
	for _, v := range results {
		most = max(most, v.took)
	}
	return most
}

// The idle colour may be absent: the live one does not suffer, and Traefik says
// what is wrong with the other.
func TestAnAbsentColor(t *testing.T) {
	color, other := sharedStack.liveColor(t)
	out, err := sharedStack.compose("stop", "--timeout", "120", "app_"+other)
	must(t, out, err)
	eventually(t, 15*time.Second, "nobody up in "+other, func() error {
		if up := sharedStack.serversUp(t, other); up != 0 {
			return fmt.Errorf("%d servers are up", up)
		}
		return nil
	})
	p := sharedStack.startProber(t.Context(), 40)
	pauseFor(t, 2*time.Second)
	sharedStack.activateColor(t, color) // a reload
	pauseFor(t, 3*time.Second)
	results := p.stop()
	failed := failures(results)
	t.Logf("%s is absent: %d of %d newcomers to %s failed, the slowest waited %v", other, len(failed), len(results), color, slowest(results))
	if len(failed) > 0 {
		t.Errorf("for example %v", failed[0].err)
	}
	// Who is led there by mistake meets the one that serves.
	sharedStack.activateColor(t, other)
	p = sharedStack.startProber(t.Context(), 40)
	pauseFor(t, 3*time.Second)
	assertColor(t, p.stop(), color)
	sharedStack.activateColor(t, color)
	out, err = sharedStack.compose("up", "-d", "--wait", "--no-deps", "app_"+other)
	must(t, out, err)
}

// assertColor fails for each newcomer that was not welcomed by a replica of the color.
func assertColor(t *testing.T, results []probeResult, color string) {
	t.Helper()
	for _, v := range results {
		if v.err != nil || v.color != color {
			t.Errorf("begun after %v, %v later on %q: %v; want %s", v.began, v.took, v.color, v.err, color)
		}
	}
	t.Logf("%d newcomers, the slowest waited %v", len(results), slowest(results))
}

// All replicas of the live color die at once, while the other is ready, as it is
// in a deploy's watch: no newcomer is turned away, and they go back by themselves.
func TestTheOtherColorTakesOver(t *testing.T) {
	color, other := sharedStack.liveColor(t)
	eventually(t, 30*time.Second, other+" in Traefik", func() error {
		if up := sharedStack.serversUp(t, other); up != 3 {
			return fmt.Errorf("%d servers are up", up)
		}
		return nil
	})
	replicas := []string{sharedStack.container("app_"+color, 1), sharedStack.container("app_"+color, 2), sharedStack.container("app_"+color, 3)}
	p := sharedStack.startProber(t.Context(), 40)
	pauseFor(t, time.Second)
	died := time.Since(p.start)
	out, err := sharedStack.run("docker", append([]string{"kill"}, replicas...)...)
	must(t, out, err)
	at := time.Since(p.start)
	eventually(t, 15*time.Second, "nobody up in "+color, func() error {
		if up := sharedStack.serversUp(t, color); up != 0 {
			return fmt.Errorf("%d servers are up", up)
		}
		return nil
	})
	noticed := time.Since(p.start)
	pauseFor(t, time.Second)
	results := p.stop()
	for _, v := range results {
		if v.began <= at && v.began+v.took > died {
			continue // a replica had it when it died: perhaps it was done
		}
		if v.err != nil || v.began > at && v.color != other {
			t.Errorf("begun %v after they died, %v later on %q: %v", v.began-at, v.took, v.color, v.err)
		}
	}
	t.Logf("%d newcomers; the slowest waited %v, Traefik noticed after %v", len(results), slowest(results), noticed-at)
	// A page, too, comes from the other color.
	if res, _ := sharedStack.get(t, "https://"+domain+"/"); res.StatusCode != http.StatusOK {
		t.Errorf("the page: %s", res.Status)
	}
	out, err = sharedStack.run("docker", append([]string{"start"}, replicas...)...)
	must(t, out, err)
	eventually(t, time.Minute, color+" in Traefik again", func() error {
		if up := sharedStack.serversUp(t, color); up != 3 {
			return fmt.Errorf("%d servers are up", up)
		}
		return nil
	})
	p = sharedStack.startProber(t.Context(), 40)
	pauseFor(t, time.Second)
	assertColor(t, p.stop(), color)
}
