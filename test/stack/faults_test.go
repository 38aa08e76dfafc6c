//go:build stack

package stack

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"syscall"
	"testing"
	"time"

	"switchyard/internal/load"
	"switchyard/internal/testkit"
)

// liveColor returns the color that a new connection comes to, and the other one.
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

// A replica crashes: its clients reconnect and miss no message, new connections are
// served meanwhile, and Docker starts the replica again.
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
	testkit.EventuallyNil(t, "clients to reconnect", func() error {
		if n := run.Progress().Reconnects; n < 10 {
			return fmt.Errorf("%d reconnected", n)
		}
		return nil
	})
	testkit.EventuallyNil(t, "the replica in Traefik again", func() error {
		if up := sharedStack.serversUp(t, color); up != 3 {
			return fmt.Errorf("%d servers are up", up)
		}
		if sharedStack.dockerInspect(t, victim, "{{.State.Running}} {{.RestartCount}}") != "true 1" {
			return errors.New("not restarted")
		}
		return nil
	})
	results := p.stop()
	reconnects := run.Progress().Reconnects
	stopAndAssertClean(t, run)
	failed := failures(results)
	for _, v := range results {
		if v.err != nil {
			t.Errorf("%v after the kill: %v", v.began-at, v.err)
		} else if v.color != color {
			t.Errorf("%v after the kill: on %s, while %s had two replicas", v.began-at, v.color, color)
		}
	}
	t.Logf("%d clients reconnected; %d of %d new connections failed, the slowest took %v", reconnects, len(failed), len(results), slowest(results))
}

// A replica that does not start again, and one that hangs, leave Traefik's rotation.
func TestAReplicaThatIsAwayOrHangs(t *testing.T) {
	color, other := sharedStack.liveColor(t)
	victim := sharedStack.container("app_"+color, 3)
	for _, fault := range []struct {
		name, do, undo string
		most           int // new connections that may fail
	}{
		{"killed", "kill", "start", 0},
		// Connections that Traefik sent there before it noticed time out. By "power of two
		// choices" it sends few to a server that has many open.
		{"hung", "pause", "unpause", 12},
	} {
		p := sharedStack.startProber(t.Context(), 40)
		pauseFor(t, time.Second)
		out, err := sharedStack.run("docker", fault.do, victim)
		must(t, out, err)
		eventuallyWithin(t, 15*time.Second, fault.name+": out of Traefik's rotation", func() error {
			if up := sharedStack.serversUp(t, color); up != 2 {
				return fmt.Errorf("%d servers are up", up)
			}
			return nil
		})
		// A reload, as in any switch, makes Traefik forget which servers were down.
		sharedStack.activateColor(t, other)
		sharedStack.activateColor(t, color)
		pauseFor(t, 3*time.Second)
		out, err = sharedStack.run("docker", fault.undo, victim)
		must(t, out, err)
		testkit.EventuallyNil(t, fault.name+": in Traefik again", func() error {
			if up := sharedStack.serversUp(t, color); up != 3 {
				return fmt.Errorf("%d servers are up", up)
			}
			return nil
		})
		results := p.stop()
		failed := failures(results)
		t.Logf("%s: %d of %d new connections failed, the slowest took %v", fault.name, len(failed), len(results), slowest(results))
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

// The idle color may be absent: that does not affect the live one, and Traefik shows the
// other as down.
func TestAnAbsentColor(t *testing.T) {
	color, other := sharedStack.liveColor(t)
	out, err := sharedStack.compose("stop", "--timeout", "120", "app_"+other)
	must(t, out, err)
	eventuallyWithin(t, 15*time.Second, "no server of "+other+" up", func() error {
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
	t.Logf("%s is absent: %d of %d new connections to %s failed, the slowest took %v", other, len(failed), len(results), color, slowest(results))
	if len(failed) > 0 {
		t.Errorf("for example %v", failed[0].err)
	}
	// Connections that are routed there by mistake come to the color that serves.
	sharedStack.activateColor(t, other)
	p = sharedStack.startProber(t.Context(), 40)
	pauseFor(t, 3*time.Second)
	assertColor(t, p.stop(), color)
	sharedStack.activateColor(t, color)
	out, err = sharedStack.compose("up", "-d", "--wait", "--no-deps", "app_"+other)
	must(t, out, err)
}

// assertColor checks that a replica of the color welcomed each new connection.
func assertColor(t *testing.T, results []probeResult, color string) {
	t.Helper()
	for _, v := range results {
		if v.err != nil || v.color != color {
			t.Errorf("begun after %v, %v later on %q: %v; want %s", v.began, v.took, v.color, v.err, color)
		}
	}
	t.Logf("%d new connections, the slowest took %v", len(results), slowest(results))
}

// All replicas of the live color die at once while the other color is ready, as in the
// watch of a deploy: no new connection is rejected, and traffic returns by itself.
func TestTheOtherColorTakesOver(t *testing.T) {
	color, other := sharedStack.liveColor(t)
	testkit.EventuallyNil(t, other+" in Traefik", func() error {
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
	eventuallyWithin(t, 15*time.Second, "no server of "+color+" up", func() error {
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
			continue // a replica had it when it died
		}
		if v.err != nil || v.began > at && v.color != other {
			t.Errorf("begun %v after they died, %v later on %q: %v", v.began-at, v.took, v.color, v.err)
		}
	}
	t.Logf("%d new connections; the slowest took %v, Traefik noticed after %v", len(results), slowest(results), noticed-at)
	// A page, too, comes from the other color.
	if res, _ := sharedStack.get(t, "https://"+domain+"/"); res.StatusCode != http.StatusOK {
		t.Errorf("the page: %s", res.Status)
	}
	out, err = sharedStack.run("docker", append([]string{"start"}, replicas...)...)
	must(t, out, err)
	testkit.EventuallyNil(t, color+" in Traefik again", func() error {
		if up := sharedStack.serversUp(t, color); up != 3 {
			return fmt.Errorf("%d servers are up", up)
		}
		return nil
	})
	p = sharedStack.startProber(t.Context(), 40)
	pauseFor(t, time.Second)
	assertColor(t, p.stop(), color)
}
