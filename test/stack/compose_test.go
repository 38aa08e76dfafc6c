package stack

import (
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"switchyard/internal/config"
)

// A setting in .env has one effect everywhere, and its default is the value in
// .env.example.
func TestSettingsOfTheStackHaveOneValue(t *testing.T) {
	env := loadEnvExample(t)
	text := read(t, compose+"/docker-compose.prod.yml")
	used := map[string]bool{"REPLICAS": true}
	for _, found := range composeVariable.FindAllStringSubmatch(text, -1) {
		name, kind, fallback := found[1], found[2], found[3]
		if name == "" || name == "COMPOSE_PROJECT_NAME" || name == "IMAGE_MIGRATE" { // Compose's own, and an argument of a migration
			continue
		}
		used[name] = true
		value, known := env[name]
		switch {
		case !known:
			t.Errorf("${%s} is not in .env.example", name)
		case kind == "-" && fallback != value:
			t.Errorf("%s is %q in .env.example, and %q where it is not set", name, value, fallback)
		}
	}
	for name := range env {
		if !used[name] && name != "BACKUP_DIR" {
			t.Errorf("%s of .env.example has no effect", name)
		}
	}
}

func TestNodesAreGivenSettingsThatExist(t *testing.T) {
	settings := map[string]bool{"GOMEMLIMIT": true} // Go's own
	var walk func(reflect.Type)
	walk = func(s reflect.Type) {
		for i := range s.NumField() {
			field := s.Field(i)
			if name, ok := field.Tag.Lookup("envconfig"); ok {
				settings[name] = true
				settings[name+"_FILE"] = field.Tag.Get("secret") == "true"
			} else if field.Type.Kind() == reflect.Struct {
				walk(field.Type)
			}
		}
	}
	walk(reflect.TypeFor[config.Config]())
	file := loadCompose(t, loadEnvExample(t))
	secrets := t.TempDir()
	for secret, text := range map[string]string{
		"app_database_url": "postgres://switchyard:x@postgres:5432,postgres_replica:5432/switchyard?target_session_attrs=read-write",
		"app_redis_url":    "redis://:x@redis:6379/0",
		"app_api_keys":     "backend:" + strings.Repeat("k", 48),
		"app_jwt_secret":   strings.Repeat("s", 48),
	} {
		if err := os.WriteFile(filepath.Join(secrets, secret), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, color := range []string{"blue", "green"} {
		env := file.Services["app_"+color].Environment
		for name, value := range env {
			if !settings[name] {
				t.Errorf("app_%s: %s is not a setting of the service", color, name)
			}
			if path, ok := strings.CutPrefix(value, "/run/secrets/"); ok {
				value = filepath.Join(secrets, path)
			}
			t.Setenv(name, value)
		}
		got, err := config.Load()
		if err != nil {
			t.Fatalf("app_%s does not start: %v", color, err)
		}
		for _, warning := range config.Warnings() {
			if name, _, _ := strings.Cut(warning, " "); env[name] != "" {
				t.Errorf("app_%s: %s", color, warning)
			}
		}
		if got.HTTP.Color != color || got.Auth.Anonymous != "off" {
			t.Errorf("app_%s has color %q and AUTH_ANONYMOUS %q", color, got.HTTP.Color, got.Auth.Anonymous)
		}
	}
	blue, green := file.Services["app_blue"], file.Services["app_green"]
	for _, s := range []*service{&blue, &green} {
		delete(s.Environment, "COLOR")
		delete(s.Environment, "DEPLOYMENT")
	}
	if !reflect.DeepEqual(blue, green) {
		t.Errorf("the colors differ in more than COLOR and DEPLOYMENT:\n%+v\n%+v", blue, green)
	}
}

// Settings that depend on each other fit as they are shipped.
func TestShippedSettingsFitTogether(t *testing.T) {
	env := loadEnvExample(t)
	number := func(name string) int {
		n, err := strconv.Atoi(env[name])
		if err != nil {
			t.Fatal(name, err)
		}
		return n
	}
	duration := func(name string) time.Duration {
		d, err := time.ParseDuration(env[name])
		if err != nil {
			t.Fatal(name, err)
		}
		return d
	}
	atLeast := func(what string, got, want int) {
		t.Helper()
		if got < want {
			t.Errorf("%s: %d, want at least %d", what, got, want)
		}
	}
	probe := loadDynamic(t, "dynamic/services.yml", traefikEnv(t)).HTTP.Services["app-blue"].LoadBalancer.HealthCheck
	atLeast("STOP_GRACE is 30 s over DRAIN_TIMEOUT (ms)", int(duration("STOP_GRACE").Milliseconds()), int((duration("DRAIN_TIMEOUT") + 30*time.Second).Milliseconds()))
	atLeast("DRAIN_TIMEOUT is over DRAIN_DELAY + DRAIN_WINDOW (ms)", int(duration("DRAIN_TIMEOUT").Milliseconds()), int((duration("DRAIN_DELAY") + duration("DRAIN_WINDOW")).Milliseconds()))
	atLeast("DRAIN_DELAY is over two probes of Traefik (ms)", int(duration("DRAIN_DELAY").Milliseconds()), int(2*probe.Interval.Milliseconds())+1)

	// All clients of a color move, from behind one address.
	replicas, perAddress := max(number("REPLICAS_BLUE"), number("REPLICAS_GREEN")), number("MAX_CONNECTIONS_PER_IP")
	atLeast("WS_RATE_AVERAGE over DRAIN_WINDOW", number("WS_RATE_AVERAGE")*int(duration("DRAIN_WINDOW").Seconds()), replicas*perAddress)
	atLeast("WS_RATE_BURST, when a node dies", number("WS_RATE_BURST"), perAddress)
	atLeast("WS_INFLIGHT, two for each", number("WS_INFLIGHT"), 2*replicas*perAddress)
	atLeast("NOFILE of a node", number("NOFILE"), number("MAX_CONNECTIONS")+1000)

	// Connections to PostgreSQL.
	text := read(t, compose+"/postgres/postgresql.conf")
	found := regexp.MustCompile(`(?m)^max_connections = (\d+)$`).FindStringSubmatch(text)
	reserved := regexp.MustCompile(`(?m)^superuser_reserved_connections = (\d+)$`).FindStringSubmatch(text)
	if found == nil || reserved == nil {
		t.Fatal("postgresql.conf has no max_connections, or reserves none")
	}
	most, _ := strconv.Atoi(found[1])
	kept, _ := strconv.Atoi(reserved[1])
	const migration, exporter, backup, people = 4, 5, 4, 5
	need := (number("REPLICAS_BLUE")+number("REPLICAS_GREEN"))*number("DATABASE_MAX_CONNS") + migration + exporter + backup + people + kept
	atLeast("max_connections", most, need)

	// Memory.
	atLeast("REDIS_MEMORY, while Redis rewrites its file", parseBytes(t, env["REDIS_MEMORY"]), 3*parseBytes(t, env["REDIS_MAXMEMORY"])/2)
	atLeast("POSTGRES_MEMORY", parseBytes(t, env["POSTGRES_MEMORY"]), 2*parseBytes(t, env["POSTGRES_SHARED_BUFFERS"]))
}

// Every program in Go knows nine tenths of its container's limit: it collects garbage in
// time, and ContainerMemory takes the limit from what it exports of that.
func TestGoProgramsKnowTheirMemoryLimit(t *testing.T) {
	notGo := []string{"redis", "postgres", "postgres_replica", "migrate"} // migrate runs for seconds
	for name, s := range loadCompose(t, loadEnvExample(t)).Services {
		if slices.Contains(notGo, name) {
			continue
		}
		limit := parseBytes(t, s.Deploy.Resources.Limits.Memory)
		if got := s.Environment["GOMEMLIMIT"]; got == "" || 10*parseBytes(t, got) > 9*limit || 100*parseBytes(t, got) < 87*limit {
			t.Errorf("%s: GOMEMLIMIT is %q of %s, want nine tenths", name, got, s.Deploy.Resources.Limits.Memory)
		}
	}
}

// parseBytes reads sizes as Docker, Redis, PostgreSQL and Go write them.
func parseBytes(t *testing.T, size string) int {
	t.Helper()
	part := regexp.MustCompile(`(?i)^(\d+)(k|m|g)i?b?$`).FindStringSubmatch(size)
	if part == nil {
		t.Fatalf("%q is not a size", size)
	}
	n, _ := strconv.Atoi(part[1])
	return n << map[string]int{"k": 10, "m": 20, "g": 30}[strings.ToLower(part[2])]
}

// On busy processors, services that every message passes go first, and monitoring last.
func TestCPUSharesFollowPriority(t *testing.T) {
	services := loadCompose(t, loadEnvExample(t)).Services
	inOrder := [][]string{
		{"traefik"}, {"postgres", "redis"}, {"app_blue", "app_green"},
		{"prometheus", "alertmanager", "grafana", "node_exporter", "redis_exporter", "postgres_exporter", "blackbox_exporter", "migrate"},
	}
	for i, before := range inOrder[:len(inOrder)-1] {
		for _, first := range before {
			for _, then := range inOrder[i+1] {
				if services[first].CPUShares <= services[then].CPUShares {
					t.Errorf("%s has cpu_shares %d, %s %d", first, services[first].CPUShares, then, services[then].CPUShares)
				}
			}
		}
	}
}

// The compose file limits which ports are published, and what an attacker can do inside
// of a container.
func TestComposeFileIsHardened(t *testing.T) {
	text := read(t, compose+"/docker-compose.prod.yml")
	for _, word := range []string{"\nversion:", "docker.sock", "rslave", "start_interval", "oom_score_adj", "privileged", "container_name", "network_mode"} {
		if strings.Contains(text, word) {
			t.Errorf("the compose file has %q", word)
		}
	}
	file := loadCompose(t, loadEnvExample(t))
	exact := regexp.MustCompile(`^(postgres:\d+\.\d+|[a-z0-9/_.-]+:v?\d+\.\d+\.\d+)(-alpine)?$`) // PostgreSQL's versions have two parts
	for name, s := range file.Services {
		ours := strings.HasPrefix(name, "app_") || name == "migrate"
		if !ours && !exact.MatchString(s.Image) && !regexp.MustCompile(`:15\.\d+-alpine$`).MatchString(s.Image) {
			t.Errorf("%s: %q is not an exact version", name, s.Image)
		}
		if len(s.Ports) > 0 && name != "traefik" {
			t.Errorf("%s publishes %v; only Traefik may", name, s.Ports)
		}
		if !s.ReadOnly || s.Privileged || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s is not confined: read-only, without capabilities and new privileges", name)
		}
		if len(s.CapAdd) > 0 && (name != "traefik" || !slices.Equal(s.CapAdd, []string{"NET_BIND_SERVICE"})) {
			t.Errorf("%s has the capabilities %v", name, s.CapAdd)
		}
		if s.User == "" && name != "traefik" && !ours {
			t.Errorf("%s runs as the user of its image", name)
		}
		limits := s.Deploy.Resources.Limits
		if limits.CPUs == "" || limits.Memory == "" || limits.Pids == 0 || s.Logging.Options["max-size"] == "" {
			t.Errorf("%s has no limits: %+v, logs %v", name, limits, s.Logging.Options)
		}
		if name == "migrate" {
			continue
		}
		if s.Restart != "unless-stopped" || len(s.Profiles) > 0 {
			t.Errorf("%s does not restart by itself", name)
		}
		// redis_exporter's image has no program for a health check; Prometheus scrapes it.
		if name != "redis_exporter" && (s.Healthcheck.Test == nil || s.Healthcheck.Interval != 2*time.Second) {
			t.Errorf("%s has no health check of 2 s: %+v", name, s.Healthcheck)
		}
	}
	for _, name := range []string{"redis", "postgres", "postgres_replica", "migrate"} {
		if got := file.Services[name].Networks; !slices.Equal(got, listOrKeys{"backend"}) || !file.Networks["backend"].Internal {
			t.Errorf("%s is on %v", name, got)
		}
	}
}

func TestNoSecretIsInAFile(t *testing.T) {
	file := loadCompose(t, loadEnvExample(t))
	secret := regexp.MustCompile(`(?i)password|secret|token|_key|api_keys|database_url|redis_url`)
	for name, s := range file.Services {
		for key, value := range s.Environment {
			if secret.MatchString(key) && !strings.HasSuffix(key, "_FILE") && !strings.HasSuffix(key, "__FILE") {
				t.Errorf("%s: %s=%s: a secret must come from a file", name, key, value)
			}
		}
		for _, need := range s.Secrets {
			if _, known := file.Secrets[need]; !known {
				t.Errorf("%s: no secret %s", name, need)
			}
		}
	}
	setup := read(t, compose+"/setup")
	for name, s := range file.Secrets {
		if s.File != "./secrets/"+name {
			t.Errorf("secret %s comes from %s", name, s.File)
		}
		if !regexp.MustCompile(`\b` + name + `\b`).MatchString(setup) {
			t.Errorf("setup does not make %s", name)
		}
	}
	for key, value := range loadEnvExample(t) {
		if secret.MatchString(key) && value != "" {
			t.Errorf(".env.example: %s=%s", key, value)
		}
	}
	ignored := read(t, root+"/.gitignore")
	for _, path := range []string{".env", "/deploy/compose/secrets/", "/deploy/compose/state/", "/deploy/compose/backups/", "/deploy/traefik/dynamic/active.yml"} {
		if !slices.Contains(strings.Split(ignored, "\n"), path) {
			t.Errorf("git does not ignore %s", path)
		}
	}
}

// Compose makes an empty folder for a path that is missing, and the container then
// fails with a misleading message.
func TestMountedPathsExist(t *testing.T) {
	file := loadCompose(t, loadEnvExample(t))
	for name, s := range file.Services {
		for _, volume := range s.Volumes {
			from, _, _ := strings.Cut(volume, ":")
			if _, named := file.Volumes[from]; named || strings.HasPrefix(from, "/") {
				continue
			}
			if strings.HasPrefix(from, "./state/") || strings.HasPrefix(from, "./backups") {
				if text := read(t, compose+"/setup"); !strings.Contains(text, path.Base(from)) {
					t.Errorf("%s: setup does not make %s", name, from)
				}
				continue
			}
			if _, err := os.Stat(filepath.Join(compose, from)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
