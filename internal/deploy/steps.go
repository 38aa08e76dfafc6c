package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// pollEvery is how often a wait for Traefik looks again.
const pollEvery = 100 * time.Millisecond

// A step is begun by looking whether it is done, so that it may be cut short
// anywhere and be begun again.
type step struct {
	name, text string
	done       func(ctx context.Context) (bool, error)
	do         func(ctx context.Context) (note string, err error)
}

// steps are a deploy, in order.
func (m *Machine) steps(j *Journal, g *judge) []step {
	noted := func(name string) func(context.Context) (bool, error) {
		return func(context.Context) (bool, error) { return j.did(name), nil }
	}
	// unswitched is for what can only be done, or only matters, before the switch.
	unswitched := func(name string) func(context.Context) (bool, error) {
		return func(ctx context.Context) (bool, error) {
			r, err := m.World.Traffic.Route(ctx)
			return j.did(name) || err == nil && r.Live == j.To, nil
		}
	}
	watch := func(name, text string, d time.Duration) step {
		return step{name, text, noted(name), func(ctx context.Context) (string, error) { return m.watch(ctx, j, g, name, d) }}
	}
	s := m.Settings
	all := []step{
		{"migrate", "bring the database to the image's schema", noted("migrate"), func(ctx context.Context) (string, error) {
			return "", m.World.Images.Migrate(ctx, j.Image)
		}},
		{"start", fmt.Sprintf("start %d replicas on %s", j.Replicas, j.To), m.started(j), func(ctx context.Context) (string, error) {
			return "", m.World.Containers.Start(ctx, j.launch())
		}},
		{"ready", "wait until all of them are ready, to themselves and to Traefik", unswitched("ready"), func(ctx context.Context) (string, error) { return "", m.ready(ctx, j, true) }},
		{"smoke", "join, publish, receive and resume on each of them", unswitched("smoke"), func(ctx context.Context) (string, error) { return "", m.smoke(ctx, j) }},
		{"baseline", fmt.Sprintf("measure %s over the last %v", j.From, s.Baseline), unswitched("baseline"), func(ctx context.Context) (string, error) { return m.baseline(ctx, j) }},
	}
	for _, percent := range s.Canary {
		name := fmt.Sprintf("canary %d%%", percent)
		all = append(all, step{
			name, fmt.Sprintf("send %d %% of new connections to %s and watch for %v", percent, j.To, s.CanaryWatch), unswitched(name),
			func(ctx context.Context) (string, error) { return m.canary(ctx, j, g, name, percent) },
		})
	}
	return append(all,
		step{"switch", fmt.Sprintf("send all new connections to %s", j.To), m.switched(j), func(ctx context.Context) (string, error) {
			return m.switchTo(ctx, j)
		}},
		step{"check", fmt.Sprintf("connect from outside, load the page, verify for %v", s.Verify), noted("check"), func(ctx context.Context) (string, error) {
			return m.check(ctx, j)
		}},
		watch("watch", fmt.Sprintf("watch %s for %v", j.To, s.Watch), s.Watch),
		step{"move", fmt.Sprintf("move everybody from %s to %s", j.From, j.To), m.moved(j), func(ctx context.Context) (string, error) { return m.move(ctx, j, g) }},
		step{"return", "see whether everybody is there", noted("return"), func(ctx context.Context) (string, error) { return m.returned(ctx, j, g) }},
		watch("watch moved", fmt.Sprintf("watch %s with everybody on it for %v", j.To, s.WatchMoved), s.WatchMoved),
		step{"prune", fmt.Sprintf("keep the last %d images", s.Keep), noted("prune"), func(ctx context.Context) (string, error) { return m.prune(ctx, j) }},
	)
}

// look looks at the containers, a few times if it must: an engine under load
// may not answer at once.
func (m *Machine) look(ctx context.Context) (Sight, error) {
	var err error
	for range 5 {
		var s Sight
		if s, err = m.World.Containers.Look(ctx); err == nil {
			return s, nil
		}
		if e := m.World.Clock.Sleep(ctx, time.Second); e != nil {
			return Sight{}, e
		}
	}
	return Sight{}, &unseen{err}
}

// runs tells whether a color runs exactly as a Launch says.
func runs(s Sight, l Launch) bool {
	of := s.Of(l.Color)
	return len(of) == l.Replicas && !slices.ContainsFunc(of, func(r Replica) bool {
		return r.Deployment != l.Deployment || r.Image.ID != l.Image.ID
	})
}

