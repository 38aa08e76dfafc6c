package deploy

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
	"switchyard/internal/testkit"
)

// recordedPreflight returns the preflight checks of the recorded stack. outputs and
// change replace parts of the record.
func recordedPreflight(t *testing.T, outputs testkit.DockerOutputs, change func(testkit.Transport) testkit.Transport) *Preflight {
	t.Helper()
	testkit.FakeDocker(t, outputs)
	answers := testkit.RecordedTransport(t)
	if change != nil {
		answers = change(answers)
	}
	s := &stack.Stack{
		Dir: t.TempDir(), File: stack.DefaultFile, Project: "switchyard-e2e", TraefikAPI: "http://traefik:8080", PrometheusURL: "http://prometheus:9090",
		Env: map[string]string{"DOMAIN": "chat.invalid", "HTTPS_PORT": "127.0.0.1:1"}, Client: &http.Client{Transport: answers},
	}
	p := NewPreflight(s, DefaultSettings())
	p.Replicas.Traefik.Dir = testkit.TraefikDir(t)
	return p
}

func TestPreflightOfAHealthyStack(t *testing.T) {
	all, err := recordedPreflight(t, nil, nil).Run(t.Context(), stack.Image{Ref: "v2", ID: "sha256:new"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"compose": "is valid, 13 services", "traefik": "the files agree, and Traefik routes to blue", "components": "services run and are healthy",
		"live": "3 replicas of blue serve", "memory": "MiB available, the live color uses", "metrics": "sees all 3 live replicas",
		"alerting": "Alertmanager is ready", "alerts": "none firing", "errors": "0.00% of 1741 operations", "migrations": "none pending",
		"redis": "3 replicas are connected", "replica": "1 standbys follow postgres", "backup": "verified 1h0m0s ago", "drain": "stopping waits 1m35s", "nofile": "enough for",
	}
	for _, c := range all {
		if text, known := want[c.Name]; known && (c.Status != statusOK || !strings.Contains(c.Text, text)) {
			t.Errorf("%+v, want %q", c, text)
		}
	}
	if len(all) != len(want)+5 { // the results of disk, certificate, dns, window and scan depend on the machine
		t.Errorf("%d checks, want %d", len(all), len(want)+5)
	}
}

// Each check fails for its reason, and names it.
func TestPreflightReportsFailures(t *testing.T) {
	dead := strings.Replace(strings.Replace(testkit.Recorded(t, "inspect.json"), `"Running":true`, `"Running":false`, 1), `"Status":"running"`, `"Status":"exited"`, 1)
	stopped := strings.ReplaceAll(testkit.Recorded(t, "inspect.json"), `"Running":true`, `"Running":false`)
	third := `,{"metric":{"color":"blue","instance":"10.214.32.15:8000","job":"websocket-app"},"value":[1795699506.858,"30425088"]}`
	for name, tt := range map[string]struct {
		outputs        testkit.DockerOutputs
		change         func(testkit.Transport) testkit.Transport
		withoutMetrics bool
		want           CheckResult
	}{
		"bad compose":   {outputs: testkit.DockerOutputs{"config --format json": "Error: services.x: no such key\n"}, want: CheckResult{"compose", statusFail, "no such key"}},
		"one is down":   {outputs: testkit.DockerOutputs{"inspect --type container": dead}, want: CheckResult{"components", statusFail, "alertmanager does not run: exited with 0"}},
		"all are down":  {outputs: testkit.DockerOutputs{"inspect --type container": stopped}, want: CheckResult{"live", statusFail, "`docker compose up -d` starts it"}},
		"breaking":      {outputs: testkit.DockerOutputs{"run --rm": `[{"name":"0009_drop","breaking":9}]`}, want: CheckResult{"migrations", statusFail, "0009_drop is not additive"}},
		"adding":        {outputs: testkit.DockerOutputs{"run --rm": `[{"name":"0009_add","breaking":0}]`}, want: CheckResult{"migrations", statusOK, "0009_add pending; all are additive"}},
		"no standby":    {outputs: testkit.DockerOutputs{"psql": "0|0\n"}, want: CheckResult{"replica", statusFail, "no standby follows postgres"}},
		"in step":       {outputs: testkit.DockerOutputs{"psql": "1|30\n"}, want: CheckResult{"replica", statusOK, "30 s behind"}},
		"lagging":       {outputs: testkit.DockerOutputs{"psql": "1|31\n"}, want: CheckResult{"replica", statusWarn, "31 s behind"}},
		"stuck":         {outputs: testkit.DockerOutputs{"psql": "1|301\n"}, want: CheckResult{"replica", statusFail, "301 s behind"}},
		"short grace":   {outputs: testkit.DockerOutputs{"config --format json": strings.ReplaceAll(testkit.Recorded(t, "config.json"), "1m35s", "1m0s")}, want: CheckResult{"drain", statusFail, "needs 30 s more"}},
		"critical":      {change: withReplaced(`"severity":"info"`, `"severity":"critical"`), want: CheckResult{"alerts", statusFail, "Watchdog fires (critical)"}},
		"few seen":      {change: withReplaced(third, ""), want: CheckResult{"metrics", statusFail, "sees 2 of 3 live replicas"}},
		"no Prometheus": {change: withoutPort("9090"), want: CheckResult{"metrics", statusFail, "--without-metrics continues"}},
		"no metrics":    {change: withoutPort("9090"), withoutMetrics: true, want: CheckResult{"metrics", statusWarn, "ignored: "}},
		"none ready":    {change: withReplaced(`"status":"ready"`, `"status":"unready"`), want: CheckResult{"live", statusFail, "0 of 3 replicas of blue serve"}},
		"full Redis":    {change: withReplaced(`"broker":"up"`, `"broker":"up","sessions":"refused"`), want: CheckResult{"redis", statusFail, "Redis refuses to store sessions"}},
		"shared state":  {change: withReplaced(`"broker":"up"`, `"broker":"up","sessions":"down"`), want: CheckResult{"redis", statusFail, "the shared state is down"}},
		"broker":        {change: withReplaced(`"broker":"up"`, `"broker":"down"`), want: CheckResult{"redis", statusFail, "the broker is down"}},
		"Traefik lags":  {change: withReplaced(`"service":"app-blue"`, `"service":"app-green"`), want: CheckResult{"traefik", statusFail, "active.yml says blue and Traefik routes to green"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := recordedPreflight(t, tt.outputs, tt.change)
			p.WithoutMetrics = tt.withoutMetrics
			facts, err := p.collect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			all := p.checks(stack.Image{Ref: "v2", ID: "sha256:new"})
			one := all[slices.IndexFunc(all, func(c checks.Check) bool { return c.Name == tt.want.Name })]
			got := p.runCheck(t.Context(), one, facts)
			if got.Status != tt.want.Status || !strings.Contains(got.Text, tt.want.Text) {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}
