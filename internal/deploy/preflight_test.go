package deploy

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// preflight is one on the record.
func preflight(t *testing.T, says dockerSays, change func(wire) wire) *Preflight {
	t.Helper()
	c := docker(t, says)
	w := stackWire(t)
	if change != nil {
		w = change(w)
	}
	answers(t, w)
	s := &Stack{
		Dir: c.Dir, File: c.File, Project: c.Project, TraefikAPI: "http://traefik:8080", Prometheus: "http://prometheus:9090",
		Env: map[string]string{"DOMAIN": "chat.invalid", "HTTPS_PORT": "127.0.0.1:1"},
	}
	c.Balancer = s.Compose(nil).Balancer
	c.Balancer.Dir = traefikFolder(t).Dir
	return s.Preflight(c, DefaultSettings(), State{Dir: t.TempDir()})
}

// A stack that is well, as it was recorded.
func TestPreflightOfAStackThatIsWell(t *testing.T) {
	all, err := preflight(t, nil, nil).Run(t.Context(), Image{Ref: "v2", ID: "sha256:new"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"compose": "is valid, 13 services", "traefik": "the files agree, and Traefik sends to blue", "components": "services run and are healthy",
		"live": "3 replicas of blue serve", "memory": "MiB available, the live color holds", "metrics": "sees all 3 live replicas",
		"alerting": "Alertmanager is ready", "alerts": "none fires", "errors": "0.00 % of 1741 operations", "migrations": "none pending",
		"redis": "3 replicas hear", "replica": "1 follow postgres", "backup": "proved 1h0m0s ago", "drain": "stopping waits 1m35s", "nofile": "enough for",
	}
	for _, c := range all {
		if text, known := want[c.Name]; known && (c.Answer != answerOK || !strings.Contains(c.Text, text)) {
			t.Errorf("%+v, want %q", c, text)
		}
	}
	if len(all) != len(want)+5 { // the disk's, the certificate's, the name's, the window's and the scan's depend on where this runs
		t.Errorf("%d checks", len(all))
	}
}

// What stops a deploy, or would and may.
func TestPreflightSaysNo(t *testing.T) {
	dead := strings.Replace(recorded(t, "inspect.json"), `"Running":true`, `"Running":false`, 1)
	stopped := strings.ReplaceAll(recorded(t, "inspect.json"), `"Running":true`, `"Running":false`)
	third := `,{"metric":{"color":"blue","instance":"10.214.32.15:8000","job":"switchyard"},"value":[1795699506.858,"30425088"]}`
	for name, tt := range map[string]struct {
		says  dockerSays
		wire  func(wire) wire
		blind bool
		want  Check
	}{
		"bad compose":   {says: dockerSays{"config --format json": "Error: services.x: no such key\n"}, want: Check{"compose", answerFail, "no such key"}},
		"one is down":   {says: dockerSays{"inspect --type container": dead}, want: Check{"components", answerFail, "alertmanager does not run (exit code 0)"}},
		"all are down":  {says: dockerSays{"inspect --type container": stopped}, want: Check{"live", answerFail, "`docker compose up -d` starts it"}},
		"breaking":      {says: dockerSays{"run --rm": `[{"name":"0009_drop","breaking":9}]`}, want: Check{"migrations", answerFail, "0009_drop does not only add"}},
		"adding":        {says: dockerSays{"run --rm": `[{"name":"0009_add","breaking":0}]`}, want: Check{"migrations", answerOK, "0009_add pending; they only add"}},
		"no standby":    {says: dockerSays{"psql": "0|0\n"}, want: Check{"replica", answerFail, "no replica follows postgres"}},
		"lagging":       {says: dockerSays{"psql": "1|31\n"}, want: Check{"replica", answerFail, "31 s behind"}},
		"short grace":   {says: dockerSays{"config --format json": strings.ReplaceAll(recorded(t, "config.json"), "1m35s", "1m0s")}, want: Check{"drain", answerFail, "needs 30 s more"}},
		"critical":      {wire: replaced(`"severity":"info"`, `"severity":"critical"`), want: Check{"alerts", answerFail, "firing: Watchdog"}},
		"few seen":      {wire: replaced(third, ""), want: Check{"metrics", answerFail, "sees 2 of 3 live replicas"}},
		"no Prometheus": {wire: without("9090"), want: Check{"metrics", answerFail, "--without-metrics goes on"}},
		"told so":       {wire: without("9090"), blind: true, want: Check{"metrics", answerWarn, "ignored: "}},
		"nobody ready":  {wire: replaced(`"status":"ready"`, `"status":"unready"`), want: Check{"live", answerFail, "0 of 3 replicas of blue serve"}},
		"broker":        {wire: replaced(`"broker":"up"`, `"broker":"down"`), want: Check{"redis", answerFail, "the broker is down"}},
		"Traefik lags":  {wire: replaced(`"service":"app-blue"`, `"service":"app-green"`), want: Check{"traefik", answerFail, "active.yml says blue and Traefik sends to green"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := preflight(t, tt.says, tt.wire)
			p.Blind = tt.blind
			containers, err1 := p.Compose.containers(t.Context())
			sight, err2 := p.Compose.Look(t.Context())
			route, err3 := p.Compose.Balancer.Route(t.Context())
			if err := errors.Join(err1, err2, err3); err != nil {
				t.Fatal(err)
			}
			all := p.checks()
			one := all[slices.IndexFunc(all, func(c check) bool { return c.name == tt.want.Name })]
			got := p.ask(t.Context(), one, &workplace{containers: containers, sight: sight, route: route, image: Image{Ref: "v2", ID: "sha256:new"}})
			if got.Answer != tt.want.Answer || !strings.Contains(got.Text, tt.want.Text) {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}
