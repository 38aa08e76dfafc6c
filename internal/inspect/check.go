package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"switchyard/internal/backup"
)

// A DailyReport is the morning's look at everything.
type DailyReport struct {
	Stack Stack
	// Prometheus is nil when it was not found; Missing says why.
	Prometheus    *Prometheus
	PrometheusErr error
	Backups       *backup.Repository
	// Lookback is how far back "overnight" goes.
	Lookback time.Duration
	// MaxBackupAge is how old the newest backup may be, MaxProofAge the newest proof and
	// MaxWALAge the newest segment.
	MaxBackupAge, MaxProofAge, MaxWALAge time.Duration
}

// Bounds that a morning's page marks, beside those of alerts: DefaultRound has
// them.
const (
	memoryWarn, memoryFail = 0.80, 0.90
	diskWarn, diskFail     = 0.80, 0.92
	certificateWarn        = 21 * 24 * time.Hour
	certificateFail        = 7 * 24 * time.Hour
	lagWarn                = 30 // seconds
)

// Page looks at everything. It never fails: what can't be told is a bad line.
func (r *DailyReport) Page(ctx context.Context) *Page {
	p := &Page{At: time.Now().UTC()}
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
	byService := map[string][]backup.Container{}
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
	s.add(StatusOK, "containers", "%d as they should be, %d of them nodes of the service", healthy, live)
	if r.Prometheus != nil {
		r.targetsAndAlerts(ctx, &s)
	}
	return s
}

func containerStatus(c backup.Container) (Status, string) {
	switch {
	case !c.Running:
		return StatusFail, fmt.Sprintf("does not run: %s", c.Status)
	case c.Health == "starting": // not checked yet
		return StatusWarn, "was just started"
	case c.Health != "" && c.Health != "healthy":
		return StatusFail, fmt.Sprintf("runs and is %s", c.Health)
	case c.Restarts > 0:
		return StatusWarn, fmt.Sprintf("was restarted %d times", c.Restarts)
	}
	return StatusOK, ""
}

// targetsAndAlerts asks which targets Prometheus can't reach, and what fires.
func (r *DailyReport) targetsAndAlerts(ctx context.Context, s *Section) {
	down, err := r.Prometheus.Query(ctx, "up == 0")
	if err != nil {
		s.fail("targets", err)
		return
	}
	for _, d := range down {
		s.add(StatusFail, "scrape", "%s %s can't be scraped", d.Labels["job"], d.Labels["instance"])
	}
	firing, err := r.Prometheus.Query(ctx, `ALERTS{alertstate="firing"} unless ALERTS{alertname="Watchdog"}`) // which fires always
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
		s.add(StatusOK, "alerts", "none fires")
	}
}

// A metricCheck is one that a page asks Prometheus: what it is about, how, and from
// where on the answer is bad. Bounds of 0 mark nothing.
type metricCheck struct {
	name, expr, unit string
	warn, fail       float64
	lowerIsWorse     bool // the lower, the worse
	// needed says that no answer is bad news.
	required bool
}

