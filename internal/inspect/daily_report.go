package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"switchyard/internal/backup"
	"switchyard/internal/stack"
)

// A DailyReport checks everything that an operator checks in the morning. Its
// fields are set before the first call and not changed afterwards.
type DailyReport struct {
	Stack Stack
	// Prometheus is nil when it was not found; PrometheusErr says why.
	Prometheus    *stack.Prometheus
	PrometheusErr error
	// Backups is nil when the folder of the backups is unknown.
	Backups *backup.Repository
	// Lookback is the span that the sections "Since" and "Errors" cover.
	Lookback time.Duration
	// MaxBackupAge bounds the age of the newest backup, MaxProofAge that of the
	// last verification and MaxWALAge that of the newest WAL segment.
	MaxBackupAge, MaxProofAge, MaxWALAge time.Duration
}

// The page marks values beyond these bounds. Shares are fractions, 0 to 1.
const (
	memoryWarn, memoryFail = 0.80, 0.90
	diskWarn, diskFail     = 0.80, 0.92
	certificateWarn        = 21 * 24 * time.Hour
	certificateFail        = 7 * 24 * time.Hour
	lagWarn                = 30 // seconds
)

// Run runs all checks. It never fails: a check that can't be run is a line
// with StatusFail.
func (r *DailyReport) Run(ctx context.Context) *DailyResult {
	p := &DailyResult{At: time.Now().UTC()}
	for _, section := range []func(context.Context) Section{r.services, r.system, r.overnight, r.errors, r.backups} {
		p.Sections = append(p.Sections, section(ctx))
	}
	return p
}

func (r *DailyReport) services(ctx context.Context) Section {
	s := Section{Title: "Services"}
	all, err := r.Stack.Containers(ctx)
	if err != nil {
		s.fail("containers", err)
		return s
	}
	live := 0
	byService := map[string][]stack.Container{}
	for _, c := range all {
		byService[c.Service] = append(byService[c.Service], c)
		if isNode(c.Service) && c.Running {
			live++
		}
	}
	names := make([]string, 0, len(byService))
	for name := range byService {
		names = append(names, name)
	}
	slices.Sort(names)
	healthy := 0
	for _, name := range names {
		for _, c := range byService[name] {
			status, detail := containerStatus(c)
			if isNode(name) && !c.Running && c.ExitCode == 0 {
				status = StatusOK // the color that is not live
			}
			if status == StatusOK {
				healthy++
				continue
			}
			s.add(status, c.Name, "%s", detail)
		}
	}
	if live == 0 {
		s.add(StatusFail, "nodes", "%v", ErrNoNode)
	}
	s.add(StatusOK, "containers", "%d are healthy; %d nodes run", healthy, live)
	if r.Prometheus != nil {
		r.targetsAndAlerts(ctx, &s)
	}
	return s
}

// containerStatus returns the status of a container and, unless that is
// StatusOK, the reason.
func containerStatus(c stack.Container) (Status, string) {
	switch {
	case !c.Running:
		return StatusFail, fmt.Sprintf("does not run: %s", c.Status)
	case c.Health == "starting": // not checked yet
		return StatusWarn, "was just started"
	case c.Health != "" && c.Health != "healthy":
		return StatusFail, fmt.Sprintf("running, but %s", c.Health)
	case c.Restarts > 0:
		return StatusWarn, fmt.Sprintf("was restarted %d times", c.Restarts)
	}
	return StatusOK, ""
}

// targetsAndAlerts adds the targets that Prometheus can't scrape and the alerts
// that fire.
func (r *DailyReport) targetsAndAlerts(ctx context.Context, s *Section) {
	down, err := r.Prometheus.Query(ctx, "up == 0")
	if err != nil {
		s.fail("targets", err)
		return
	}
	for _, d := range down {
		s.add(StatusFail, "scrape", "%s %s can't be scraped", d.Labels["job"], d.Labels["instance"])
	}
	// Watchdog always fires: it proves that alerts are delivered.
	firing, err := r.Prometheus.Query(ctx, `ALERTS{alertstate="firing"} unless ALERTS{alertname="Watchdog"}`)
	if err != nil {
		s.fail("alerts", err)
		return
	}
	for _, f := range firing {
		status := StatusWarn
		if f.Labels["severity"] == "critical" || f.Labels["severity"] == "page" {
			status = StatusFail
		}
		s.add(status, "alert", "%s fires (%s) %s", f.Labels["alertname"], f.Labels["severity"], f.Labels["instance"])
	}
	if len(firing) == 0 {
		s.add(StatusOK, "alerts", "none firing")
	}
}

