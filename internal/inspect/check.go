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

// A Round is the morning's look at everything.
type Round struct {
	Stack Stack
	// Prometheus is nil when it was not found; Missing says why.
	Prometheus *Prometheus
	Missing    error
	Backups    *backup.Vault
	// Night is how far back "overnight" goes.
	Night time.Duration
	// MaxAge is how old the newest backup may be, MaxProof the newest proof and
	// MaxWAL the newest segment.
	MaxAge, MaxProof, MaxWAL time.Duration
}

// Bounds that a morning's page marks, beside those of alerts: DefaultRound has
// them.
const (
	memoryLook, memoryBad = 0.80, 0.90
	diskLook, diskBad     = 0.80, 0.92
	certificateLook       = 21 * 24 * time.Hour
	certificateBad        = 7 * 24 * time.Hour
	lagLook               = 30 // seconds
)

// Page looks at everything. It never fails: what can't be told is a bad line.
func (r *Round) Page(ctx context.Context) *Page {
	p := &Page{At: time.Now().UTC()}
	for _, look := range []func(context.Context) Section{r.services, r.system, r.overnight, r.errors, r.backups} {
		p.Sections = append(p.Sections, look(ctx))
	}
	return p
}

func (r *Round) services(ctx context.Context) Section {
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
	well := 0
	for _, name := range names {
		for _, c := range byService[name] {
			mark, says := judgeContainer(c)
			if isNode(name) && !c.Running && c.ExitCode == 0 {
				mark = Good // the color that is not live
			}
			if mark == Good {
				well++
				continue
			}
			s.add(mark, c.Name, "%s", says)
		}
	}
	if live == 0 {
		s.add(Bad, "nodes", "%v", ErrNoNode)
	}
	s.add(Good, "containers", "%d as they should be, %d of them nodes of the service", well, live)
	if r.Prometheus != nil {
		r.ready(ctx, &s)
	}
	return s
}

func judgeContainer(c backup.Container) (Mark, string) {
	switch {
	case !c.Running:
		return Bad, fmt.Sprintf("does not run: %s", c.Status)
	case c.Health == "starting": // not checked yet
		return Look, "was just started"
	case c.Health != "" && c.Health != "healthy":
		return Bad, fmt.Sprintf("runs and is %s", c.Health)
	case c.Restarts > 0:
		return Look, fmt.Sprintf("was restarted %d times", c.Restarts)
	}
	return Good, ""
}

// ready asks which targets Prometheus can't reach, and what fires.
func (r *Round) ready(ctx context.Context, s *Section) {
	down, err := r.Prometheus.Ask(ctx, "up == 0")
	if err != nil {
		s.fail("targets", err)
		return
	}
	for _, d := range down {
		s.add(Bad, "scrape", "%s %s can't be scraped", d.Labels["job"], d.Labels["instance"])
	}
	firing, err := r.Prometheus.Ask(ctx, `ALERTS{alertstate="firing"} unless ALERTS{alertname="Watchdog"}`) // which fires always
	if err != nil {
		s.fail("alerts", err)
		return
	}
	for _, f := range firing {
		mark := Look
		if f.Labels["severity"] == "critical" || f.Labels["severity"] == "page" {
			mark = Bad
		}
		s.add(mark, "alert", "%s fires (%s) %s", f.Labels["alertname"], f.Labels["severity"], f.Labels["instance"])
	}
	if len(firing) == 0 {
		s.add(Good, "alerts", "none fires")
	}
}

// A question is one that a page asks Prometheus: what it is about, how, and from
// where on the answer is bad. Bounds of 0 mark nothing.
type question struct {
	what, expr, unit string
	look, bad        float64
	below            bool // the lower, the worse
	// needed says that no answer is bad news.
	needed bool
}

func (r *Round) system(ctx context.Context) Section {
	s := Section{Title: "System"}
	r.askAll(ctx, &s, []question{
		{"memory of the host", `1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes`, "%", memoryLook, memoryBad, false, true},
		{"fullest disk", `max(1 - node_filesystem_avail_bytes{fstype!~"tmpfs|overlay|squashfs|ramfs"} / node_filesystem_size_bytes{fstype!~"tmpfs|overlay|squashfs|ramfs"})`, "%", diskLook, diskBad, false, true},
		{"load for each core", `max(node_load15) / count(count by (cpu) (node_cpu_seconds_total))`, "", 1, 3, false, true},
		{"memory of the fullest node", `max(process_resident_memory_bytes{job="switchyard"} / (switchyard_memory_limit_bytes{job="switchyard"} > 0))`, "%", memoryLook, memoryBad, false, false},
		{"clock error", `max(abs(node_timex_offset_seconds))`, "s", 0.1, 1, false, false},
		{"certificate is good for, days", `(min(probe_ssl_earliest_cert_expiry) - time()) / 86400`, "", certificateLook.Hours() / 24, certificateBad.Hours() / 24, true, false},
		{"replication lag, seconds", `max(pg_server_replay_age_seconds)`, "", lagLook, 300, false, false},
		{"memory of Redis", `max(redis_memory_used_bytes / (redis_memory_max_bytes > 0))`, "%", memoryLook, 0.95, false, false},
		{"connections of PostgreSQL", `sum(pg_stat_database_numbackends) / min(pg_settings_max_connections)`, "%", 0.8, 0.95, false, false},
	})
	return s
}

