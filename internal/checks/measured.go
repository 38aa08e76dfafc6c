package checks

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"switchyard/internal/backup"
	"switchyard/internal/stack"
)

// A measurement compares the value of an expression with a bound.
type measurement struct {
	name, expr string
	unit       string // as FormatValue takes it
	bound      bound
	// required says that an empty answer is a warning.
	required bool
}

// systemMeasurements are of this moment.
var systemMeasurements = []measurement{
	{"memory of the host", `1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes`, "%", memoryBound, true},
	{"fullest disk", `max(1 - node_filesystem_avail_bytes{fstype!~"tmpfs|overlay|squashfs|ramfs"} / node_filesystem_size_bytes{fstype!~"tmpfs|overlay|squashfs|ramfs"})`, "%", diskBound, true},
	{"load per core", `max(node_load15) / count(count by (cpu) (node_cpu_seconds_total))`, "", loadBound, true},
	{"memory of the fullest node", `max(process_resident_memory_bytes{job="websocket-app"} / (switchyard_memory_limit_bytes{job="websocket-app"} > 0))`, "%", memoryBound, false},
	{"clock error", `max(abs(node_timex_offset_seconds))`, "s", clockBound, false},
	{"certificate expires in, days", `(min(probe_ssl_earliest_cert_expiry) - time()) / 86400`, "", certificateBound, false},
	{"replication lag, seconds", `max(pg_server_replay_age_seconds)`, "", standbyBound, false},
	{"memory of Redis", `max(redis_memory_used_bytes / (redis_memory_max_bytes > 0))`, "%", limitBound, false},
	{"connections of PostgreSQL", `sum(pg_stat_database_numbackends) / min(pg_settings_max_connections)`, "%", limitBound, false},
}

// nightMeasurements are of Facts.Lookback. SPAN stands for a range of that length, STEPS
// for the range of a subquery that is evaluated every minute, SECONDS for the number.
var nightMeasurements = []measurement{
	{"most connections at once", `max_over_time(sum(websocket_active_connections)STEPS)`, "", unbounded, true},
	{"published", `sum(increase(websocket_messages_received_total{type="publish"}SPAN)) or vector(0)`, "", unbounded, true},
	{"sent to clients", `sum(increase(websocket_messages_sent_totalSPAN))`, "", unbounded, true},
	{"ack, p99", `histogram_quantile(0.99, sum by (le) (rate(websocket_publish_duration_seconds_bucketSPAN)))`, "s", nightLatencyBound, false},
	{"delivery, p99", `histogram_quantile(0.99, sum by (le) (rate(websocket_delivery_duration_seconds_bucketSPAN)))`, "s", nightLatencyBound, false},
	{"server errors", `sum(increase(websocket_errors_total{type=~"internal|unavailable"}SPAN)) or vector(0)`, "", serverErrorsBound, true},
	{"clients closed as slow", `sum(increase(websocket_disconnections_total{reason="slow"}SPAN)) or vector(0)`, "", slowClientsBound, false},
	{"gap repairs", `sum(increase(websocket_repairs_totalSPAN)) or vector(0)`, "", repairsBound, false},
	{"seconds without the broker", `sum(avg_over_time((broker_up == bool 0)STEPS)) * SECONDS`, "", brokerDownBound, false},
	{"restarts of nodes", nodeRestarts, "", anyBound, false},
	{"alerts that fired", `count(count by (alertname) (max_over_time(ALERTS{alertstate="firing",alertname!="Watchdog"}SPAN))) or vector(0)`, "", anyBound, false},
}

// nodeRestarts counts starts of nodes without those of deploys, which bring another
// deployment to the same address, as the alert ContainerRestarts does.
const nodeRestarts = `sum(
  changes(process_start_time_seconds{job="websocket-app"}SPAN)
  - on (instance, color) group_left ()
  (count by (instance, color) (count by (instance, color, deployment) (count_over_time(switchyard_build_info{job="websocket-app"}SPAN))) - 1)
) or vector(0)`

func system(ctx context.Context, f *Facts) []Finding {
	return measure(ctx, f, systemMeasurements, strings.NewReplacer())
}

func night(ctx context.Context, f *Facts) []Finding {
	seconds := int(f.Lookback.Seconds())
	span := max(seconds, 60)
	return measure(ctx, f, nightMeasurements, strings.NewReplacer("SPAN", fmt.Sprintf("[%ds]", span), "STEPS", fmt.Sprintf("[%ds:1m]", span), "SECONDS", fmt.Sprint(seconds)))
}

// measure returns a finding for each measurement. A query that Prometheus refuses is one
// failure; a Prometheus that does not answer is one for all that follow.
func measure(ctx context.Context, f *Facts, all []measurement, fill *strings.Replacer) (findings []Finding) {
	if f.Prometheus == nil {
		return found(Fail, "Prometheus", "%v", f.PrometheusErr)
	}
	for _, m := range all {
		value, known, err := f.Prometheus.QueryValue(ctx, fill.Replace(m.expr), f.now())
		switch {
		case errors.Is(err, stack.ErrNoPrometheus):
			return append(findings, Finding{Fail, "Prometheus", err.Error()})
		case err != nil:
			findings = append(findings, Finding{Fail, m.name, err.Error()})
		case known:
			findings = append(findings, Finding{m.bound.level(value), m.name, FormatValue(value, m.unit)})
		case m.required:
			findings = append(findings, Finding{Warn, m.name, "no data"})
		}
	}
	return findings
}