// A metricCheck compares the value of an expression with two bounds.
type metricCheck struct {
	name, expr string
	unit       string  // as formatValue takes it
	warn, fail float64 // a value that reaches them gets the status; 0 means no bound
	// lowerIsWorse says that values below the bounds get the status.
	lowerIsWorse bool
	// required says that an empty answer gets StatusWarn.
	required bool
}

func (r *DailyReport) system(ctx context.Context) Section {
	s := Section{Title: "System"}
	r.runChecks(ctx, &s, []metricCheck{
		{"memory of the host", `1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes`, "%", memoryWarn, memoryFail, false, true},
		{"fullest disk", `max(1 - node_filesystem_avail_bytes{fstype!~"tmpfs|overlay|squashfs|ramfs"} / node_filesystem_size_bytes{fstype!~"tmpfs|overlay|squashfs|ramfs"})`, "%", diskWarn, diskFail, false, true},
		{"load per core", `max(node_load15) / count(count by (cpu) (node_cpu_seconds_total))`, "", 1, 3, false, true},
		{"memory of the fullest node", `max(process_resident_memory_bytes{job="switchyard"} / (switchyard_memory_limit_bytes{job="switchyard"} > 0))`, "%", memoryWarn, memoryFail, false, false},
		{"clock error", `max(abs(node_timex_offset_seconds))`, "s", 0.1, 1, false, false},
		{"certificate expires in, days", `(min(probe_ssl_earliest_cert_expiry) - time()) / 86400`, "", certificateWarn.Hours() / 24, certificateFail.Hours() / 24, true, false},
		{"replication lag, seconds", `max(pg_server_replay_age_seconds)`, "", lagWarn, 300, false, false},
		{"memory of Redis", `max(redis_memory_used_bytes / (redis_memory_max_bytes > 0))`, "%", memoryWarn, 0.95, false, false},
		{"connections of PostgreSQL", `sum(pg_stat_database_numbackends) / min(pg_settings_max_connections)`, "%", 0.8, 0.95, false, false},
	})
	return s
}

func (r *DailyReport) overnight(ctx context.Context) Section {
	s := Section{Title: "Since " + time.Now().Add(-r.Lookback).UTC().Format("2006-01-02 15:04") + " UTC"}
	span := fmt.Sprintf("[%ds]", max(int(r.Lookback.Seconds()), 60))
	r.runChecks(ctx, &s, []metricCheck{
		{"most connections at once", `max_over_time(sum(websocket_active_connections)` + subquery(span) + `)`, "", 0, 0, false, true},
		{"published", `sum(increase(websocket_messages_received_total{type="publish"}` + span + `)) or vector(0)`, "", 0, 0, false, true},
		{"sent to clients", `sum(increase(websocket_messages_sent_total` + span + `))`, "", 0, 0, false, true},
		{"ack, p99", `histogram_quantile(0.99, sum by (le) (rate(websocket_publish_duration_seconds_bucket` + span + `)))`, "s", 0.1, 1, false, false},
		{"delivery, p99", `histogram_quantile(0.99, sum by (le) (rate(websocket_delivery_duration_seconds_bucket` + span + `)))`, "s", 0.1, 1, false, false},
		{"server errors", `sum(increase(websocket_errors_total{type=~"internal|unavailable"}` + span + `)) or vector(0)`, "", 1, 1000, false, true},
		{"clients closed as slow", `sum(increase(websocket_disconnections_total{reason="slow"}` + span + `)) or vector(0)`, "", 100, 0, false, false},
		{"gap repairs", `sum(increase(websocket_repairs_total` + span + `)) or vector(0)`, "", 10_000, 0, false, false},
		{"seconds without the broker", `sum(avg_over_time((broker_up == bool 0)` + subquery(span) + `)) * ` + fmt.Sprint(int(r.Lookback.Seconds())), "", 5, 600, false, false},
		{"restarts of nodes", `sum(changes(process_start_time_seconds{job="switchyard"}` + span + `)) or vector(0)`, "", 1, 0, false, false},
		{"alerts that fired", `count(count by (alertname) (max_over_time(ALERTS{alertstate="firing",alertname!="Watchdog"}` + span + `))) or vector(0)`, "", 1, 0, false, false},
	})
	return s
}

