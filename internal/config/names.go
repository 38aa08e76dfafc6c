package config

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// A setting with a wrong name has no effect, and nothing fails: a service whose
// DATABASE_URL is called DATABASE_URI stores its messages in a file. This file finds
// such names.

// maxWarnings bounds the names that are listed, since an environment may have any
// number of them.
const maxWarnings = 20

// aliases are names that other programs give to what a setting means. They belong to
// such a program if the setting itself is set.
var aliases = map[string][]string{
	"DATABASE_URL": {
		"DB_URL", "DB_URI", "DB_DSN", "DB_HOST", "DSN", "POSTGRES_URL", "POSTGRES_URI", "POSTGRES_DSN", "POSTGRES_HOST",
		"POSTGRESQL_URL", "POSTGRESQL_URI", "PG_URL", "PG_URI", "PG_DSN", "SQLITE_URL", "SQLITE_PATH", "SQLITE_FILE",
	},
	"REDIS_URL":       {"REDISCLOUD_URL", "VALKEY_URL", "VALKEY_URI", "BROKER_URL"},
	"LISTEN_ADDR":     {"LISTEN", "LISTEN_PORT", "LISTEN_HOST", "BIND", "BIND_ADDR", "BIND_ADDRESS", "HTTP_ADDR", "HTTP_PORT", "SERVER_ADDR", "SERVER_PORT"},
	"AUTH_JWT_SECRET": {"JWT_SECRET", "JWT_SECRETS", "JWT_SECRET_KEY", "JWT_KEY", "JWT_SIGNING_KEY"},
	"AUTH_KEY_FILE":   {"JWT_PUBLIC_KEY", "JWT_PUBLIC_KEY_FILE"},
	"AUTH_JWKS_URL":   {"JWKS_URL", "JWKS_URI", "JWT_JWKS_URL"},
	"AUTH_ISSUER":     {"JWT_ISSUER", "OIDC_ISSUER"},
	"AUTH_AUDIENCE":   {"JWT_AUDIENCE", "OIDC_AUDIENCE"},
	"API_KEYS":        {"API_TOKEN", "API_TOKENS", "API_SECRET"},
	"ALLOWED_ORIGINS": {"CORS_ORIGIN", "CORS_ORIGINS", "CORS_ALLOWED_ORIGIN", "CORS_ALLOWED_ORIGINS", "CORS_ALLOW_ORIGIN", "CORS_ALLOW_ORIGINS", "ORIGINS"},
	"TRUSTED_PROXIES": {"TRUST_PROXY", "TRUST_PROXIES"},
	"LOG_LEVEL":       {"LOGGING_LEVEL"},
	"HEARTBEAT":       {"PING_INTERVAL"},
	"SESSION_TTL":     {"SESSION_TIMEOUT"},
	"DRAIN_TIMEOUT":   {"SHUTDOWN_TIMEOUT", "GRACEFUL_SHUTDOWN_TIMEOUT"},
}

// generalWords begin the names of settings, and also those of many other programs:
// systemd has LISTEN_FDS, a desktop SESSION_MANAGER.
var generalWords = map[string]bool{
	"ADMIN": true, "API": true, "AUDIT": true, "COLOR": true, "DEPLOYMENT": true, "HEARTBEAT": true, "ID": true,
	"LISTEN": true, "LOG": true, "QUEUE": true, "SESSION": true, "STRICT": true,
}

