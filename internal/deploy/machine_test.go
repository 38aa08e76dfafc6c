package deploy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestADeployMovesEverybody(t *testing.T) {
	w := newModel(t)
	m := w.machine(folder(t))
	var steps []string
	m.Report = func(e Event) {
		if e.Kind == "done" {
			steps = append(steps, e.Step)
		}
	}
	e, err := m.Deploy(t.Context(), "v2")
	if err != nil || e.Outcome != Deployed || e.Color != Green {
		t.Fatal(e, err)
	}
	if w.heard.Live != Green || w.clients[Green] != 1000 {
		t.Errorf("live %s, clients %v", w.heard.Live, w.clients)
	}
	if got := strings.Join(steps, " "); got != "migrate start ready smoke baseline switch check watch move return watch moved prune" {
		t.Error(got)
	}
	for _, r := range w.sight().Of(Blue) {
		if r.Drain != "drained" {
			t.Errorf("the old color is kept drained, not %+v", r)
		}
	}
	if w.smokes != 4 { // each replica, and once from outside
		t.Errorf("%d smoke tests", w.smokes)
	}
	history, err := m.State.History()
	if err != nil || len(history) != 1 || history[0].Image.Ref != "v2" || history[0].Old.Image.Ref != "v1" {
		t.Error(history, err)
	}
	if kinds := kindsOf(w.notices); !slices.Equal(kinds, []string{"start", "switch", "deployed"}) {
		t.Error(kinds)
	}
	// And on to the other color.
	if e, err = m.Deploy(t.Context(), "v3"); err != nil || e.Color != Blue || w.clients[Blue] != 1000 {
		t.Error(e, err, w.clients)
	}
}

func kindsOf(notices []Notice) (kinds []string) {
	for _, n := range notices {
		kinds = append(kinds, n.Kind)
	}
	return kinds
}

func TestTheImageThatIsLiveIsNotDeployedAgain(t *testing.T) {
	w := newModel(t)
	m := w.machine(folder(t))
	if _, err := m.Deploy(t.Context(), "v1"); !errors.Is(err, ErrAlreadyLive) {
		t.Fatal(err)
	}
	m.Again = true
	if e, err := m.Deploy(t.Context(), "v1"); err != nil || e.Color != Green {
		t.Fatal(e, err)
	}
}

// Each trigger, fired.
func TestTriggers(t *testing.T) {
	leak := func(age time.Duration) float64 { return .2 + age.Seconds()/200 }
	for name, tt := range map[string]struct {
		image   bad
		trigger Trigger
	}{
		"never ready":   {bad{neverReady: true}, TriggerStart},
		"smoke":         {bad{smoke: errors.New("no message came")}, TriggerStart},
		"crash":         {bad{crashAfter: time.Minute}, TriggerCrash},
		"health":        {bad{unready: func(age time.Duration) bool { return age > time.Minute }}, TriggerHealth},
		"errors":        {bad{errors: .1}, TriggerErrors},
		"slow":          {bad{p95: 150 * time.Millisecond}, TriggerSlow},
		"memory":        {bad{memory: leak}, TriggerMemory},
		"sessions":      {bad{loses: .2}, TriggerSessions},
		"stale canary":  {bad{stale: time.Minute}, TriggerCanary},
		"canary 10%":    {bad{errors: .1}, TriggerErrors},
		"check of page": {bad{page: errors.New("load /: status 500")}, TriggerCheck},
	} {
		t.Run(name, func(t *testing.T) {
			w := newModel(t)
			w.images["v2"] = tt.image
			m := w.machine(folder(t))
			if name == "canary 10%" {
				m.Settings.Canary = []int{10, 50}
			}
			e, err := m.Deploy(t.Context(), "v2")
			var back *RolledBackError
			if !errors.As(err, &back) || e.Outcome != RolledBack || e.Trigger != tt.trigger || e.Color != Blue {
				t.Fatalf("%+v, %v", e, err)
			}
			if w.heard.Live != Blue || w.clients[Green] != 0 || w.clients[Blue]+w.away != 1000 || len(w.sight().Of(Green)) != 0 {
				t.Errorf("live %s, clients %v, green %v", w.heard.Live, w.clients, w.replicas[Green])
			}
			if w.sight().serving(Blue) != 3 || !slices.Equal(w.kept, []string{"green"}) || e.Evidence == "" {
				t.Errorf("serving %d, kept %v in %q", w.sight().serving(Blue), w.kept, e.Evidence)
			}
			if n := w.notices[len(w.notices)-1]; n.Kind != "rollback" || !strings.Contains(n.Text, e.Reason) {
				t.Error(n)
			}
		})
	}
}

