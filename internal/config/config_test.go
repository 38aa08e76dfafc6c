package config

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"switchyard/internal/testkit"
)

var update = flag.Bool("update", false, "rewrite docs/configuration.md")

// secret is a valid AUTH_JWT_SECRET.
const secret = "0123456789abcdef0123456789abcdef"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clearSettings unsets every setting of the developer's environment until the test
// ends.
func clearSettings(t *testing.T) {
	t.Helper()
	var cfg Config
	for s := range settings(&cfg) {
		t.Setenv(s.name(), "") // restored when the test ends
	}
}

// read reads one setting, and no other, from a variable. The variable may be the one
// with the path of the setting's file.
func read(t *testing.T, variable, value string) (any, error) {
	t.Helper()
	t.Setenv(variable, value)
	defer func() { _ = os.Unsetenv(variable) }() // t.Setenv restores it later
	var cfg Config
	for s := range settings(&cfg) {
		if s.name() == variable || s.isSecret() && s.name()+fileSuffix == variable {
			err := s.read()
			return s.value.Interface(), err
		}
	}
	t.Fatalf("%s is no setting", variable)
	return nil, nil
}

func TestTheDefaultsAreValid(t *testing.T) {
	clearSettings(t)
	cfg, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.HTTP.ListenAddr != ":8000" || cfg.Admin.Addr != "127.0.0.1:8001" || cfg.Store.URL.Reveal() != "sqlite:switchyard.db" ||
		cfg.Broker.URL != "" || cfg.Log.Level != slog.LevelInfo || cfg.HTTP.Heartbeat != 25*time.Second || len(cfg.HTTP.APIKeys) != 0 {
		t.Errorf("defaults: %+v", cfg)
	}
}

func TestSettingsAreRead(t *testing.T) {
	clearSettings(t)
	for name, value := range map[string]string{
		"LOG_LEVEL": "debug", "MAX_FRAME": "2048", "HEARTBEAT": "10s", "COLOR": "green",
		"ALLOWED_ORIGINS": "https://a.example, http://b.example:8080,null,https://*.c.example, capacitor://localhost,http://[::1]:8000,wss://d.example:1, file://,app://.,moz-extension://*",
		"ALLOWED_HOSTS":   "a.example, *.b.example,::1",
		"TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1,fd00::/8",
		"API_KEYS":        "shop:0123456789abcdef, fedcba9876543210",
		"DATABASE_URL":    "postgres://u:p@h/d", "REDIS_URL": "rediss://h:6379/1",
		"AUTH_JWT_SECRET": secret + ", the other " + secret, "AUTH_AUDIENCE": "chat, chat-next", "AUTH_LEEWAY": "0s", "AUTH_ANONYMOUS": "lobby:rw",
	} {
		t.Setenv(name, value)
	}
	cfg, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Log.Level != slog.LevelDebug || cfg.HTTP.MaxFrame != 2048 || cfg.HTTP.Heartbeat != 10*time.Second || cfg.HTTP.Color != "green" {
		t.Errorf("got %+v", cfg)
	}
	if fmt.Sprint(cfg.HTTP.AllowedHosts, cfg.HTTP.TrustedProxies) != "[a.example *.b.example ::1] [10.0.0.0/8 127.0.0.1/32 fd00::/8]" {
		t.Errorf("hosts and proxies %v", cfg)
	}
	if fmt.Sprint(cfg.HTTP.AllowedOrigins) != "[https://a.example http://b.example:8080 null https://*.c.example capacitor://localhost http://[::1]:8000 wss://d.example:1 file:// app://. moz-extension://*]" {
		t.Errorf("origins %v", cfg.HTTP.AllowedOrigins)
	}
	if got := cfg.Auth.JWTSecrets.Reveal(); !slices.Equal(got, []string{secret, "the other " + secret}) || cfg.Auth.Leeway != 0 ||
		!slices.Equal(cfg.Auth.Audience, []string{"chat", "chat-next"}) || cfg.Auth.Anonymous != "lobby:rw" {
		t.Errorf("auth %v, %q", cfg.Auth, got)
	}
	if got := cfg.HTTP.APIKeys.Reveal(); got["shop"] != "0123456789abcdef" || got["key2"] != "fedcba9876543210" {
		t.Errorf("keys %v", got)
	}
}