func (r *DailyReport) system(ctx context.Context) Section {
	s := Section{Title: "System"}
	r.runChecks(ctx, &s, []metricCheck{
		{"memory of the host", `1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes`, "%", memoryWarn, memoryFail, false, true},
		{"fullest disk", `max(1 - node_filesystem_avail_bytes{fstype!~"tmpfs|overlay|squashfs|ramfs"} / node_filesystem_size_bytes{fstype!~"tmpfs|overlay|squashfs|ramfs"})`, "%", diskWarn, diskFail, false, true},
		{"load for each core", `max(node_load15) / count(count by (cpu) (node_cpu_seconds_total))`, "", 1, 3, false, true},
		{"memory of the fullest node", `max(process_resident_memory_bytes{job="switchyard"} / (switchyard_memory_limit_bytes{job="switchyard"} > 0))`, "%", memoryWarn, memoryFail, false, false},
		{"clock error", `max(abs(node_timex_offset_seconds))`, "s", 0.1, 1, false, false},
		{"certificate is good for, days", `(min(probe_ssl_earliest_cert_expiry) - time()) / 86400`, "", certificateWarn.Hours() / 24, certificateFail.Hours() / 24, true, false},
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
		{"handed to clients", `sum(increase(websocket_messages_sent_total` + span + `))`, "", 0, 0, false, true},
		{"ack, p99", `histogram_quantile(0.99, sum by (le) (rate(websocket_publish_duration_seconds_bucket` + span + `)))`, "s", 0.1, 1, false, false},
		{"delivery, p99", `histogram_quantile(0.99, sum by (le) (rate(websocket_delivery_duration_seconds_bucket` + span + `)))`, "s", 0.1, 1, false, false},
		{"faults of ours", `sum(increase(websocket_errors_total{type=~"internal|unavailable"}` + span + `)) or vector(0)`, "", 1, 1000, false, true},
		{"clients closed as slow", `sum(increase(websocket_disconnections_total{reason="slow"}` + span + `)) or vector(0)`, "", 100, 0, false, false},
		{"repairs from the log", `sum(increase(websocket_repairs_total` + span + `)) or vector(0)`, "", 10_000, 0, false, false},
		{"seconds without the broker", `sum(avg_over_time((broker_up == bool 0)` + subquery(span) + `)) * ` + fmt.Sprint(int(r.Lookback.Seconds())), "", 5, 600, false, false},
		{"nodes that were restarted", `sum(changes(process_start_time_seconds{job="switchyard"}` + span + `)) or vector(0)`, "", 1, 0, false, false},
		{"alerts that fired", `count(count by (alertname) (max_over_time(ALERTS{alertstate="firing",alertname!="Watchdog"}` + span + `))) or vector(0)`, "", 1, 0, false, false},
	})
	return s
}

// subquery makes a range of an expression, looked at each minute.
func subquery(span string) string { return strings.TrimSuffix(span, "]") + ":1m]" }

// runChecks asks each question. One that Prometheus can't understand, or can't
// answer, is a bad line; when it is gone, one line for all.
func (r *DailyReport) runChecks(ctx context.Context, s *Section, checks []metricCheck) {
	if r.Prometheus == nil {
		s.fail("Prometheus", r.PrometheusErr)
		return
	}
	for _, q := range checks {
		value, ok, err := r.Prometheus.QueryValue(ctx, q.expr, time.Now())
		switch {
		case errors.Is(err, ErrNoPrometheus):
			s.fail("Prometheus", err)
			return
		case err != nil:
			s.fail(q.name, err)
		case !ok && q.required:
			s.add(StatusWarn, q.name, "nothing measures it")
		case ok:
			s.add(q.status(value), q.name, "%s", formatValue(value, q.unit))
		}
	}
}

func (q *metricCheck) status(v float64) Status {
	over := func(bound float64) bool {
		return bound != 0 && (q.lowerIsWorse && v <= bound || !q.lowerIsWorse && v >= bound)
	}
	switch {
	case over(q.fail):
		return StatusFail
	case over(q.warn):
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
		s.add(StatusWarn, "more", "%d other kinds: switchyard errors", more)
	}
	if len(e.Kinds) == 0 {
		s.add(StatusOK, "log", "no error and no warning of a node")
	}
	return s
}

func (r *DailyReport) backups(context.Context) Section {
	s := Section{Title: "Backups"}
	if r.Backups == nil {
		s.add(StatusFail, "folder", "BACKUP_DIR is not known")
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
			s.add(StatusFail, name, "is %s old; at most %s is fine", formatAge(age), formatAge(limit))
		default:
			s.add(StatusOK, name, "is %s old", formatAge(age))
		}
	}
	if n := state.Newest(); n == nil {
		s.add(StatusFail, "newest backup", "there is none: switchyard backup")
	} else {
		checkAge("newest backup", n.Finished, r.MaxBackupAge, "")
	}
	var proved time.Time
	if _, p := state.LastVerified(); p != nil {
		proved = p.Verified
	}
	checkAge("newest proof", proved, r.MaxProofAge, "no backup was ever verified: switchyard backup verify")
	checkAge("newest WAL segment", state.NewestWAL, r.MaxWALAge, "the archive is empty")
	return s
}