func TestWhatTheOldColorShowsTooIsHeld(t *testing.T) {
	leak := func(time.Duration) float64 { return .95 }
	sick := func(b bad) func(*modelWorld) { return func(w *modelWorld) { w.images["v2"], w.oldAsBad = b, b } }
	for name, tt := range map[string]struct {
		held    Trigger
		trouble func(*modelWorld)
	}{
		"errors": {TriggerErrors, sick(bad{errors: .1})},
		"slow":   {TriggerSlow, sick(bad{p95: 150 * time.Millisecond})},
		"memory": {TriggerMemory, sick(bad{memory: leak})},
		"crash": {TriggerCrash, func(w *modelWorld) {
			w.images["v2"] = bad{crashAfter: 40 * time.Second}
			w.oldAsBad = bad{crashAfter: 5 * time.Second} // again and again
		}},
		"stale canary": {TriggerCanary, func(w *modelWorld) {
			w.images["v2"] = bad{stale: time.Minute}
			w.oldAsBad = bad{stale: time.Hour + time.Minute} // since the same moment
		}},
		"health": {TriggerHealth, func(w *modelWorld) {
			// Both for a while, since the same moment.
			between := func(from time.Duration) func(time.Duration) bool {
				return func(age time.Duration) bool { return age > from && age < from+30*time.Second }
			}
			w.images["v2"] = bad{unready: between(time.Minute)}
			w.oldAsBad = bad{unready: between(time.Hour + time.Minute)}
		}},
		"sessions": {TriggerSessions, func(w *modelWorld) {
			w.images["v2"] = bad{loses: .2}
			w.dbDown = func(now time.Time) bool { // clients that could not come back say nothing of the version
				since, moved := w.drains["app_blue-1"]
				return moved && now.After(since.Add(5*time.Second)) && now.Before(since.Add(50*time.Second))
			}
		}},
		"database": {TriggerHealth, func(w *modelWorld) {
			begun := w.now
			w.dbDown = func(now time.Time) bool {
				return now.After(begun.Add(100*time.Second)) && now.Before(begun.Add(130*time.Second))
			}
		}},
		"database while everybody moved": {TriggerHealth, func(w *modelWorld) {
			w.dbDown = func(now time.Time) bool {
				since, moved := w.drains["app_blue-1"]
				return moved && now.After(since.Add(60*time.Second)) && now.Before(since.Add(90*time.Second))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newModel(t)
			w.checked = false // both colors are in trouble: that is the story
			m := w.machine(folder(t))
			tt.trouble(w)
			if name == "slow" { // since before the deploy began it was quick
				w.oldAsBad = bad{}
				m.Report = func(e Event) {
					if e.Step == "baseline" && e.Kind == "done" {
						w.oldAsBad = w.images["v2"]
					}
				}
			}
			e, err := m.Deploy(t.Context(), "v2")
			if err != nil || e.Outcome != Deployed {
				t.Fatalf("%+v, %v", e, err)
			}
			held := func(s string) bool {
				return strings.HasPrefix(s, string(tt.held)+" is held, since the old color shows it too")
			}
			if !slices.ContainsFunc(e.Held, held) {
				t.Errorf("held: %v", e.Held)
			}
		})
	}
}

// An old color that is slow, too, excuses a slow version, and no other fault.
func TestASlowOldColorExcusesNoErrors(t *testing.T) {
	w := newModel(t)
	w.images["v2"] = bad{errors: .1}
	m := w.machine(folder(t))
	m.Report = func(e Event) { // since before the deploy began it was quick
		if e.Step == "baseline" && e.Kind == "done" {
			w.oldAsBad = bad{p95: 150 * time.Millisecond}
		}
	}
	e, err := m.Deploy(t.Context(), "v2")
	if e.Outcome != RolledBack || e.Trigger != TriggerErrors || len(e.Held) > 0 {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestATriggerCanBeTurnedOff(t *testing.T) {
	for trigger, b := range map[Trigger]bad{
		TriggerErrors: {errors: .1}, TriggerSlow: {p95: time.Second}, TriggerSessions: {loses: .2},
		TriggerMemory: {memory: func(time.Duration) float64 { return .95 }},
	} {
		w := newModel(t)
		w.images["v2"] = b
		m := w.machine(folder(t))
		m.Settings.Triggers.Off = []Trigger{trigger}
		if e, err := m.Deploy(t.Context(), "v2"); err != nil {
			t.Error(trigger, e, err)
		}
	}
}

func TestAFirstDeployHasNothingToGoBackTo(t *testing.T) {
	w := newModel(t)
	w.replicas, w.clients, w.checked = map[Color][]Replica{}, map[Color]int{}, false
	m := w.machine(folder(t))
	e, err := m.Deploy(t.Context(), "v2")
	if err != nil || e.Color != Green || len(e.Notes) != 1 || !strings.Contains(e.Notes[0], "first deploy") || len(w.sight().Of(Green)) != 3 {
		t.Fatal(e, err)
	}
	w = newModel(t)
	w.replicas, w.clients, w.checked = map[Color][]Replica{}, map[Color]int{}, false
	w.images["v2"] = bad{neverReady: true}
	if e, err = w.machine(folder(t)).Deploy(t.Context(), "v2"); e.Outcome != RolledBack || err == nil || len(w.replicas[Green]) != 0 {
		t.Fatal(e, err)
	}
	// What serves a little is better than nothing.
	w = newModel(t)
	w.replicas, w.clients, w.checked = map[Color][]Replica{}, map[Color]int{Green: 100}, false
	w.images["v2"] = bad{errors: .5}
	var stuck *StuckError
	if e, err = w.machine(folder(t)).Deploy(t.Context(), "v2"); !errors.As(err, &stuck) || len(w.replicas[Green]) != 3 || w.heard.Live != Green {
		t.Fatal(e, err)
	}
}

func TestWithoutMetrics(t *testing.T) {
	w := newModel(t)
	w.metricsErr = errors.New("connection refused")
	m := w.machine(folder(t))
	e, err := m.Deploy(t.Context(), "v2")
	if e.Outcome != RolledBack || err == nil || !strings.Contains(e.Reason, "no baseline without metrics") {
		t.Fatal(e, err)
	}
	m.Blind = true
	e, err = m.Deploy(t.Context(), "v2")
	if err != nil || !strings.Contains(strings.Join(e.Notes, "\n"), "not judged") {
		t.Fatal(e, err)
	}
}

func TestTraefikThatDoesNotFollow(t *testing.T) {
	w := newModel(t)
	w.deaf = true
	e, err := w.machine(folder(t)).Deploy(t.Context(), "v2")
	if e.Outcome != RolledBack || err == nil || !strings.Contains(e.Reason, "did not follow active.yml") || w.route.Live != Blue {
		t.Fatal(e, err)
	}
}

func TestAnOperatorGoesBack(t *testing.T) {
	w := newModel(t)
	m := w.machine(folder(t))
	if _, err := m.Deploy(t.Context(), "v2"); err != nil {
		t.Fatal(err)
	}
	e, err := m.Rollback(t.Context())
	if err != nil || e.Outcome != RolledBack || e.Color != Blue || w.clients[Blue] != 1000 || w.sight().serving(Blue) != 3 {
		t.Fatal(e, err, w.clients)
	}
	// Even when the old color was stopped meanwhile.
	if _, err = m.Deploy(t.Context(), "v2"); err != nil {
		t.Fatal(err)
	}
	w.replicas[Blue] = nil
	if e, err = m.Rollback(t.Context()); err != nil || e.Outcome != RolledBack || w.sight().serving(Blue) != 3 || w.sight().Of(Blue)[0].Image.Ref != "v1" {
		t.Fatal(e, err)
	}
	w.replicas[Green] = nil
	if err := os.Remove(filepath.Join(m.State.Dir, "deploys.jsonl")); err != nil {
		t.Fatal(err)
	}
	var refused *RefusedError
	if _, err = m.Rollback(t.Context()); !errors.As(err, &refused) || !strings.Contains(err.Error(), "nothing to go back to") {
		t.Fatal(err)
	}
}

// Ctrl-C at each call: the command stops, says where, and can go on.
func TestAnInterruptedDeploy(t *testing.T) {
	for at := 1; ; at += 7 {
		w := newModel(t)
		m := w.machine(folder(t))
		ctx, cancel := context.WithCancel(t.Context())
		m.Report = func(Event) {}
		n := 0
		m.State.touch = func(string) {
			if n++; n == at {
				cancel()
			}
		}
		_, err := m.Deploy(ctx, "v2")
		cancel()
		if n < at {
			break // it was over before
		}
		var unfinished *UnfinishedError
		if err != nil && (!errors.As(err, &unfinished) || unfinished.Live == "") {
			t.Fatalf("interrupted at %d: %v", at, err)
		}
		if e, err := m.Deploy(t.Context(), "v2"); err != nil && !errors.Is(err, ErrAlreadyLive) {
			t.Fatal(e, err)
		}
		if w.heard.Live != Green || w.clients[Green] != 1000 {
			t.Fatal(w.heard, w.clients)
		}
	}
}

// Whatever the image is, wherever commands are killed, and however often: it
// ends deployed or rolled back, and at each moment some color served.
func TestAKilledDeployEndsWell(t *testing.T) {
	leak := func(age time.Duration) float64 { return .2 + age.Seconds()/200 }
	images := []bad{
		{}, {}, {neverReady: true}, {errors: .1}, {p95: 150 * time.Millisecond}, {memory: leak},
		{crashAfter: time.Minute}, {loses: .3}, {stale: 30 * time.Second},
	}
	root := folder(t)
	rapid.Check(t, func(r *rapid.T) {
		w := newModel(t)
		w.images["v2"] = rapid.SampledFrom(images).Draw(r, "image")
		dir, err := os.MkdirTemp(root, "")
		if err != nil {
			t.Fatal(err)
		}
		m := w.machine(dir)
		m.Settings.Canary = rapid.SampledFrom([][]int{nil, {10}, {10, 50}}).Draw(r, "canary")
		deploys := func() (Entry, error) { return m.Deploy(t.Context(), "v2") }
		var e Entry
		died := true
		for kills := rapid.IntRange(1, 4).Draw(r, "kills"); kills > 0 && died; kills-- {
			_, err, died = w.run(rapid.OneOf(rapid.IntRange(0, 250), rapid.IntRange(0, 3000)).Draw(r, "calls"), deploys)
			w.now = w.now.Add(time.Duration(rapid.IntRange(0, 120).Draw(r, "later")) * time.Second)
		}
		if died {
			e, err, _ = w.run(-1, deploys)
		}
		endsWell(r, w, m, e, err)
	})
}

// endsWell fails unless one color serves everybody and the journal is closed.
func endsWell(r *rapid.T, w *modelWorld, m *Machine, e Entry, err error) {
	var back *RolledBackError
	if err != nil && !errors.As(err, &back) && !errors.Is(err, ErrAlreadyLive) {
		r.Fatalf("%+v, %v", e, err)
	}
	live := w.heard.Live
	if w.route != w.heard || w.heard.Canary != 0 || w.sight().serving(live) != 3 {
		r.Fatalf("route %v, Traefik %v, %+v", w.route, w.heard, w.replicas)
	}
	if w.clients[live]+w.away != 1000 {
		r.Fatalf("%v clients, %d away", w.clients, w.away)
	}
	if j, err := m.State.Current(); j != nil || err != nil {
		r.Fatalf("the journal is still open: %+v, %v", j, err)
	}
}
