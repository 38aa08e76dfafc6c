package deploy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
)

// pollEvery is the polling interval of a wait for Traefik.
const pollEvery = 100 * time.Millisecond

// A step of a deploy. Before do runs, done reports whether the step is complete,
// so that a deploy can be interrupted anywhere and run again.
type step struct {
	name, text string
	done       func(ctx context.Context) (bool, error)
	do         func(ctx context.Context) (note string, err error)
}

// steps returns the steps of a deploy, in order.
func (d *Deployer) steps(j *Journal, jd *judge) []step {
	completed := func(name string) func(context.Context) (bool, error) {
		return func(context.Context) (bool, error) { return j.completed(name), nil }
	}
	// beforeSwitch is for steps that are only possible or useful before the switch.
	beforeSwitch := func(name string) func(context.Context) (bool, error) {
		return func(ctx context.Context) (bool, error) {
			r, err := d.Deps.Traffic.Route(ctx)
			return j.completed(name) || err == nil && r.Live == j.To, nil
		}
	}
	watch := func(name, text string, span time.Duration) step {
		return step{name, text, completed(name), func(ctx context.Context) (string, error) { return d.watch(ctx, j, jd, name, span) }}
	}
	s := d.Settings
	all := []step{
		{"migrate", "bring the database to the image's schema", completed("migrate"), func(ctx context.Context) (string, error) {
			_, err := d.Deps.Images.Migrate(ctx, j.Image, s.MigrateLimit)
			return "", err
		}},
		{"start", fmt.Sprintf("start %d replicas on %s", j.Replicas, j.To), d.undrainIfStarted(j), func(ctx context.Context) (string, error) {
			return "", d.Deps.Containers.Start(ctx, j.spec())
		}},
		{"ready", "wait until all of them report that they are ready and Traefik agrees", beforeSwitch("ready"), func(ctx context.Context) (string, error) { return "", d.waitReady(ctx, j.spec(), true) }},
		{"smoke", "join, publish, receive and resume on each of them", beforeSwitch("smoke"), func(ctx context.Context) (string, error) { return "", d.smokeTest(ctx, j) }},
		{"baseline", fmt.Sprintf("measure %s over the last %v", j.From, s.Baseline), beforeSwitch("baseline"), func(ctx context.Context) (string, error) { return d.measureBaseline(ctx, j) }},
	}
	for _, percent := range s.SharePercents {
		name := fmt.Sprintf("canary %d%%", percent)
		all = append(all, step{
			name, fmt.Sprintf("send %d%% of new connections to %s and watch for %v", percent, j.To, s.ShareWatch), beforeSwitch(name),
			func(ctx context.Context) (string, error) { return d.runTrafficShare(ctx, j, jd, name, percent) },
		})
	}
	return append(all,
		step{"switch", fmt.Sprintf("send all new connections to %s", j.To), d.isSwitched(j), func(ctx context.Context) (string, error) {
			return d.switchTo(ctx, j)
		}},
		step{"check", fmt.Sprintf("connect from outside, load the page, verify for %v", s.Verify), completed("check"), func(ctx context.Context) (string, error) {
			return d.checkFromOutside(ctx, j)
		}},
		watch("watch", fmt.Sprintf("watch %s for %v", j.To, s.Watch), s.Watch),
		step{"move", fmt.Sprintf("move all clients from %s to %s", j.From, j.To), d.isMoved(j), func(ctx context.Context) (string, error) { return d.moveToNewColor(ctx, j, jd) }},
		step{"return", "wait until all clients have returned", completed("return"), func(ctx context.Context) (string, error) { return d.waitReturned(ctx, j, jd) }},
		watch("watch moved", fmt.Sprintf("watch %s with all clients on it for %v", j.To, s.WatchMoved), s.WatchMoved),
		step{"prune", fmt.Sprintf("keep the last %d images", s.KeepImages), completed("prune"), func(ctx context.Context) (string, error) { return d.prune(ctx, j) }},
	)
}

// inspect inspects the containers. It retries a few times, because Docker under
// load may not answer at once.
func (d *Deployer) inspect(ctx context.Context) (stack.Snapshot, error) {
	var err error
	for range 5 {
		var s stack.Snapshot
		if s, err = d.Deps.Containers.Inspect(ctx); err == nil {
			return s, nil
		}
		if e := d.Deps.Clock.Sleep(ctx, time.Second); e != nil {
			return stack.Snapshot{}, e
		}
	}
	return stack.Snapshot{}, &unknownStateError{err}
}

// matchesSpec reports whether a color runs exactly as its spec says.
func matchesSpec(s stack.Snapshot, spec stack.ColorSpec) bool {
	replicas := s.Running(spec.Color)
	return len(replicas) == spec.Replicas && !slices.ContainsFunc(replicas, func(r stack.Replica) bool {
		return r.Deployment != spec.Deployment || r.Image.ID != spec.Image.ID
	})
}