func TestRedisURLsOfServersSentinelsAndClustersAreAccepted(t *testing.T) {
	for _, url := range []string{
		"redis://h", "redis://u:p@h:6379/1", "rediss://[::1]:6379?ca_file=/x", "redis+cluster://a:1,b:2",
		"rediss+cluster://:p@a,b?skip_verify=true", "redis+sentinel://a:1,b:2/main", "rediss+sentinel://u:p@a/m/0?sentinel_password=q",
	} {
		clearSettings(t)
		t.Setenv("REDIS_URL", url)
		if cfg, err := Load(); err != nil || cfg.Broker.URL.Reveal() != url {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestDatabaseURLsOfSeveralHostsAreAccepted(t *testing.T) {
	for _, url := range []string{"postgres://u@a:5432,b:5433/d", "postgresql://u:p@a,b:5433/d?target_session_attrs=read-write"} {
		clearSettings(t)
		t.Setenv("DATABASE_URL", url)
		if cfg, err := Load(); err != nil || cfg.Store.URL.Reveal() != url {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// mistakes are wrong values of each setting, and a part of the error.
var mistakes = []struct{ name, value, wantErr string }{
	{"LISTEN_ADDR", "8000", "host:port"},
	{"AUTH_JWT_SECRET", "hush", "secret 1 has 4 bytes"},
	{"AUTH_JWT_SECRET", secret + ",hush", "secret 2 has 4 bytes"},
	{"AUTH_JWT_SECRET", secret + "\n" + secret, "line break"},
	{"AUTH_JWT_SECRET", secret + ", " + secret, "secrets 1 and 2 are the same"},
	{"AUTH_JWT_SECRET", " , ", "the list has no secret"},
	{"SSL_CERT_FILE", strings.Repeat("x", 4097), "from 0 to 4096 bytes"},
	{"AUTH_KEY_FILE", strings.Repeat("x", 4097), "from 0 to 4096 bytes"},
	{"AUTH_JWKS_URL", "id.example.com", "https://host/path"},
	{"AUTH_JWKS_URL", "https://" + strings.Repeat("x", 2048), "from 0 to 2048 bytes"},
	{"AUTH_JWKS_ALLOW_HTTP", "yes please", "true or false"},
	{"AUTH_JWKS_REFRESH", "9s", "from 10s to 24h"},
	{"AUTH_JWKS_REFRESH", "25h", "from 10s to 24h"},
	{"AUTH_JWKS_MAX_STALE", "59s", "from 1m to 720h"},
	{"AUTH_JWKS_MAX_STALE", "2m", "at least AUTH_JWKS_REFRESH=5m"},
	{"AUTH_ISSUER", "two words", "without spaces"},
	{"AUTH_ISSUER", strings.Repeat("x", 513), "from 0 to 512 bytes"},
	{"AUTH_AUDIENCE", ",", "the list has no name"},
	{"AUTH_AUDIENCE", "chat,*", "* is no name"},
	{"AUTH_AUDIENCE", "a," + strings.Repeat("x", 513), "at most 512"},
	{"AUTH_LEEWAY", "121s", "from 0s to 2m"},
	{"AUTH_LEEWAY", "-1s", "from 0s to 2m"},
	{"AUTH_ANONYMOUS", "everybody", "auto, on, off or pattern:rights"},
	{"AUTH_TIMEOUT", "999ms", "from 1s to 1m"},
	{"AUTH_QUERY_TOKEN", "maybe", "true or false"},
	{"ADMIN_ADDR", "nowhere", "host:port"},
	{"COLOR", "red", "blue, green"},
	{"DEPLOYMENT", strings.Repeat("x", 65), "from 0 to 64 bytes"},
	{"DEPLOYMENT", "\xff", "of ASCII"},
	{"DEPLOYMENT", "two words", "without spaces"},
	{"ALLOWED_ORIGINS", "app.example.com", "scheme://host"},
	{"ALLOWED_ORIGINS", "https://a.example/path", "without a path"},
	{"ALLOWED_ORIGINS", "ftp://a.example", "pages do not have this scheme"},
	{"ALLOWED_ORIGINS", "ftp://", "pages do not have this scheme"},
	{"ALLOWED_ORIGINS", "https://", "scheme://host"},
	{"ALLOWED_ORIGINS", "wss://*", "two labels"},
	{"ALLOWED_ORIGINS", "https://.", "scheme://host"},
	{"ALLOWED_ORIGINS", "file:///", "scheme://host"},
	{"ALLOWED_ORIGINS", "moz-extension://**", "star"},
	{"ALLOWED_ORIGINS", "moz-extension://*:1", "two labels"},
	{"ALLOWED_ORIGINS", "://*", "scheme://host"},
	{"ALLOWED_ORIGINS", "*:3000", "scheme://host"},
	{"ALLOWED_ORIGINS", "https://*", "two labels"},
	{"ALLOWED_ORIGINS", "https://*.com", "two labels"},
	{"ALLOWED_ORIGINS", "https://*.com:8443", "two labels"},
	{"ALLOWED_ORIGINS", "https://*.com.", "two labels"},
	{"ALLOWED_ORIGINS", "https://a*.example.com", "star"},
	{"ALLOWED_ORIGINS", "https://a.*.example.com", "star"},
	{"ALLOWED_ORIGINS", "https://*.*.example.com", "star"},
	{"ALLOWED_ORIGINS", "https://user@a.example", "scheme://host"},
	{"ALLOWED_ORIGINS", "https://a.example?x", "scheme://host"},
	{"ALLOWED_ORIGINS", "https://bücher.example", "xn--"},
	{"ALLOWED_ORIGINS", "https://a..example", "scheme://host"},
	{"ALLOWED_ORIGINS", "https://a.example:0", "port"},
	{"ALLOWED_ORIGINS", "https://a.example:65536", "port"},
	{"ALLOWED_ORIGINS", "https://a.example:080", "port"},
	{"ALLOWED_ORIGINS", "https://[::1", "scheme://host"},
	{"ALLOWED_HOSTS", "https://a.example", "a name without"},
	{"ALLOWED_HOSTS", "a.example:8000", "a name without"},
	{"ALLOWED_HOSTS", "*.", "dot at its end"},
	{"ALLOWED_HOSTS", "*.com", "two labels"},
	{"ALLOWED_HOSTS", "a.example.", "dot at its end"},
	{"ALLOWED_HOSTS", "bücher.example", "xn--"},
	{"TRUSTED_PROXIES", "traefik", "network"},
	{"TRUSTED_PROXIES", "10.0.0.1/8", "10.0.0.0/8"},
	{"TRUSTED_PROXIES", "10.0.0.0/33", "network"},
	{"TRUSTED_PROXIES", "::ffff:10.0.0.0/104", "as IPv4"},
	{"TRUSTED_PROXIES", "0.0.0.0/0", "everyone"},
	{"TRUSTED_PROXIES", "::/0", "everyone"},
	{"TRUSTED_PROXIES", "*", "everyone"},
	{"API_KEYS", "short", "at least 16"},
	{"API_KEYS", "a:0123456789abcdef,a:0123456789abcdeg", "two keys are named a"},
	{"API_KEYS", "a:0123456789abcdef,b:0123456789abcdef", "a and b are the same key"},
	{"API_KEYS", "a b:0123456789abcdef", "name of key 1"},
	{"API_KEYS", "shop=0123456789abcdef", "key 1 has a = in it; write name:key"},
	{"API_KEYS", "shop:0123456789abcdef till:fedcba9876543210", "key 1 has white space"},
	{"MAX_FRAME", "1023", "from 1024 to 1048576"},
	{"MAX_FRAME", "1048577", "from 1024 to 1048576"},
	{"MAX_FRAME", "64k", "whole number"},
	{"QUEUE_BYTES", "589824", "must be over 589824"},
	{"QUEUE_BYTES", "67108865", "from 1 to 67108864"},
	{"QUEUE_TOTAL_BYTES", "-1", "from 0 to 1099511627776"},
	{"QUEUE_TOTAL_BYTES", "1099511627777", "from 0 to 1099511627776"},
	{"MAX_CONNECTIONS", "0", "from 1 to"},
	{"MAX_HANDSHAKE_RATE", "0", "from 1 to 100000"},
	{"IDLE_TIMEOUT", "4s", "from 5s to 1h"},
	{"IDLE_TIMEOUT", "61m", "from 5s to 1h"},
	{"HEARTBEAT", "999ms", "from 1s to 10m"},
	{"HEARTBEAT", "601s", "from 1s to 10m"},
	{"HEARTBEAT", "25", "duration with its unit"},
	{"LOG_LEVEL", "loud", "debug, info, warn or error"},
	{"LOG_FORMAT", "xml", "json, text"},
	{"AUDIT_LOG", "/" + strings.Repeat("x", 4096), "from 0 to 4096 bytes"},
	{"DATABASE_URL", "mysql://h/d", "postgres://"},
	{"DATABASE_URL", "sqlite:", "names no file"},
	{"DATABASE_URL", "sqlite::memory:", "must be on disk"},
	{"DATABASE_MAX_CONNS", "3", "from 4 to 500"},
	{"DATABASE_LANES", "17", "from 1 to 16"},
	{"DATABASE_LANES", "10", "DATABASE_LANES + 3 = 13"},
	{"DATABASE_CONN_LIFETIME", "1s", "from 10s to 24h"},
	{"DATABASE_TRUST_FAILOVER", "perhaps", "true or false"},
	{"ID_WINDOW", "59s", "from 1m to 168h"},
	{"RETENTION_AGE", "-1s", "from 0s to 87600h"},
	{"RETENTION_COUNT", "-1", "from 0 to 1000000000"},
	{"APPEND_TIMEOUT", "61s", "from 100ms to 1m"},
	{"REDIS_URL", "http://h", "redis://"},
	{"REDIS_URL", "redis://", "redis://"},
	{"REDIS_URL", "redis+ring://h", "redis+cluster://"},
	{"REDIS_URL", "redis+cluster:///0", "redis+cluster://"},
	{"REDIS_URL", "redis+sentinel://a,b", "redis+sentinel://"},
	{"REDIS_URL", "redis+sentinel://a,b/?x=y", "/master"},
	{"REDIS_PREFIX", "staging", "and a colon"},
	{"REDIS_PREFIX", ":", "1 to 64"},
	{"REDIS_PREFIX", "sy:staging:", "1 to 64"},
	{"REDIS_PREFIX", "{sy}:", "1 to 64"},
	{"REDIS_PREFIX", strings.Repeat("x", 65) + ":", "1 to 64"},
	{"BROKER_QUEUE", "0", "from 1 to 1000000"},
	{"SESSION_TTL", "4s", "from 5s to 24h"},
	{"SESSION_TTL", "50s", "SESSION_TTL=50s must be over 50s, twice HEARTBEAT"},
	{"PRESENCE_LIMIT", "0", "from 1 to 10000"},
	{"REPAIR_WAIT", "11s", "from 1ms to 10s"},
	{"MAX_INFLIGHT", "257", "from 1 to 256"},
	{"MAX_ROOMS", "0", "from 1 to 100000"},
	{"DRAIN_DELAY", "11m", "from 0s to 10m"},
	{"DRAIN_DELAY", "20s", "DRAIN_DELAY + DRAIN_WINDOW = 30s"},
	{"DRAIN_WINDOW", "0s", "from 1s to 1h"},
	{"DRAIN_TIMEOUT", "2h", "from 1s to 1h"},
	{"MAX_CONNECTIONS_PER_USER", "-1", "from 0 to 1000000"},
	{"MAX_CONNECTIONS_PER_IP", "1000001", "from 0 to 1000000"},
	{"RATE_PUBLISH", "many", "whole number"},
	{"RATE_BYTES", "1000000001", "from 0 to 1000000000"},
	{"RATE_JOIN", "-1", "from 0 to 1000000"},
	{"RATE_HISTORY", "1.5", "whole number"},
	{"RATE_USER_PUBLISH", "-1", "from 0 to 1000000"},
	{"RATE_USER_BYTES", "1GB", "whole number"},
	{"RATE_USER_HISTORY", "-1", "from 0 to 1000000"},
	{"RATE_USER_READ_BYTES", "1GB", "whole number"},
	{"RATE_API", "-1", "from 0 to 1000000"},
	{"STRICT_SETTINGS", "very", "true or false"},
	{"DRAIN_TIMEOUT", "9s", "DRAIN_DELAY + DRAIN_WINDOW = 10s"},
}

func TestEachMistakeIsNamedWithItsBoundAndAnExample(t *testing.T) {
	tested := map[string]bool{}
	for _, tt := range mistakes {
		tested[tt.name] = true
		t.Run(tt.name+"="+tt.value[:min(len(tt.value), 20)], func(t *testing.T) {
			clearSettings(t)
			t.Setenv(tt.name, tt.value)
			_, err := Load()
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.wantErr) || !strings.Contains(err.Error(), tt.name) {
				t.Errorf("%q is not in: %v", tt.wantErr, err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %v", err)
			}
		})
	}
	var cfg Config
	for s := range settings(&cfg) {
		if !tested[s.name()] {
			t.Errorf("no case has a wrong %s", s.name())
		}
	}
}

func TestAllMistakesAreReportedAtOnce(t *testing.T) {
	clearSettings(t)
	wrong := map[string]string{"MAX_FRAME": "x", "HEARTBEAT": "x", "LOG_LEVEL": "x", "COLOR": "x", "DATABASE_URL": "x"}
	for name, value := range wrong {
		t.Setenv(name, value)
	}
	_, err := Load()
	if err == nil {
		t.Fatal("accepted")
	}
	if got := strings.Count(err.Error(), "\n") + 1; got != len(wrong) {
		t.Errorf("%d lines for %d mistakes:\n%v", got, len(wrong), err)
	}
}

func TestSecretsAreReadFromFiles(t *testing.T) {
	clearSettings(t)
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("DATABASE_URL_FILE", file("postgres://u:hush@h/d\n"))
	t.Setenv("API_KEYS_FILE", file("shop:0123456789abcdef\n"))
	cfg, err := Load()
	if err != nil || cfg.Store.URL.Reveal() != "postgres://u:hush@h/d" || cfg.HTTP.APIKeys.Reveal()["shop"] != "0123456789abcdef" {
		t.Fatalf("%v: %v", err, cfg.Store.URL.Reveal())
	}
	t.Setenv("DATABASE_URL", "postgres://other/d")
	t.Setenv("REDIS_URL_FILE", "/no/such/file")
	t.Setenv("API_KEYS_FILE", file("short"))
	_, err = Load()
	for _, wantErr := range []string{"DATABASE_URL and DATABASE_URL_FILE are both set", "REDIS_URL_FILE: the file can't be used", "API_KEYS_FILE: key 1 has 5 bytes"} {
		if err == nil || !strings.Contains(err.Error(), wantErr) {
			t.Errorf("%q is not in: %v", wantErr, err)
		}
	}
}

// A password is rotated: its file is written again, in place or as Kubernetes does it,
// by a link to another one.
func TestASecretIsReadFromItsFileAgain(t *testing.T) {
	clearSettings(t)
	t.Setenv("DATABASE_URL_FILE", "")
	t.Setenv("DATABASE_URL", "postgres://u:first@h/d")
	if Reread("DATABASE_URL") != nil {
		t.Error("a variable is said to have a file")
	}
	t.Setenv("DATABASE_URL", "")
	path := filepath.Join(t.TempDir(), "url")
	t.Setenv("DATABASE_URL_FILE", `"`+path+`"`)
	write := func(content string) {
		next := filepath.Join(t.TempDir(), "next")
		if err := errors.Join(os.WriteFile(next, []byte(content), 0o600), os.RemoveAll(path), os.Symlink(next, path)); err != nil {
			t.Fatal(err)
		}
	}
	write("postgres://u:first@h/d")
	reread := Reread("DATABASE_URL")
	write("postgres://other:second@h/d\n")
	if got, err := reread(); err != nil || got != "postgres://other:second@h/d" {
		t.Errorf("%q, %v", got, err)
	}
	for _, half := range []string{"", "postgr", "postgres://u:hush@hush@h/d"} {
		write(half)
		if _, err := reread(); err == nil || !strings.Contains(err.Error(), "DATABASE_URL_FILE: ") || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", half, err)
		}
	}
	t.Setenv("DATABASE_URL_FILE", "/dev/zero")
	if Reread("DATABASE_URL") != nil {
		t.Error("a device is read again")
	}
}

func TestInvalidSecretFilesAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	for content, wantErr := range map[string]string{
		strings.Repeat("x", 65537): "DATABASE_URL_FILE: the file can't be used: it has over 65536 bytes",
		"":                         "DATABASE_URL_FILE: the file is empty",
		"\r\n":                     "DATABASE_URL_FILE: the file is empty",
		"mysql://u:hush@h/d":       "DATABASE_URL_FILE: must be postgres://",
	} {
		clearSettings(t)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("DATABASE_URL_FILE", path)
		if _, err := Load(); err == nil || !strings.Contains(err.Error(), wantErr) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%.20q: %q is not in: %v", content, wantErr, err)
		}
	}
	clearSettings(t)
	t.Setenv("DATABASE_URL_FILE", "/dev/zero") // it has no end
	if _, err := Load(); err == nil || !strings.Contains(err.Error(), "over 65536") {
		t.Errorf("a file without an end: %v", err)
	}
	t.Setenv("DATABASE_URL_FILE", "") // compose files set a variable to nothing
	if cfg, err := Load(); err != nil || cfg.Store.URL.Reveal() != "sqlite:switchyard.db" {
		t.Errorf("a variable that is set to nothing: %v", err)
	}
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	clearSettings(t)
	t.Setenv("DATABASE_URL", "postgres://u:hush@h/d")
	t.Setenv("API_KEYS", "shop:hush-hush-hush-hush")
	t.Setenv("AUTH_JWT_SECRET", strings.Repeat("hush", 8))
	cfg, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("settings", "config", cfg, "url", cfg.Store.URL)
	t.Setenv("DATABASE_URL", "mysql://u:hush@h/d")
	t.Setenv("API_KEYS", "hush")
	t.Setenv("AUTH_JWT_SECRET", "hush")
	_, wrong := Load()
	for name, text := range map[string]string{
		"%v": fmt.Sprint(cfg), "%+v": fmt.Sprintf("%+v", cfg), "%#v": fmt.Sprintf("%#v", cfg),
		"JSON": string(asJSON), "slog": logged.String(), "mistake": wrong.Error(),
	} {
		if strings.Contains(text, "hush") {
			t.Errorf("%s shows a secret: %s", name, text)
		}
	}
}

func TestTheConfigurationDocumentIsUpToDate(t *testing.T) {
	path := "../../docs/configuration.md"
	if *update {
		if err := os.WriteFile(path, []byte(Markdown()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := testkit.ReadFile(t, path)
	if string(got) != Markdown() {
		t.Error("docs/configuration.md differs from internal/config: run make docs")
	}
}

func FuzzSettings(f *testing.F) {
	f.Add("API_KEYS", "a:0123456789abcdef")
	f.Add("ALLOWED_ORIGINS", "https://a")
	f.Add("AUTH_JWT_SECRET", secret+",,x")
	f.Add("DATABASE_URL", "postgres://u:p@h/d")
	f.Fuzz(func(t *testing.T, name, value string) {
		if strings.ContainsAny(name+value, "\x00=") || name == "" {
			return // an environment can't have it
		}
		clearSettings(t)
		t.Setenv(name, value)
		_, err := Load()
		if err == nil {
			return
		}
		for line := range strings.Lines(err.Error()) {
			if !strings.Contains(line, name) {
				t.Errorf("the error of a wrong %s does not name it: %q", name, line)
			}
		}
	})
}
