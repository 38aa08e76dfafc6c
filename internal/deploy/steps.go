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
func (m *Deployer) steps(j *Journal, g *judge) []step {
	completed := func(name string) func(context.Context) (bool, error) {
		return func(context.Context) (bool, error) { return j.completed(name), nil }
	}
	// unswitched is for what can only be done, or only matters, before the switch.
	beforeSwitch := func(name string) func(context.Context) (bool, error) {
		return func(ctx context.Context) (bool, error) {
			r, err := m.Deps.Traffic.Route(ctx)
			return j.completed(name) || err == nil && r.Live == j.To, nil
		}
	}
	watch := func(name, text string, d time.Duration) step {
		return step{name, text, completed(name), func(ctx context.Context) (string, error) { return m.watch(ctx, j, g, name, d) }}
	}
	s := m.Settings
	all := []step{
		{"migrate", "bring the database to the image's schema", completed("migrate"), func(ctx context.Context) (string, error) {
			return "", m.Deps.Images.Migrate(ctx, j.Image)
		}},
		{"start", fmt.Sprintf("start %d replicas on %s", j.Replicas, j.To), m.isStarted(j), func(ctx context.Context) (string, error) {
			return "", m.Deps.Containers.Start(ctx, j.spec())
		}},
		{"ready", "wait until all of them are ready, to themselves and to Traefik", beforeSwitch("ready"), func(ctx context.Context) (string, error) { return "", m.waitReady(ctx, j, true) }},
		{"smoke", "join, publish, receive and resume on each of them", beforeSwitch("smoke"), func(ctx context.Context) (string, error) { return "", m.smokeTest(ctx, j) }},
		{"baseline", fmt.Sprintf("measure %s over the last %v", j.From, s.Baseline), beforeSwitch("baseline"), func(ctx context.Context) (string, error) { return m.measureBaseline(ctx, j) }},
	}
	for _, percent := range s.CanaryPercents {
		name := fmt.Sprintf("canary %d%%", percent)
		all = append(all, step{
			name, fmt.Sprintf("send %d %% of new connections to %s and watch for %v", percent, j.To, s.CanaryWatch), beforeSwitch(name),
			func(ctx context.Context) (string, error) { return m.runCanary(ctx, j, g, name, percent) },
		})
	}
	return append(all,
		step{"switch", fmt.Sprintf("send all new connections to %s", j.To), m.isSwitched(j), func(ctx context.Context) (string, error) {
			return m.switchTo(ctx, j)
		}},
		step{"check", fmt.Sprintf("connect from outside, load the page, verify for %v", s.Verify), completed("check"), func(ctx context.Context) (string, error) {
			return m.checkFromOutside(ctx, j)
		}},
		watch("watch", fmt.Sprintf("watch %s for %v", j.To, s.Watch), s.Watch),
		step{"move", fmt.Sprintf("move everybody from %s to %s", j.From, j.To), m.isMoved(j), func(ctx context.Context) (string, error) { return m.moveClients(ctx, j, g) }},
		step{"return", "see whether everybody is there", completed("return"), func(ctx context.Context) (string, error) { return m.waitReturned(ctx, j, g) }},
		watch("watch moved", fmt.Sprintf("watch %s with everybody on it for %v", j.To, s.WatchMoved), s.WatchMoved),
		step{"prune", fmt.Sprintf("keep the last %d images", s.KeepImages), completed("prune"), func(ctx context.Context) (string, error) { return m.prune(ctx, j) }},
	)
}

// inspect looks at the containers, a few times if it must: an engine under load
// may not answer at once.
func (m *Deployer) inspect(ctx context.Context) (Snapshot, error) {
	var err error
	for range 5 {
		var s Snapshot
		if s, err = m.Deps.Containers.Inspect(ctx); err == nil {
			return s, nil
		}
		if e := m.Deps.Clock.Sleep(ctx, time.Second); e != nil {
			return Snapshot{}, e
		}
	}
	return Snapshot{}, &unknownStateError{err}
}

// matchesSpec tells whether a color runs exactly as a Launch says.
func matchesSpec(s Snapshot, l ColorSpec) bool {
	replicas := s.Running(l.Color)
	return len(replicas) == l.Replicas && !slices.ContainsFunc(replicas, func(r Replica) bool {
		return r.Deployment != l.Deployment || r.Image.ID != l.Image.ID
	})
}

func (m *Deployer) isStarted(j *Journal) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		s, err := m.inspect(ctx)
		if err != nil {
			return false, err
		}
		// Whoever was drained by a command that was killed must not stay so.
		if err := m.undrain(ctx, s, j.To, j.ID); err != nil {
			return false, err
		}
		return matchesSpec(s, j.spec()), nil
	}
}

