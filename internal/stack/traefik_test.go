package stack

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

func TestTheStatusOfTraefik(t *testing.T) {
	balancer := newTraefik(t)
	balancer.API = func(context.Context) (string, error) { return "http://traefik:8080", nil }
	use := func(answers testkit.Transport) { balancer.Client = &http.Client{Transport: answers} }
	use(testkit.RecordedTransport(t))
	s, err := balancer.Status(t.Context())
	if err != nil || s.Route != (Route{Live: Blue}) || s.ServersUp[Blue] != 3 || s.ServersUp[Green] != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	all := testkit.RecordedTransport(t)
	use(func(url, query string) (int, string) {
		status, text := all(url, query)
		return status, strings.ReplaceAll(text, `"service":"app-blue","rule":"Host(`+"`chat", `"service":"live-blue","rule":"Host(`+"`chat")
	})
	if s, err := balancer.Status(t.Context()); err != nil || s.Route != (Route{Live: Blue}) || s.ServersUp[Blue] != 3 {
		t.Errorf("by the failovers: %+v, %v", s, err)
	}
	for name, tt := range map[string]struct {
		old, new string
		says     string
	}{
		"one router differs": {`"service":"app-blue","rule":"Host(` + "`chat.e2e.test`) \\u0026\\u0026 Path(", `"service":"app-green","rule":"Host(` + "`chat.e2e.test`) \\u0026\\u0026 Path(", "route to both colors"},
		"a router is gone":   {`"name":"ws@file"`, `"name":"other@file"`, "Traefik reports 1 of 2 routers"},
		"unknown service":    {`"service":"app-blue"`, `"service":"else"`, `a router that routes to "else"`},
		"other failover":     {`"service":"app-blue","rule":"Host(` + "`chat.e2e.test`) \\u0026\\u0026 Path(", `"service":"live-green","rule":"Host(` + "`chat.e2e.test`) \\u0026\\u0026 Path(", "route to both colors"},
	} {
		use(func(url, query string) (int, string) {
			status, text := all(url, query)
			if strings.Contains(url, "routers") {
				changed := strings.Replace(strings.ReplaceAll(text, "&&", `\u0026\u0026`), tt.old, tt.new, 1)
				if changed == text {
					t.Errorf("%s: the record has no %s", name, tt.old)
				}
				text = changed
			}
			return status, text
		})
		if s, err := balancer.Status(t.Context()); err == nil || !strings.Contains(err.Error(), tt.says) || s.ServersUp[Green] != 3 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	use(func(string, string) (int, string) { return 0, "" })
	if _, err := balancer.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "query Traefik") {
		t.Error(err)
	}
}