// undrainIfStarted undrains the new color's replicas, and reports whether the color
// runs.
func (d *Deployer) undrainIfStarted(j *Journal) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		s, err := d.inspect(ctx)
		if err != nil {
			return false, err
		}
		// Replicas that a killed command drained must not stay drained.
		if err := d.undrain(ctx, s, j.To, j.ID); err != nil {
			return false, err
		}
		return matchesSpec(s, j.spec()), nil
	}
}

// undrain lets a color's drained replicas of a deployment serve again.
func (d *Deployer) undrain(ctx context.Context, s stack.Snapshot, c stack.Color, deployment string) error {
	drained := s.RunningNames(c, func(r stack.Replica) bool { return r.Drain != "" && r.Deployment == deployment })
	if len(drained) == 0 {
		return nil
	}
	return d.Deps.Clients.Undrain(ctx, drained)
}

// waitReady waits until all replicas of a color report that they are ready, and with
// inBalancer until the balancer's health check agrees. It fails at once if one of
// them ends.
func (d *Deployer) waitReady(ctx context.Context, spec stack.ColorSpec, inBalancer bool) error {
	limit := d.Deps.Clock.Now().Add(d.Settings.ReadyLimit)
	for {
		s, err := d.inspect(ctx)
		if err != nil {
			return err
		}
		status, statusErr := d.Deps.Traffic.Status(ctx) // wrong routers in Traefik are corrected by the switch
		up := status.ServersUp[spec.Color]
		if s.CountServing(spec.Color) == spec.Replicas && (up == spec.Replicas || !inBalancer) {
			return nil
		}
		for _, r := range s.Replicas[spec.Color] {
			if r.Deployment == spec.Deployment && (r.Restarts > d.Settings.Triggers.Restarts || !r.Running && r.ExitReason != "") {
				return fmt.Errorf("%s crashed before it was ready: %s", r.Name, cmp.Or(r.ExitReason, "it was restarted"))
			}
		}
		if d.Deps.Clock.Now().After(limit) {
			return d.notReady(s, spec, up, statusErr)
		}
		if err := d.Deps.Clock.Sleep(ctx, min(d.Settings.ProbeEvery, time.Second)); err != nil {
			return err
		}
	}
}

// notReady returns the error of a color that was not ready within ReadyLimit, with what the
// replicas, Traefik and causes say. causes may be nil.
func (d *Deployer) notReady(s stack.Snapshot, spec stack.ColorSpec, up int, causes ...error) error {
	problems := s.DescribeProblems(spec.Color)
	for _, err := range causes {
		if err != nil {
			problems += "; " + err.Error()
		}
	}
	return fmt.Errorf("%d of %d replicas of %s were ready after %v, %d of them according to Traefik%s",
		s.CountServing(spec.Color), spec.Replicas, spec.Color, d.Settings.ReadyLimit, up, problems)
}

// smokeTest runs the smoke test on each replica of the new color.
func (d *Deployer) smokeTest(ctx context.Context, j *Journal) error {
	s, err := d.inspect(ctx)
	if err != nil {
		return err
	}
	for _, r := range s.Running(j.To) {
		if err := d.Deps.Probes.Smoke(ctx, checks.Target{Replica: &r, Deployment: j.ID}); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("the smoke test of %s failed: %w", r.Name, err)
		}
	}
	return nil
}

// measureBaseline measures the old color before the deploy affects it.
func (d *Deployer) measureBaseline(ctx context.Context, j *Journal) (string, error) {
	floor := fmt.Sprintf("only a p95 above %v counts as slow", d.Settings.Triggers.ResponseFloor)
	if j.firstDeploy() {
		return j.addNote("first deploy, no version to compare with: " + floor), nil
	}
	s, err := d.inspect(ctx)
	if err != nil {
		return "", err
	}
	w, err := d.metricsWindow(ctx, s, j.Old.Deployment, d.Settings.Baseline)
	switch {
	case err != nil && ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil && d.WithoutMetrics:
		return j.addNote(fmt.Sprintf("no metrics (%v): errors, response time and memory are not judged", err)), nil
	case err != nil:
		return "", fmt.Errorf("there is no baseline without metrics: %w", err)
	case w.Publishes < float64(d.Settings.Triggers.SlowSamples):
		j.Baseline = &w
		return j.addNote(fmt.Sprintf("%.0f publishes in %v are too few for a baseline: %s", w.Publishes, d.Settings.Baseline, floor)), nil
	}
	j.Baseline = &w
	return fmt.Sprintf("p95 %v, %.2f%% server errors, %.0f operations", w.P95.Round(100*time.Microsecond), 100*w.ErrorRatio(), w.Operations), nil
}

// addNote adds a note for the operator, once, and returns it.
func (j *Journal) addNote(text string) string {
	if !slices.Contains(j.Notes, text) {
		j.Notes = append(j.Notes, text)
	}
	return text
}

// runTrafficShare sends a percentage of new connections to the new color and watches
// it. The settings and the step call this a canary.
func (d *Deployer) runTrafficShare(ctx context.Context, j *Journal, jd *judge, name string, percent int) (string, error) {
	if err := d.setRoute(ctx, stack.Route{Live: j.From, SharePercent: percent}); err != nil {
		return "", err
	}
	note, err := d.watch(ctx, j, jd, name, d.Settings.ShareWatch)
	if err == nil {
		j.SharePercent = percent
	}
	return note, err
}