// undrain has a color's drained replicas of a deployment serve.
func (m *Deployer) undrain(ctx context.Context, s Snapshot, c Color, deployment string) error {
	drained := s.runningNames(c, func(r Replica) bool { return r.Drain != "" && r.Deployment == deployment })
	if len(drained) == 0 {
		return nil
	}
	return m.Deps.Clients.Undrain(ctx, drained)
}

// waitReady waits for all replicas: to themselves, and to the balancer if it is to know
// them. One that ends meanwhile ends the wait.
func (m *Deployer) waitReady(ctx context.Context, j *Journal, inBalancer bool) error {
	limit := m.Deps.Clock.Now().Add(m.Settings.ReadyLimit)
	for {
		s, err := m.inspect(ctx)
		if err != nil {
			return err
		}
		serving, statusErr := m.Deps.Traffic.Status(ctx) // broken routers are what a switch mends
		up := serving.ServersUp[j.To]
		if s.countServing(j.To) == j.Replicas && (up == j.Replicas || !inBalancer) {
			return nil
		}
		for _, r := range s.Replicas[j.To] {
			if r.Deployment == j.ID && (r.Restarts > m.Settings.Triggers.Restarts || !r.Running && r.ExitReason != "") {
				return newTriggerError(TriggerStart, "%s ended by itself before it was ready: %s", r.Name, orElse(r.ExitReason, "it was started again"))
			}
		}
		if m.Deps.Clock.Now().After(limit) {
			why := describeProblems(s.Replicas[j.To])
			if statusErr != nil {
				why += "; " + statusErr.Error()
			}
			return newTriggerError(TriggerStart, "%d of %d replicas were ready after %v, %d of them for Traefik%s",
				s.countServing(j.To), j.Replicas, m.Settings.ReadyLimit, up, why)
		}
		if err := m.Deps.Clock.Sleep(ctx, min(m.Settings.ProbeEvery, time.Second)); err != nil {
			return err
		}
	}
}

// describeProblems says what is wrong with each replica that is not well.
func describeProblems(replicas []Replica) string {
	var b strings.Builder
	for _, r := range replicas {
		if t := r.problem(); t != "" {
			fmt.Fprintf(&b, "; %s: %s", r.Name, t)
		}
	}
	return b.String()
}

func (m *Deployer) smokeTest(ctx context.Context, j *Journal) error {
	s, err := m.inspect(ctx)
	if err != nil {
		return err
	}
	for _, r := range s.Running(j.To) {
		if err := m.Deps.Probes.Smoke(ctx, Target{Replica: &r, Deployment: j.ID}); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return newTriggerError(TriggerStart, "the smoke test of %s failed: %v", r.Name, err)
		}
	}
	return nil
}

// measureBaseline measures the old color before anything changes for it.
func (m *Deployer) measureBaseline(ctx context.Context, j *Journal) (string, error) {
	floor := fmt.Sprintf("judged by the floor of %v alone", m.Settings.Triggers.ResponseFloor)
	if j.firstDeploy() {
		return j.addNote("first deploy, nothing to compare with: " + floor), nil
	}
	w, err := m.Deps.Metrics.Window(ctx, j.Old.Deployment, m.Settings.Baseline)
	switch {
	case err != nil && ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil && m.WithoutMetrics:
		return j.addNote(fmt.Sprintf("no metrics (%v): errors, response time and memory are not judged", err)), nil
	case err != nil:
		return "", newTriggerError(TriggerStart, "there is no baseline without metrics: %v", err)
	case w.Publishes < float64(m.Settings.Triggers.SlowSamples):
		j.Baseline = &w
		return j.addNote(fmt.Sprintf("%.0f publishes in %v are too few for a baseline: %s", w.Publishes, m.Settings.Baseline, floor)), nil
	}
	j.Baseline = &w
	return fmt.Sprintf("p95 %v, %.2f %% errors of ours, %.0f operations", w.P95.Round(100*time.Microsecond), 100*w.ErrorRatio(), w.Operations), nil
}

// addNote keeps what a person should know.
func (j *Journal) addNote(text string) string {
	if !slices.Contains(j.Notes, text) {
		j.Notes = append(j.Notes, text)
	}
	return text
}

// runCanary sends a part of new connections to the new color and watches.
func (m *Deployer) runCanary(ctx context.Context, j *Journal, g *judge, name string, percent int) (string, error) {
	if err := m.setRoute(ctx, Route{Live: j.From, CanaryPercent: percent}); err != nil {
		return "", err
	}
	note, err := m.watch(ctx, j, g, name, m.Settings.CanaryWatch)
	if err == nil {
		j.CanaryPercent = percent
	}
	return note, err
}