// targets checks that Prometheus scrapes all that it should.
func targets(ctx context.Context, f *Facts) []Finding {
	if f.Prometheus == nil {
		return nil // the check "system" says so
	}
	down, err := f.Prometheus.Query(ctx, "up == 0")
	if err != nil {
		return Failed(err)
	}
	var findings []Finding
	for _, d := range down {
		findings = append(findings, Finding{Fail, "scrape", fmt.Sprintf("%s %s can't be scraped", d.Labels["job"], d.Labels["instance"])})
	}
	return findings
}

// alerts checks that none fires. Those of severity info, such as the Watchdog that always
// fires, do not count.
func alerts(ctx context.Context, f *Facts) []Finding {
	if f.Prometheus == nil {
		return nil // as targets
	}
	firing, err := f.Prometheus.Alerts(ctx)
	if err != nil {
		return Failed(err)
	}
	var findings []Finding
	for _, a := range firing {
		level := Warn
		switch a.Severity {
		case "critical", "page":
			level = Fail
		case "none", "info", "":
			continue
		}
		findings = append(findings, Finding{level, "alert", strings.TrimSpace(fmt.Sprintf("%s fires (%s) %s", a.Name, a.Severity, a.Instance))})
	}
	if len(findings) == 0 {
		return Okf("none firing")
	}
	return findings
}

// scrapedReplicas checks that Prometheus has the metrics of all live replicas, which a
// deploy is judged by.
func scrapedReplicas(ctx context.Context, f *Facts) []Finding {
	live := f.Snapshot.Spec(f.Route.Live)
	if live.Replicas == 0 {
		if _, err := f.Metrics.Alerts(ctx); err != nil { // any result will do
			return Failed(err)
		}
		return Okf("Prometheus answers")
	}
	window, err := f.Metrics.Window(ctx, live.Deployment, f.Window)
	if err != nil {
		return Failf("errors, response time and memory can't be judged: %v; --without-metrics continues with health checks only", err)
	}
	if window.Replicas < live.Replicas {
		return Failf("Prometheus sees %d of %d live replicas", window.Replicas, live.Replicas)
	}
	return Okf("Prometheus sees all %d live replicas", window.Replicas)
}

// alerting checks that alerts reach Alertmanager.
func alerting(ctx context.Context, f *Facts) []Finding {
	address, err := f.Stack.ServiceURL(ctx, "alertmanager", "9093")
	if err != nil {
		return Failed(err)
	}
	if status, _, err := stack.Fetch(ctx, f.Stack.Client, address+"/-/ready"); err != nil || status != http.StatusOK {
		return Failed(errors.Join(fmt.Errorf("the alertmanager is not ready (status %d)", status), err))
	}
	prometheus, err := f.Metrics.FindURL(ctx)
	if err != nil {
		return Failed(err)
	}
	var known struct {
		Data struct {
			ActiveAlertmanagers []struct{ URL string } `json:"activeAlertmanagers"`
		}
	}
	if err := stack.FetchJSON(ctx, f.Stack.Client, prometheus+"/api/v1/alertmanagers", &known); err != nil {
		return Failed(err)
	}
	if len(known.Data.ActiveAlertmanagers) == 0 {
		return Failf("Prometheus sends alerts to no Alertmanager")
	}
	return Okf("Alertmanager is ready, and Prometheus is connected to it")
}

// recentErrors checks that the live color has no more server errors than a deploy
// tolerates.
func recentErrors(ctx context.Context, f *Facts) []Finding {
	live := f.Snapshot.Spec(f.Route.Live)
	if live.Replicas == 0 {
		return Okf("no replica is live")
	}
	window, err := f.Metrics.Window(ctx, live.Deployment, recentErrorsSpan)
	if err != nil {
		return Failed(err)
	}
	text := fmt.Sprintf("%.2f%% of %.0f operations in %v failed with a server error", 100*window.ErrorRatio(), window.Operations, recentErrorsSpan)
	if window.Operations >= float64(f.ErrorSamples) && 100*window.ErrorRatio() > f.ErrorPercent {
		return Failf("%s", text)
	}
	return Okf("%s", text)
}

// FormatValue formats a number: unit is "B" for bytes, "s" for seconds, "%" for a
// share of 1, or empty.
func FormatValue(v float64, unit string) string {
	switch {
	case unit == "B":
		return backup.Bytes(v).String()
	case unit == "s" && v < 1:
		return fmt.Sprintf("%.1f ms", v*1000)
	case unit == "s":
		return fmt.Sprintf("%.2f s", v)
	case unit == "%":
		return fmt.Sprintf("%.1f%%", v*100)
	case v == float64(int64(v)) || v >= 1000:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.1f", v)
}