// subquery returns the range of a subquery over span, evaluated every minute.
func subquery(span string) string { return strings.TrimSuffix(span, "]") + ":1m]" }

// runChecks adds the result of each check. A query that Prometheus refuses is
// one line with StatusFail; a Prometheus that does not answer is one line for
// all remaining checks.
func (r *DailyReport) runChecks(ctx context.Context, s *Section, checks []metricCheck) {
	if r.Prometheus == nil {
		s.fail("Prometheus", r.PrometheusErr)
		return
	}
	for _, q := range checks {
		value, ok, err := r.Prometheus.QueryValue(ctx, q.expr, time.Now())
		switch {
		case errors.Is(err, stack.ErrNoPrometheus):
			s.fail("Prometheus", err)
			return
		case err != nil:
			s.fail(q.name, err)
		case !ok && q.required:
			s.add(StatusWarn, q.name, "no data")
		case ok:
			s.add(q.status(value), q.name, "%s", formatValue(value, q.unit))
		}
	}
}

func (c *metricCheck) status(v float64) Status {
	over := func(bound float64) bool {
		return bound != 0 && (c.lowerIsWorse && v <= bound || !c.lowerIsWorse && v >= bound)
	}
	switch {
	case over(c.fail):
		return StatusFail
	case over(c.warn):
		return StatusWarn
	}
	return StatusOK
}

func (r *DailyReport) errors(ctx context.Context) Section {
	s := Section{Title: "Errors"}
	e, err := ReadErrors(ctx, r.Stack, nil, time.Now().Add(-r.Lookback))
	if err != nil {
		s.fail("log", err)
		return s
	}
	const maxShown = 5
	for _, k := range e.Kinds[:min(len(e.Kinds), maxShown)] {
		status := StatusWarn
		if k.Level == "ERROR" {
			status = StatusFail
		}
		s.add(status, k.Level, "%d times: %s %s", k.Count, k.Message, truncate(k.Example, 100))
	}
	if more := len(e.Kinds) - maxShown; more > 0 {
		s.add(StatusWarn, "more", "%d other kinds: run switchyard errors", more)
	}
	if len(e.Kinds) == 0 {
		s.add(StatusOK, "log", "no errors or warnings from nodes")
	}
	return s
}

func (r *DailyReport) backups(context.Context) Section {
	s := Section{Title: "Backups"}
	if r.Backups == nil {
		s.add(StatusFail, "folder", "BACKUP_DIR is unknown")
		return s
	}
	state, err := r.Backups.Status()
	if err != nil {
		s.fail("folder", err)
		return s
	}
	for _, err := range state.Damaged {
		s.fail("damaged", err)
	}
	checkAge := func(name string, at time.Time, limit time.Duration, detailIfNone string) {
		switch age := time.Since(at); {
		case at.IsZero():
			s.add(StatusFail, name, "%s", detailIfNone)
		case age > limit:
			s.add(StatusFail, name, "is %s old, over the limit of %s", formatAge(age), formatAge(limit))
		default:
			s.add(StatusOK, name, "is %s old", formatAge(age))
		}
	}
	if n := state.Newest(); n == nil {
		s.add(StatusFail, "newest backup", "there is none: run switchyard backup")
	} else {
		checkAge("newest backup", n.Finished, r.MaxBackupAge, "")
	}
	var proved time.Time
	if _, p := state.LastVerified(); p != nil {
		proved = p.Verified
	}
	checkAge("last verification", proved, r.MaxProofAge, "no backup has been verified yet: run switchyard backup verify")
	checkAge("newest WAL segment", state.NewestWAL, r.MaxWALAge, "the archive is empty")
	return s
}