func (m *Deployer) isSwitched(j *Journal) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		want := Route{Live: j.To}
		r, err := m.Deps.Traffic.Route(ctx)
		if err != nil || r != want {
			return false, nil
		}
		s, err := m.Deps.Traffic.Status(ctx)
		return err == nil && s.Route == want && j.completed("switch"), nil
	}
}

func (m *Deployer) switchTo(ctx context.Context, j *Journal) (string, error) {
	// Between the step before and this one a killed command may have lain.
	s, err := m.inspect(ctx)
	if err != nil {
		return "", err
	}
	if s.countServing(j.To) < j.Replicas {
		if err := m.waitReady(ctx, j, true); err != nil {
			return "", err
		}
	}
	if err := m.setRoute(ctx, Route{Live: j.To}); err != nil {
		return "", err
	}
	note := fmt.Sprintf("Traefik sends new connections to %s %v after the rename", j.To, m.Deps.Clock.Now().Sub(m.routeWrittenAt).Round(time.Millisecond))
	m.notify(ctx, Notification{Kind: "switch", Deploy: j.ID, Image: j.Image.Ref, Live: j.To, Text: fmt.Sprintf("new connections go to %s (%s)", j.To, j.Image.Ref)})
	return note, nil
}

// setRoute writes the record and waits until Traefik follows. A change that is not
// seen is written once more.
func (m *Deployer) setRoute(ctx context.Context, r Route) error {
	if err := m.Deps.Traffic.SetRoute(ctx, r); err != nil {
		return err
	}
	m.routeWrittenAt = m.Deps.Clock.Now()
	limit := m.routeWrittenAt.Add(m.Settings.ConfirmLimit)
	rewriteAt := m.routeWrittenAt.Add(m.Settings.ConfirmLimit / 2)
	for rewritten := false; ; {
		s, err := m.Deps.Traffic.Status(ctx)
		if err == nil && s.Route == r {
			return nil
		}
		now := m.Deps.Clock.Now()
		if now.After(limit) {
			if err == nil {
				err = fmt.Errorf("it still sends them to %s", s.Route)
			}
			return newTriggerError(TriggerStart, "Traefik did not follow active.yml within %v: %v; look at `docker compose logs traefik`", m.Settings.ConfirmLimit, err)
		}
		if !rewritten && now.After(rewriteAt) {
			rewritten = true
			if err := m.Deps.Traffic.SetRoute(ctx, r); err != nil {
				return err
			}
		}
		if err := m.Deps.Clock.Sleep(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// checkFromOutside is what a user would see.
func (m *Deployer) checkFromOutside(ctx context.Context, j *Journal) (string, error) {
	var latencyNote string
	err := m.Deps.Probes.Smoke(ctx, Target{Deployment: j.ID})
	if err == nil {
		err = m.Deps.Probes.LoadPage(ctx)
	}
	if err == nil && m.Settings.Verify > 0 {
		var p95 time.Duration
		p95, err = m.Deps.Probes.Verify(ctx, m.Settings.Verify)
		// For people: from outside it holds the way there, so that the watch judges
		// the servers' own.
		latencyNote = fmt.Sprintf("p95 from outside %v", p95.Round(time.Millisecond))
		if j.Baseline != nil {
			latencyNote += fmt.Sprintf(", of %s's servers before %v", j.From, j.Baseline.P95.Round(time.Millisecond))
		}
	}
	if err != nil && ctx.Err() == nil {
		return "", newTriggerError(TriggerCheck, "from outside: %v", err)
	}
	return latencyNote, errors.Join(err, ctx.Err())
}

// prune removes what older deploys left, but for the last few images.
func (m *Deployer) prune(ctx context.Context, j *Journal) (string, error) {
	history, err := m.State.History()
	if err != nil {
		return err.Error(), nil // no reason to take a good deploy back
	}
	seen := []string{j.Image.ID, j.Old.Image.ID}
	seen = slices.Compact(seen)
	var unused []Image
	for _, e := range slices.Backward(history) {
		if e.Outcome != Deployed && e.Outcome != RolledBack || slices.Contains(seen, e.Image.ID) {
			continue
		}
		seen = append(seen, e.Image.ID)
		if len(seen) > m.Settings.KeepImages {
			unused = append(unused, e.Image)
		}
	}
	if len(unused) == 0 {
		return "", nil
	}
	if err := m.Deps.Images.Prune(ctx, unused); err != nil {
		return fmt.Sprintf("not all could be removed: %v", err), nil
	}
	return "the older ones are gone", nil
}