func (r *Round) overnight(ctx context.Context) Section {
	s := Section{Title: "Since " + time.Now().Add(-r.Night).UTC().Format("2006-01-02 15:04") + " UTC"}
	span := fmt.Sprintf("[%ds]", max(int(r.Night.Seconds()), 60))
	r.askAll(ctx, &s, []question{
		{"most connections at once", `max_over_time(sum(websocket_active_connections)` + sub(span) + `)`, "", 0, 0, false, true},
		{"published", `sum(increase(websocket_messages_received_total{type="publish"}` + span + `)) or vector(0)`, "", 0, 0, false, true},
		{"handed to clients", `sum(increase(websocket_messages_sent_total` + span + `))`, "", 0, 0, false, true},
		{"ack, p99", `histogram_quantile(0.99, sum by (le) (rate(websocket_publish_duration_seconds_bucket` + span + `)))`, "s", 0.1, 1, false, false},
		{"delivery, p99", `histogram_quantile(0.99, sum by (le) (rate(websocket_delivery_duration_seconds_bucket` + span + `)))`, "s", 0.1, 1, false, false},
		{"faults of ours", `sum(increase(websocket_errors_total{type=~"internal|unavailable"}` + span + `)) or vector(0)`, "", 1, 1000, false, true},
		{"clients closed as slow", `sum(increase(websocket_disconnections_total{reason="slow"}` + span + `)) or vector(0)`, "", 100, 0, false, false},
		{"repairs from the log", `sum(increase(websocket_repairs_total` + span + `)) or vector(0)`, "", 10_000, 0, false, false},
		{"seconds without the broker", `sum(avg_over_time((broker_up == bool 0)` + sub(span) + `)) * ` + fmt.Sprint(int(r.Night.Seconds())), "", 5, 600, false, false},
		{"nodes that were restarted", `sum(changes(process_start_time_seconds{job="switchyard"}` + span + `)) or vector(0)`, "", 1, 0, false, false},
		{"alerts that fired", `count(count by (alertname) (max_over_time(ALERTS{alertstate="firing",alertname!="Watchdog"}` + span + `))) or vector(0)`, "", 1, 0, false, false},
	})
	return s
}

// sub makes a range of an expression, looked at each minute.
func sub(span string) string { return strings.TrimSuffix(span, "]") + ":1m]" }

// askAll asks each question. One that Prometheus can't understand, or can't
// answer, is a bad line; when it is gone, one line for all.
func (r *Round) askAll(ctx context.Context, s *Section, questions []question) {
	if r.Prometheus == nil {
		s.fail("Prometheus", r.Missing)
		return
	}
	for _, q := range questions {
		value, ok, err := r.Prometheus.One(ctx, q.expr, time.Now())
		switch {
		case errors.Is(err, ErrNoPrometheus):
			s.fail("Prometheus", err)
			return
		case err != nil:
			s.fail(q.what, err)
		case !ok && q.needed:
			s.add(Look, q.what, "nothing measures it")
		case ok:
			s.add(q.mark(value), q.what, "%s", amount(value, q.unit))
		}
	}
}

func (q *question) mark(v float64) Mark {
	over := func(bound float64) bool {
		return bound != 0 && (q.below && v <= bound || !q.below && v >= bound)
	}
	switch {
	case over(q.bad):
		return Bad
	case over(q.look):
		return Look
	}
	return Good
}

func (r *Round) errors(ctx context.Context) Section {
	s := Section{Title: "Errors"}
	e, err := ReadErrors(ctx, r.Stack, nil, time.Now().Add(-r.Night))
	if err != nil {
		s.fail("log", err)
		return s
	}
	const most = 5
	for _, k := range e.Kinds[:min(len(e.Kinds), most)] {
		mark := Look
		if k.Level == "ERROR" {
			mark = Bad
		}
		s.add(mark, k.Level, "%d times: %s %s", k.Count, k.Says, short(k.Example, 100))
	}
	if more := len(e.Kinds) - most; more > 0 {
		s.add(Look, "more", "%d other kinds: switchyard errors", more)
	}
	if len(e.Kinds) == 0 {
		s.add(Good, "log", "no error and no warning of a node")
	}
	return s
}

func (r *Round) backups(context.Context) Section {
	s := Section{Title: "Backups"}
	if r.Backups == nil {
		s.add(Bad, "folder", "BACKUP_DIR is not known")
		return s
	}
	state, err := r.Backups.State()
	if err != nil {
		s.fail("folder", err)
		return s
	}
	for _, err := range state.Damaged {
		s.fail("damaged", err)
	}
	fresh := func(what string, at time.Time, limit time.Duration, never string) {
		switch age := time.Since(at); {
		case at.IsZero():
			s.add(Bad, what, "%s", never)
		case age > limit:
			s.add(Bad, what, "is %s old; at most %s is fine", ago(age), ago(limit))
		default:
			s.add(Good, what, "is %s old", ago(age))
		}
	}
	if n := state.Newest(); n == nil {
		s.add(Bad, "newest backup", "there is none: switchyard backup")
	} else {
		fresh("newest backup", n.Finished, r.MaxAge, "")
	}
	var proved time.Time
	if _, p := state.LastProof(); p != nil {
		proved = p.Verified
	}
	fresh("newest proof", proved, r.MaxProof, "no backup was ever verified: switchyard backup verify")
	fresh("newest WAL segment", state.NewestWAL, r.MaxWAL, "the archive is empty")
	return s
}