// isSwitched reports whether active.yml and Traefik route to the new color.
func (d *Deployer) isSwitched(j *Journal) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		want := stack.Route{Live: j.To}
		r, err := d.Deps.Traffic.Route(ctx)
		if err != nil || r != want {
			return false, nil
		}
		s, err := d.Deps.Traffic.Status(ctx)
		return err == nil && s.Route == want && j.completed("switch"), nil
	}
}

// switchTo sends all new connections to the new color.
func (d *Deployer) switchTo(ctx context.Context, j *Journal) (string, error) {
	// A command may have been killed since the step before: check again.
	s, err := d.inspect(ctx)
	if err != nil {
		return "", err
	}
	if s.CountServing(j.To) < j.Replicas {
		if err := d.waitReady(ctx, j.spec(), true); err != nil {
			return "", err
		}
	}
	if err := d.setRoute(ctx, stack.Route{Live: j.To}); err != nil {
		return "", err
	}
	note := fmt.Sprintf("Traefik sends new connections to %s %v after active.yml was written", j.To, d.Deps.Clock.Now().Sub(d.routeWrittenAt).Round(time.Millisecond))
	d.notify(ctx, Notification{Kind: "switch", Deploy: j.ID, Image: j.Image.Ref, Live: j.To, Text: fmt.Sprintf("new connections go to %s (%s)", j.To, j.Image.Ref)})
	return note, nil
}

// setRoute writes active.yml and waits until Traefik follows it. If Traefik misses
// the change, setRoute writes the file once more.
func (d *Deployer) setRoute(ctx context.Context, r stack.Route) error {
	if err := d.Deps.Traffic.SetRoute(ctx, r); err != nil {
		return err
	}
	d.routeWrittenAt = d.Deps.Clock.Now()
	limit := d.routeWrittenAt.Add(d.Settings.ConfirmLimit)
	rewriteAt := d.routeWrittenAt.Add(d.Settings.ConfirmLimit / 2)
	for rewritten := false; ; {
		s, err := d.Deps.Traffic.Status(ctx)
		if err == nil && s.Route == r {
			return nil
		}
		now := d.Deps.Clock.Now()
		if now.After(limit) {
			if err == nil {
				err = fmt.Errorf("it still routes to %s", s.Route)
			}
			return fmt.Errorf("Traefik did not follow active.yml within %v: %w; see `docker compose logs traefik`", d.Settings.ConfirmLimit, err) //nolint:staticcheck // a name
		}
		if !rewritten && now.After(rewriteAt) {
			rewritten = true
			if err := d.Deps.Traffic.SetRoute(ctx, r); err != nil {
				return err
			}
		}
		if err := d.Deps.Clock.Sleep(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// checkFromOutside tests the service as a user reaches it, through the balancer.
func (d *Deployer) checkFromOutside(ctx context.Context, j *Journal) (string, error) {
	var latencyNote string
	err := d.Deps.Probes.Smoke(ctx, checks.Target{Deployment: j.ID})
	if err == nil {
		err = d.Deps.Probes.LoadPage(ctx)
	}
	if err == nil && d.Settings.Verify > 0 {
		var p95 time.Duration
		p95, err = d.Deps.Probes.Verify(ctx, d.Settings.Verify)
		// Only a note: measured from outside, the p95 includes the network. The
		// watch judges the servers' own durations.
		latencyNote = fmt.Sprintf("p95 from outside %v", p95.Round(time.Millisecond))
		if j.Baseline != nil {
			latencyNote += fmt.Sprintf("; the servers of %s had %v before", j.From, j.Baseline.P95.Round(time.Millisecond))
		}
	}
	if err != nil && ctx.Err() == nil {
		return "", &triggerError{TriggerCheck, "from outside: " + err.Error()}
	}
	return latencyNote, errors.Join(err, ctx.Err())
}

// prune removes the images of older deploys, except for the last KeepImages.
func (d *Deployer) prune(ctx context.Context, j *Journal) (string, error) {
	history, err := d.State.History()
	if err != nil {
		return err.Error(), nil // no reason to roll back a good deploy
	}
	seen := []string{j.Image.ID}
	if !j.firstDeploy() && j.Old.Image.ID != j.Image.ID {
		seen = append(seen, j.Old.Image.ID)
	}
	var unused []stack.Image
	for _, e := range slices.Backward(history) {
		if e.Outcome == Switched || e.Outcome == Scaled || slices.Contains(seen, e.Image.ID) {
			continue
		}
		seen = append(seen, e.Image.ID)
		if len(seen) > d.Settings.KeepImages {
			unused = append(unused, e.Image)
		}
	}
	if len(unused) == 0 {
		return "", nil
	}
	if err := d.Deps.Images.Prune(ctx, unused); err != nil {
		return fmt.Sprintf("not all old images could be removed: %v", err), nil
	}
	return "old images are removed", nil
}
