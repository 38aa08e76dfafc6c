package config

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// clearEnvironment leaves nothing in the environment but some variables, until the
// test ends.
func clearEnvironment(t *testing.T, variables ...string) {
	t.Helper()
	before := os.Environ()
	t.Cleanup(func() {
		os.Clearenv()
		for _, v := range before {
			name, value, _ := strings.Cut(v, "=")
			_ = os.Setenv(name, value)
		}
	})
	os.Clearenv()
	for _, v := range variables {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
}

// Each wrong name has one warning, with the setting that was likely meant.
func TestANameThatResemblesASettingIsWarnedOf(t *testing.T) {
	for wrong, meant := range map[string]string{
		"DATABASE_URI": "DATABASE_URL", "DATABASE_ULR": "DATABASE_URL", "DATABSE_URL": "DATABASE_URL", "DATABASEURL": "DATABASE_URL",
		"DATABASE_URL_PROD": "DATABASE_URL", "DATABASE_DSN": "DATABASE_URL", "DB_URL": "DATABASE_URL", "POSTGRES_URL": "DATABASE_URL",
		"database_url": "DATABASE_URL", "Database-Url": "DATABASE_URL", "DATABASE_HOST": "DATABASE_URL", "SWITCHYARD_DATABASE_URL": "DATABASE_URL",
		"DATABASE_POOL_SIZE": "DATABASE_LANES", "DATABASE_MAX_CONNECTIONS": "DATABASE_MAX_CONNS",
		"REDIS_URI": "REDIS_URL", "REDIS_URLS": "REDIS_URL", "REDIS_HOST": "REDIS_URL", "REDIS_PORT": "REDIS_URL",
		"ALLOWED_ORIGIN": "ALLOWED_ORIGINS", "ALLOW_ORIGINS": "ALLOWED_ORIGINS", "CORS_ORIGINS": "ALLOWED_ORIGINS", "ALLOWED_HOST": "ALLOWED_HOSTS",
		"RETENTION_DAYS": "RETENTION_AGE", "RETENTION": "", "AUTH_JWT_SECRETS": "AUTH_JWT_SECRET", "JWT_SECRET": "AUTH_JWT_SECRET",
		"AUTH_JWKS_URI": "AUTH_JWKS_URL", "JWKS_URL_FILE": "AUTH_JWKS_URL", "AUTH_ISSUER_FILE": "AUTH_ISSUER", "LISTEN_ADDR_FILE": "LISTEN_ADDR",
		"API_KEY": "API_KEYS", "API_KEYS_FILES": "API_KEYS_FILE", "AUTH_JWT_SECRET_FIEL": "AUTH_JWT_SECRET_FILE",
		"MAX_CONNECTION": "MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_ADDRESS": "MAX_CONNECTIONS", "MAX_FRAMES": "MAX_FRAME",
		"HEARTBEAT_INTERVAL": "HEARTBEAT", "HEARTBEATS": "HEARTBEAT", "COLOUR": "COLOR", "LOGLEVEL": "LOG_LEVEL", "LOG_LEVELS": "LOG_LEVEL",
		"TRUSTED_PROXY": "TRUSTED_PROXIES", "TRUST_PROXY": "TRUSTED_PROXIES", "LISTEN_ADDRESS": "LISTEN_ADDR", "BIND_ADDR": "LISTEN_ADDR",
		"STRICT_SETTING": "STRICT_SETTINGS", "RATE_PUBLISHES": "RATE_PUBLISH", "DRAIN_TIME": "DRAIN_TIMEOUT",
	} {
		clearEnvironment(t, wrong+"=x")
		got := Warnings()
		if meant == "" {
			continue // a word alone is too general
		}
		if len(got) != 1 || got[0] != wrong+" is no setting and has no effect: did you mean "+meant+"?" {
			t.Errorf("%s: %q, want %s", wrong, got, meant)
		}
		if _, err := Load(); err != nil {
			t.Errorf("%s keeps the service from starting: %v", wrong, err)
		}
	}
}

// What shells, systemd, Docker, Kubernetes and platforms set for every program is not
// taken for a mistake, and neither is the name of a setting.
func TestNamesOfOthersAreNotWarnedOf(t *testing.T) {
	variables := []string{
		"PATH=/bin", "HOME=/", "USER=x", "SHELL=/bin/sh", "TERM=xterm", "COLORTERM=truecolor", "NO_COLOR=1", "CLICOLOR=1", "LS_COLORS=x", "FORCE_COLOR=1",
		"LANG=C", "LC_ALL=C", "TZ=UTC", "PWD=/", "OLDPWD=/", "SHLVL=1", "HOSTNAME=x", "LOGNAME=x", "EDITOR=vi", "DISPLAY=:0", "_=/bin/env",
		"SESSION_MANAGER=x", "SESSIONNAME=Console", "XDG_SESSION_ID=1", "DBUS_SESSION_BUS_ADDRESS=x", "SSH_AUTH_SOCK=x", "MAIL=x",
		"LISTEN_FDS=1", "LISTEN_PID=7", "LISTEN_FDNAMES=x", "INVOCATION_ID=x", "JOURNAL_STREAM=8:1", "NOTIFY_SOCKET=x", "CREDENTIALS_DIRECTORY=x", "LOGS_DIRECTORY=x",
		"KUBERNETES_SERVICE_HOST=10.0.0.1", "KUBERNETES_PORT=tcp://10.0.0.1:443",
		"REDIS_SERVICE_HOST=10.0.0.1", "REDIS_SERVICE_PORT=6379", "REDIS_SERVICE_PORT_REDIS=6379", "REDIS_PORT=tcp://10.0.0.1:6379",
		"REDIS_PORT_6379_TCP=tcp://10.0.0.1:6379", "REDIS_PORT_6379_TCP_ADDR=10.0.0.1", "REDIS_PORT_6379_TCP_PORT=6379", "REDIS_PORT_6379_TCP_PROTO=tcp",
		"DATABASE_SERVICE_HOST=10.0.0.1", "DATABASE_PORT=tcp://10.0.0.1:5432", "AUTH_SERVICE_HOST=10.0.0.1", "AUTH_PORT=tcp://10.0.0.1:80", "DATABASE_ENV_PGDATA=/x",
		"PORT=8080", "HOST=0.0.0.0", "DYNO=web.1", "WEB_CONCURRENCY=2", "PGHOST=x", "PGPASSWORD=x", "POSTGRES_PASSWORD=x", "POSTGRES_USER=x",
		"GOMAXPROCS=2", "GOMEMLIMIT=1GiB", "GODEBUG=x", "GOTRACEBACK=all", "HTTP_PROXY=http://x", "HTTPS_PROXY=http://x", "NO_PROXY=x", "SSL_CERT_FILE=/x",
		"CI=true", "DEBUG=1", "LOG_FILE=/x", "API_URL=x", "ADMIN_USER=x", "QUEUE_NAME=x", "ID=x", "DEPLOY_ENV=x", "RAILWAY_DEPLOYMENT_ID=x",
	}
	clearEnvironment(t, variables...)
	if got := Warnings(); len(got) > 0 {
		t.Errorf("%q", got)
	}
	// A platform's other names for a database, beside the URL that is used.
	clearEnvironment(t, "DATABASE_URL=postgres://h/d", "DB_URL=x", "POSTGRES_URL=x", "DATABASE_PRIVATE_URL=x", "DATABASE_HOST=x", "DATABASE_PASSWORD=x",
		"REDIS_URL_FILE=/x", "REDIS_HOST=x", "REDIS_PORT=6379", "REDIS_TLS_URL=x", "AUTH_JWT_SECRET="+secret, "JWT_SECRET=x")
	if got := Warnings(); len(got) > 0 {
		t.Errorf("%q", got)
	}
	var cfg Config
	for s := range settings(&cfg) {
		clearEnvironment(t, s.name()+"=x")
		if got := Warnings(); len(got) > 0 {
			t.Errorf("%q", got)
		}
	}
}

// A secret in quotes works, and the operator learns what the service takes for it.
func TestASecretInQuotesIsWarnedOf(t *testing.T) {
	clearEnvironment(t, `AUTH_JWT_SECRET="`+secret+`"`, `LISTEN_ADDR=":8000"`)
	if got := Warnings(); len(got) != 1 || !strings.HasPrefix(got[0], "AUTH_JWT_SECRET is in quotes") || strings.Contains(got[0], secret) {
		t.Errorf("%q", got)
	}
}

func TestTheWarningsAreBounded(t *testing.T) {
	many := []string{strings.Repeat("MAX_FRAME_", 1000) + "=x"}
	for i := range 100 {
		many = append(many, "DATABASE_X"+strings.Repeat("X", i)+"=x")
	}
	clearEnvironment(t, many...)
	got := Warnings()
	if len(got) != maxWarnings+1 || !strings.HasPrefix(got[maxWarnings], "35 more") {
		t.Errorf("%d warnings: %q", len(got), got[max(0, len(got)-2):])
	}
	if long := slices.MaxFunc(got, func(a, b string) int { return len(a) - len(b) }); len(long) > 300 {
		t.Errorf("a warning of %d bytes", len(long))
	}
}

// A file's mark, a shell's word or a quote became a part of the name: nothing reads
// such a variable, and nothing else can have such a name.
func TestADamagedNameIsRefused(t *testing.T) {
	for _, damaged := range []string{
		"export DATABASE_URL", "\ufeffDATABASE_URL", " DATABASE_URL", "DATABASE_URL ", "DATABASE_URL\t", `"DATABASE_URL`, "set DATABASE_URL", "$env:DATABASE_URL",
		"export  DATABASE_URL_FILE", "- DATABASE_URL", "\ufeffexport DATABASE_URL",
	} {
		clearEnvironment(t, damaged+"=postgres://u:hush@h/d")
		_, err := Load()
		if err == nil || !strings.HasPrefix(err.Error(), "DATABASE_URL") || !strings.Contains(err.Error(), "a name that nothing reads") || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", damaged, err)
		}
	}
	clearEnvironment(t, "export OTHER=x", "# DATABASE_URL=x", "\ufeffPATH=x")
	if _, err := Load(); err != nil {
		t.Errorf("names of others: %v", err)
	}
}
