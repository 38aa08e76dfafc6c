package stack

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// traefikEnv returns the environment of Traefik's container, as shipped.
func traefikEnv(t *testing.T) map[string]string {
	t.Helper()
	env := loadEnvExample(t)
	env["COMPOSE_PROJECT_NAME"] = "switchyard"
	return loadCompose(t, env).Services["traefik"].Environment
}

// mergedDynamic returns all the dynamic configuration of Traefik while blue is live.
func mergedDynamic(t *testing.T, env map[string]string) dynamicFile {
	t.Helper()
	all := loadDynamic(t, "blue.yml", env)
	entries, err := os.ReadDir(filepath.Join(traefik, "dynamic"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() == "active.yml" { // made by setup
			continue
		}
		part := loadDynamic(t, "dynamic/"+entry.Name(), env)
		merge(t, &all.HTTP.Routers, part.HTTP.Routers)
		merge(t, &all.HTTP.Services, part.HTTP.Services)
		merge(t, &all.HTTP.Middlewares, part.HTTP.Middlewares)
		merge(t, &all.HTTP.ServersTransports, part.HTTP.ServersTransports)
		merge(t, &all.TLS.Stores, part.TLS.Stores)
		merge(t, &all.TLS.Options, part.TLS.Options)
	}
	return all
}

func merge[V any](t *testing.T, into *map[string]V, from map[string]V) {
	t.Helper()
	if *into == nil {
		*into = map[string]V{}
	}
	for name, value := range from {
		if _, twice := (*into)[name]; twice {
			t.Errorf("%s is defined twice", name)
		}
		(*into)[name] = value
	}
}

// A staticFile has the parts of traefik.yml that these tests check.
type staticFile struct {
	EntryPoints map[string]struct {
		Address string `yaml:"address"`
		HTTP    struct {
			AliasHeadersStrategy string `yaml:"aliasHeadersStrategy"`
			Redirections         struct {
				EntryPoint struct{ To, Scheme string } `yaml:"entryPoint"`
			} `yaml:"redirections"`
		} `yaml:"http"`
	} `yaml:"entryPoints"`
	Providers struct {
		Throttle time.Duration `yaml:"providersThrottleDuration"`
		Docker   any           `yaml:"docker"`
		File     struct {
			Directory string `yaml:"directory"`
			Watch     bool   `yaml:"watch"`
		} `yaml:"file"`
	} `yaml:"providers"`
	Resolvers map[string]any `yaml:"certificatesResolvers"`
	API       struct {
		Insecure bool `yaml:"insecure"`
	} `yaml:"api"`
	Ping struct {
		EntryPoint string `yaml:"entryPoint"`
	} `yaml:"ping"`
	Metrics struct {
		Prometheus struct {
			EntryPoint string `yaml:"entryPoint"`
		} `yaml:"prometheus"`
	} `yaml:"metrics"`
	AccessLog struct {
		Format string `yaml:"format"`
		Fields struct {
			QueryParameters struct {
				DefaultMode string `yaml:"defaultMode"`
			} `yaml:"queryParameters"`
			Headers struct {
				DefaultMode string            `yaml:"defaultMode"`
				Names       map[string]string `yaml:"names"`
			} `yaml:"headers"`
		} `yaml:"fields"`
	} `yaml:"accessLog"`
}

func loadStatic(t *testing.T) staticFile {
	t.Helper()
	text, err := interpolate(read(t, traefik+"/traefik.yml"), map[string]string{"ACME_EMAIL": "you@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	var file staticFile
	decode(t, "traefik.yml", text, &file)
	return file
}

// A switch renames blue.yml or green.yml into place: they differ only in the color.
func TestColorRoutesDifferOnlyInColor(t *testing.T) {
	blue, green := read(t, traefik+"/blue.yml"), read(t, traefik+"/green.yml")
	if strings.ReplaceAll(blue, "blue", "green") != green || blue == green {
		t.Errorf("blue.yml and green.yml:\n%s\n%s", blue, green)
	}
	route := loadDynamic(t, "blue.yml", traefikEnv(t))
	if len(route.HTTP.Services)+len(route.HTTP.Middlewares) > 0 || len(route.HTTP.Routers) != 2 {
		t.Errorf("blue.yml must have the two routers alone: %+v", route)
	}
	if ws, app := route.HTTP.Routers["ws"], route.HTTP.Routers["app"]; ws.Priority <= app.Priority || app.Priority == 0 {
		t.Errorf("priority %d for sockets, %d for the rest: the higher one is matched first", ws.Priority, app.Priority)
	}
	for name, router := range route.HTTP.Routers {
		if router.Service != "live-blue" || !strings.Contains(router.Rule, "Host(`chat.example.com`)") {
			t.Errorf("%s: %+v", name, router)
		}
	}
}

// A color without a replica fails over to the other one. Only that triggers it: a request
// with a failed answer may have been executed already.
func TestEachColorFailsOverToTheOther(t *testing.T) {
	services := mergedDynamic(t, traefikEnv(t)).HTTP.Services
	for color, other := range map[string]string{"blue": "green", "green": "blue"} {
		got := services["live-"+color].Failover
		if got.Service != "app-"+color || got.Fallback != "app-"+other || got.Errors != nil {
			t.Errorf("live-%s: %+v", color, got)
		}
	}
}

func TestTraefikReferencesExist(t *testing.T) {
	env := traefikEnv(t)
	all, staticConfig := mergedDynamic(t, env), loadStatic(t)
	for name, router := range all.HTTP.Routers {
		for _, point := range router.EntryPoints {
			if _, known := staticConfig.EntryPoints[point]; !known {
				t.Errorf("router %s: no entry point %s", name, point)
			}
		}
		if _, known := all.HTTP.Services[router.Service]; !known && !strings.HasSuffix(router.Service, "@internal") {
			t.Errorf("router %s: no service %s", name, router.Service)
		}
		if resolver := router.TLS.CertResolver; resolver != "" && staticConfig.Resolvers[resolver] == nil {
			t.Errorf("router %s: no resolver %s", name, resolver)
		}
		for _, target := range []string{all.HTTP.Services[router.Service].Failover.Service, all.HTTP.Services[router.Service].Failover.Fallback} {
			if _, known := all.HTTP.Services[target]; target != "" && !known {
				t.Errorf("service %s: no service %s", router.Service, target)
			}
		}
		outside := slices.Contains(router.EntryPoints, "websecure")
		if outside != (router.TLS.CertResolver != "") || outside != (len(router.Middlewares) == 1) || len(router.EntryPoints) != 1 {
			t.Errorf("router %s is neither internal nor public: %+v", name, router)
		}
		for _, middleware := range router.Middlewares {
			for _, part := range all.HTTP.Middlewares[middleware].Chain.Middlewares {
				if _, known := all.HTTP.Middlewares[part]; !known {
					t.Errorf("router %s: no middleware %s", name, part)
				}
			}
			if !slices.Contains(all.HTTP.Middlewares[middleware].Chain.Middlewares, "security-headers") {
				t.Errorf("router %s lacks the security headers", name)
			}
		}
	}
	for name, m := range all.HTTP.Middlewares {
		for _, limit := range []*limit{m.RateLimit, m.InFlightReq} {
			if limit != nil && (limit.SourceCriterion.IPStrategy == nil || limit.SourceCriterion.IPStrategy.Depth != 0) {
				t.Errorf("%s does not count by the peer's address", name)
			}
		}
	}
	certificate := all.TLS.Stores["default"].DefaultCertificate
	if certificate.CertFile != "/run/secrets/tls_crt" || certificate.KeyFile != "/run/secrets/tls_key" || all.TLS.Options["default"].MinVersion != "VersionTLS12" {
		t.Errorf("TLS: %+v", all.TLS)
	}
}

// Traefik has one server for each replica, by the name that Compose gives its container.
func TestServersMatchReplicas(t *testing.T) {
	env := loadEnvExample(t)
	all := mergedDynamic(t, traefikEnv(t))
	file := loadCompose(t, env)
	for _, color := range []string{"blue", "green"} {
		balancer := all.HTTP.Services["app-"+color].LoadBalancer
		var got, want []string
		for _, server := range balancer.Servers {
			got = append(got, server.URL)
		}
		for n := range file.Services["app_"+color].Deploy.Replicas {
			want = append(want, fmt.Sprintf("http://%s-app_%s-%d:8000", file.Name, color, n+1))
		}
		if !slices.Equal(got, want) {
			t.Errorf("app-%s has %v, Compose starts %v", color, got, want)
		}
		check := balancer.HealthCheck
		if check.Path != "/readyz" || check.Interval > 2*time.Second || check.Timeout > 5*time.Second || balancer.Strategy != "p2c" {
			t.Errorf("app-%s: %+v", color, balancer)
		}
		if _, known := all.HTTP.ServersTransports[balancer.ServersTransport]; !known {
			t.Errorf("app-%s: no transport %s", color, balancer.ServersTransport)
		}
		// This router keeps the health checks of a color running while it is not live.
		if router := all.HTTP.Routers[color]; router.Service != "app-"+color || !slices.Equal(router.EntryPoints, []string{"internal"}) {
			t.Errorf("router %s: %+v", color, router)
		}
	}
	// Behind a CDN, limits count by the address in its header.
	behind := traefikEnv(t)
	behind["TRUSTED_IPS"] = "192.0.2.0/24"
	if limit := mergedDynamic(t, behind).HTTP.Middlewares["ws-rate-limit"].RateLimit; limit.SourceCriterion.IPStrategy.Depth != 1 || limit.Average != 200 || limit.Burst != 1000 {
		t.Errorf("behind a CDN: %+v", limit)
	}
}

// A promise to browsers about other names than DOMAIN can't be taken back for a year.
func TestHSTSPromisesNoMoreThanIsAskedFor(t *testing.T) {
	env := traefikEnv(t)
	for value, want := range map[string][2]bool{"": {false, false}, "off": {false, false}, "false": {false, false}, "subdomains": {true, false}, "preload": {true, true}} {
		env["HSTS"] = value
		h := mergedDynamic(t, env).HTTP.Middlewares["security-headers"].Headers
		if h.STSSeconds != 31536000 || h.STSIncludeSubdomains != want[0] || h.STSPreload != want[1] {
			t.Errorf("HSTS=%s: %+v", value, h)
		}
	}
}

// A command line is in the list of processes of every container and host.
func TestNoPasswordIsOnACommandLine(t *testing.T) {
	builtin := regexp.MustCompile(`^\s*(printf |[A-Za-z_]+=)`) // of a shell: it starts no process
	expanded := regexp.MustCompile(`\$\(\s*(cat|sed|tr|head|<)[^)]*/run/secrets/[^)]*\)|--?p(ass|assword)[ =]"?\$`)
	err := filepath.WalkDir(root+"/deploy", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for i, line := range strings.Split(read(t, path), "\n") {
			if found := expanded.FindString(line); found != "" && !builtin.MatchString(line) {
				t.Errorf("%s:%d puts a secret on a command line: %s", path, i+1, found)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTraefikEntryPoints(t *testing.T) {
	staticConfig := loadStatic(t)
	file := loadCompose(t, loadEnvExample(t))
	publishedPorts := map[string]string{} // port in the container to where it is published
	for _, port := range file.Services["traefik"].Ports {
		at := strings.LastIndex(port, ":")
		publishedPorts[port[at:]] = port[:at]
	}
	for name, point := range staticConfig.EntryPoints {
		published, ok := publishedPorts[point.Address]
		delete(publishedPorts, point.Address)
		switch name {
		case "web", "websecure":
			if !ok || strings.Contains(published, ":") {
				t.Errorf("%s is published at %q", name, published)
			}
		case "internal":
			if ok {
				t.Errorf("the API is published at %s", published)
			}
		default:
			if !strings.HasPrefix(published, "127.0.0.1:") {
				t.Errorf("%s is published at %q, and is for this machine alone", name, published)
			}
		}
		if point.HTTP.AliasHeadersStrategy != "reject" {
			t.Errorf("%s accepts headers that are aliases of others", name)
		}
	}
	if len(publishedPorts) > 0 {
		t.Errorf("published ports without an entry point: %v", publishedPorts)
	}
	if to := staticConfig.EntryPoints["web"].HTTP.Redirections.EntryPoint; to.To != "websecure" || to.Scheme != "https" {
		t.Errorf("web redirects to %+v", to)
	}
	if staticConfig.Providers.Docker != nil || staticConfig.API.Insecure || !staticConfig.Providers.File.Watch || staticConfig.Providers.Throttle > 100*time.Millisecond {
		t.Errorf("providers %+v, api %+v", staticConfig.Providers, staticConfig.API)
	}
	if staticConfig.Ping.EntryPoint != "internal" || staticConfig.Metrics.Prometheus.EntryPoint != "internal" {
		t.Errorf("ping at %s, metrics at %s", staticConfig.Ping.EntryPoint, staticConfig.Metrics.Prometheus.EntryPoint)
	}
	log := staticConfig.AccessLog
	if log.Format != "json" || log.Fields.QueryParameters.DefaultMode != "drop" || log.Fields.Headers.DefaultMode != "drop" || len(log.Fields.Headers.Names) > 1 {
		t.Errorf("the access log may contain secrets: %+v", log)
	}
}