var (
	// serviceVariable matches what Kubernetes and Docker's links set for a service
	// called redis, database or auth.
	serviceVariable = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?|ENV_[A-Za-z0-9_]+)$`)
	// urlPart matches the parts of a URL, and further URLs, which platforms set
	// beside the URL itself.
	urlPart = regexp.MustCompile(`^(DATABASE|REDIS)_(HOST|HOSTNAME|PORT|USER|USERNAME|PASS|PASSWORD|PASSWD|NAME|DB|DATABASE|SCHEMA|SSL|SSLMODE|TLS|DSN|ADDR|ADDRESS|[A-Z_]*_URL)(_FILE)?$`)
)

// Warnings returns a sentence for each variable of the environment that is likely a
// mistake and does not keep the service from starting: a name that resembles a
// setting's, and quotes that were removed from a secret.
func Warnings() (warnings []string) {
	names := newKnownNames()
	for s := range names.settings {
		if _, quoted, _ := clean(s.name(), os.Getenv(s.name())); quoted && s.isSecret() {
			warnings = append(warnings, s.name()+" is in quotes, which are not a part of it; whatever else uses this secret must not have them either")
		}
	}
	for _, variable := range slices.Sorted(slices.Values(os.Environ())) {
		name, value, _ := strings.Cut(variable, "=")
		if likely := names.likely(name, value); likely != "" {
			warnings = append(warnings, fmt.Sprintf("%.100s is no setting and has no effect: did you mean %s?", name, likely))
		}
	}
	if more := len(warnings) - maxWarnings; more > 0 {
		warnings = append(warnings[:maxWarnings], fmt.Sprintf("%d more variables have names that resemble a setting's", more))
	}
	return warnings
}

// damagedNames returns an error for each variable that is a setting but for what an
// env file left around its name. Nothing else can have such a name.
func damagedNames() (mistakes []error) {
	names := newKnownNames()
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if _, known := names.all[name]; known {
			continue
		}
		bare := strings.TrimFunc(trim(name), func(r rune) bool { return strings.ContainsRune(quotes, r) })
		for _, word := range []string{"export ", "set ", "env ", "$env:", "- "} {
			bare = trim(strings.TrimPrefix(bare, word))
		}
		if _, known := names.all[bare]; known && bare != name {
			mistakes = append(mistakes, fmt.Errorf("%s is set as %.100q, a name that nothing reads; write %s=, without anything before or behind the name", bare, name, bare))
		}
	}
	return mistakes
}

// knownNames are the names of the variables that are read.
type knownNames struct {
	all      map[string]bool
	aliases  map[string]string // the setting of each alias
	settings func(func(setting) bool)
}

func newKnownNames() knownNames {
	var cfg Config
	k := knownNames{all: map[string]bool{}, aliases: map[string]string{}, settings: settings(&cfg)}
	for s := range k.settings {
		k.all[s.name()] = true
		if s.isSecret() {
			k.all[s.name()+fileSuffix] = true
		}
		for _, alias := range aliases[s.name()] {
			k.aliases[alias] = s.name()
		}
	}
	return k
}

// likely returns the setting that was likely meant by a name, or "" if the name is
// right or belongs to something else.
func (k *knownNames) likely(name, value string) string {
	upper := strings.NewReplacer("-", "_", ".", "_").Replace(strings.ToUpper(name))
	switch {
	case k.all[name]:
		return ""
	case k.all[upper]: // on Windows, names of any case are the same
		if os.Getenv(upper) == value {
			return ""
		}
		return upper
	case serviceVariable.MatchString(upper), strings.HasSuffix(upper, "_PORT") && strings.Contains(value, "://"):
		return ""
	}
	if bare, ours := strings.CutPrefix(upper, "SWITCHYARD_"); ours && k.all[bare] {
		return bare
	}
	if setting := k.aliases[strings.TrimSuffix(upper, fileSuffix)]; setting != "" {
		return unlessSet(setting)
	}
	if part := urlPart.FindStringSubmatch(upper); part != nil {
		return unlessSet(part[1] + "_URL")
	}
	return k.nearest(upper)
}

// unlessSet returns the setting's name, or "" if it or its file is set.
func unlessSet(setting string) string {
	if os.Getenv(setting) != "" || os.Getenv(setting+fileSuffix) != "" {
		return ""
	}
	return setting
}

// nearest returns the setting with the name that differs least from a wrong one, by
// a few letters or by what follows the setting's name or first word.
func (k *knownNames) nearest(wrong string) string {
	if len(wrong) > 64 {
		return "" // no setting's name is half as long
	}
	word, _, hasWord := strings.Cut(wrong, "_")
	type candidate struct {
		name           string
		rank, distance int
	}
	var candidates []candidate
	for name := range k.all {
		distance, allowed := editDistance(wrong, name), 2
		if len(name) < 8 {
			allowed = 1
		}
		switch {
		case distance <= allowed:
			candidates = append(candidates, candidate{name, 0, distance})
		case strings.HasPrefix(wrong, name+"_"), len(name) >= 8 && strings.HasPrefix(wrong, name):
			candidates = append(candidates, candidate{name, 1, distance})
		case hasWord && !generalWords[word] && strings.HasPrefix(name, word+"_") && !strings.HasSuffix(name, fileSuffix):
			candidates = append(candidates, candidate{name, 2, distance})
		}
	}
	if len(candidates) == 0 {
		return ""
	}
	return slices.MinFunc(candidates, func(a, b candidate) int {
		return cmp.Or(a.rank-b.rank, a.distance-b.distance, strings.Compare(a.name, b.name))
	}).name
}

// editDistance returns how many letters must be inserted, removed, replaced or
// swapped with their neighbor to make one name of the other. An underscore separates
// words, so replacing it counts twice.
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replaced := rows[i-1][j-1]
			switch {
			case a[i-1] == b[j-1]:
			case a[i-1] == '_', b[j-1] == '_':
				replaced += 2
			default:
				replaced++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, replaced)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