func (m *Machine) started(j *Journal) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		s, err := m.look(ctx)
		if err != nil {
			return false, err
		}
		// Whoever was drained by a command that was killed must not stay so.
		if err := m.undrain(ctx, s, j.To, j.ID); err != nil {
			return false, err
		}
		return runs(s, j.launch()), nil
	}
}

// undrain has a color's drained replicas of a deployment serve.
func (m *Machine) undrain(ctx context.Context, s Sight, c Color, deployment string) error {
	drained := s.names(c, func(r Replica) bool { return r.Drain != "" && r.Deployment == deployment })
	if len(drained) == 0 {
		return nil
	}
	return m.World.Clients.Undrain(ctx, drained)
}

// ready waits for all replicas: to themselves, and to the balancer if it is to know
// them. One that ends meanwhile ends the wait.
func (m *Machine) ready(ctx context.Context, j *Journal, balanced bool) error {
	limit := m.World.Clock.Now().Add(m.Settings.ReadyLimit)
	for {
		s, err := m.look(ctx)
		if err != nil {
			return err
		}
		serving, unsure := m.World.Traffic.Serving(ctx) // broken routers are what a switch mends
		up := serving.Up[j.To]
		if s.serving(j.To) == j.Replicas && (up == j.Replicas || !balanced) {
			return nil
		}
		for _, r := range s.Replicas[j.To] {
			if r.Deployment == j.ID && (r.Restarts > m.Settings.Triggers.Restarts || !r.Running && r.Ended != "") {
				return fire(TriggerStart, "%s ended by itself before it was ready: %s", r.Name, orElse(r.Ended, "it was started again"))
			}
		}
		if m.World.Clock.Now().After(limit) {
			why := troubles(s.Replicas[j.To])
			if unsure != nil {
				why += "; " + unsure.Error()
			}
			return fire(TriggerStart, "%d of %d replicas were ready after %v, %d of them for Traefik%s",
				s.serving(j.To), j.Replicas, m.Settings.ReadyLimit, up, why)
		}
		if err := m.World.Clock.Sleep(ctx, min(m.Settings.ProbeEvery, time.Second)); err != nil {
			return err
		}
	}
}

// troubles says what is wrong with each replica that is not well.
func troubles(replicas []Replica) string {
	var b strings.Builder
	for _, r := range replicas {
		if t := r.trouble(); t != "" {
			fmt.Fprintf(&b, "; %s: %s", r.Name, t)
		}
	}
	return b.String()
}

func (m *Machine) smoke(ctx context.Context, j *Journal) error {
	s, err := m.look(ctx)
	if err != nil {
		return err
	}
	for _, r := range s.Of(j.To) {
		if err := m.World.Probes.Smoke(ctx, Target{Replica: &r, Deployment: j.ID}); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fire(TriggerStart, "the smoke test of %s failed: %v", r.Name, err)
		}
	}
	return nil
}

// baseline measures the old color before anything changes for it.
func (m *Machine) baseline(ctx context.Context, j *Journal) (string, error) {
	floor := fmt.Sprintf("judged by the floor of %v alone", m.Settings.Triggers.ResponseFloor)
	if j.first() {
		return j.note("first deploy, nothing to compare with: " + floor), nil
	}
	w, err := m.World.Metrics.Window(ctx, j.Old.Deployment, m.Settings.Baseline)
	switch {
	case err != nil && ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil && m.Blind:
		return j.note(fmt.Sprintf("no metrics (%v): errors, response time and memory are not judged", err)), nil
	case err != nil:
		return "", fire(TriggerStart, "there is no baseline without metrics: %v", err)
	case w.Publishes < float64(m.Settings.Triggers.SlowSamples):
		j.Baseline = &w
		return j.note(fmt.Sprintf("%.0f publishes in %v are too few for a baseline: %s", w.Publishes, m.Settings.Baseline, floor)), nil
	}
	j.Baseline = &w
	return fmt.Sprintf("p95 %v, %.2f %% errors of ours, %.0f operations", w.P95.Round(100*time.Microsecond), 100*w.ErrorRatio(), w.Operations), nil
}

// note keeps what a person should know.
func (j *Journal) note(text string) string {
	if !slices.Contains(j.Notes, text) {
		j.Notes = append(j.Notes, text)
	}
	return text
}

// canary sends a part of new connections to the new color and watches.
func (m *Machine) canary(ctx context.Context, j *Journal, g *judge, name string, percent int) (string, error) {
	if err := m.route(ctx, Route{Live: j.From, Canary: percent}); err != nil {
		return "", err
	}
	note, err := m.watch(ctx, j, g, name, m.Settings.CanaryWatch)
	if err == nil {
		j.Canary = percent
	}
	return note, err
}

func (m *Machine) switched(j *Journal) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		want := Route{Live: j.To}
		r, err := m.World.Traffic.Route(ctx)
		if err != nil || r != want {
			return false, nil
		}
		s, err := m.World.Traffic.Serving(ctx)
		return err == nil && s.Route == want && j.did("switch"), nil
	}
}

func (m *Machine) switchTo(ctx context.Context, j *Journal) (string, error) {
	// Between the step before and this one a killed command may have lain.
	s, err := m.look(ctx)
	if err != nil {
		return "", err
	}
	if s.serving(j.To) < j.Replicas {
		if err := m.ready(ctx, j, true); err != nil {
			return "", err
		}
	}
	if err := m.route(ctx, Route{Live: j.To}); err != nil {
		return "", err
	}
	note := fmt.Sprintf("Traefik sends new connections to %s %v after the rename", j.To, m.World.Clock.Now().Sub(m.wroteRoute).Round(time.Millisecond))
	m.tell(ctx, Notice{Kind: "switch", Deploy: j.ID, Image: j.Image.Ref, Live: j.To, Text: fmt.Sprintf("new connections go to %s (%s)", j.To, j.Image.Ref)})
	return note, nil
}

// route writes the record and waits until Traefik follows. A change that is not
// seen is written once more.
func (m *Machine) route(ctx context.Context, r Route) error {
	if err := m.World.Traffic.Set(ctx, r); err != nil {
		return err
	}
	m.wroteRoute = m.World.Clock.Now()
	limit := m.wroteRoute.Add(m.Settings.ConfirmLimit)
	again := m.wroteRoute.Add(m.Settings.ConfirmLimit / 2)
	for written := false; ; {
		s, err := m.World.Traffic.Serving(ctx)
		if err == nil && s.Route == r {
			return nil
		}
		now := m.World.Clock.Now()
		if now.After(limit) {
			if err == nil {
				err = fmt.Errorf("it still sends them to %s", s.Route)
			}
			return fire(TriggerStart, "Traefik did not follow active.yml within %v: %v; look at `docker compose logs traefik`", m.Settings.ConfirmLimit, err)
		}
		if !written && now.After(again) {
			written = true
			if err := m.World.Traffic.Set(ctx, r); err != nil {
				return err
			}
		}
		if err := m.World.Clock.Sleep(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// check is what a user would see.
func (m *Machine) check(ctx context.Context, j *Journal) (string, error) {
	var beside string
	err := m.World.Probes.Smoke(ctx, Target{Deployment: j.ID})
	if err == nil {
		err = m.World.Probes.Page(ctx)
	}
	if err == nil && m.Settings.Verify > 0 {
		var p95 time.Duration
		p95, err = m.World.Probes.Verify(ctx, m.Settings.Verify)
		// For people: from outside it holds the way there, so that the watch judges
		// the servers' own.
		beside = fmt.Sprintf("p95 from outside %v", p95.Round(time.Millisecond))
		if j.Baseline != nil {
			beside += fmt.Sprintf(", of %s's servers before %v", j.From, j.Baseline.P95.Round(time.Millisecond))
		}
	}
	if err != nil && ctx.Err() == nil {
		return "", fire(TriggerCheck, "from outside: %v", err)
	}
	return beside, errors.Join(err, ctx.Err())
}

// prune removes what older deploys left, but for the last few images.
func (m *Machine) prune(ctx context.Context, j *Journal) (string, error) {
	history, err := m.State.History()
	if err != nil {
		return err.Error(), nil // no reason to take a good deploy back
	}
	seen := []string{j.Image.ID, j.Old.Image.ID}
	seen = slices.Compact(seen)
	var gone []Image
	for _, e := range slices.Backward(history) {
		if e.Outcome != Deployed && e.Outcome != RolledBack || slices.Contains(seen, e.Image.ID) {
			continue
		}
		seen = append(seen, e.Image.ID)
		if len(seen) > m.Settings.Keep {
			gone = append(gone, e.Image)
		}
	}
	if len(gone) == 0 {
		return "", nil
	}
	if err := m.World.Images.Prune(ctx, gone); err != nil {
		return fmt.Sprintf("not all could be removed: %v", err), nil
	}
	return "the older ones are gone", nil
}
