package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// Env files leave quotes, white space and marks around a value, each program that
// reads them in its own way. For every setting the value is what is between them.
func TestWhatEnvFilesLeaveAroundAValueIsNotAPartOfIt(t *testing.T) {
	around := map[string]string{
		"double quotes, as docker run --env-file keeps them": `"%"`,
		"single quotes":                   `'%'`,
		"the end of a line of Windows":    "%\r",
		"the end of a line":               "%\n",
		"a space, of set A=b && … in cmd": "% ",
		"white space on both sides":       " \t%\t ",
		"quotes and the end of a line":    "\"%\"\r\n",
		"white space inside the quotes":   `" % "`,
		"the mark of an editor":           "\ufeff%",
		"a space that does not break":     "\u00a0%",
	}
	var cfg Config
	for s := range settings(&cfg) {
		value := s.tag("example")
		if s.name() == "API_KEYS" || s.name() == "AUTH_JWT_SECRET" { // the documented ones are refused
			value = "shop:" + secret
		}
		plain, err := read(t, s.name(), value)
		if err != nil {
			t.Fatalf("%s=%s: %v", s.name(), value, err)
		}
		for what, form := range around {
			got, err := read(t, s.name(), strings.Replace(form, "%", value, 1))
			if err != nil || !reflect.DeepEqual(got, plain) {
				t.Errorf("%s with %s: %v", s.name(), what, err)
			}
		}
		if !s.isSecret() {
			continue
		}
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte("\ufeff\""+value+"\"\r\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := read(t, s.name()+fileSuffix, `"`+path+"\"\r"); err != nil || !reflect.DeepEqual(got, plain) {
			t.Errorf("%s, whose file has quotes and the end of a line of Windows: %v", s.name(), err)
		}
	}
}

// A value that shows that its line was not read as it was meant is refused, for every
// setting, with what is wrong.
func TestWhatEnvFilesLeaveInAValueIsRefused(t *testing.T) {
	left := map[string]string{
		`""`:              "only quotes or white space",
		`' '`:             "only quotes or white space",
		" \t":             "only quotes or white space",
		`"%`:              "quote that does not enclose",
		`%"`:              "quote that does not enclose",
		`"%" # a note`:    "quote that does not enclose",
		`"%","%"`:         "quote that does not enclose",
		"“%”":             "quote that does not enclose",
		"`%`":             "quote that does not enclose",
		`'"%"'`:           "in quotes twice",
		"% # a note":      "a comment behind it",
		"%\t# a note":     "a comment behind it",
		"NAME=%":          "its own name",
		`"NAME=%"`:        "its own name",
		"${NAME}":         "a placeholder",
		"${NAME:-%}":      "a placeholder",
		`"${NAME}"`:       "a placeholder",
		"$NAME":           "a placeholder",
		"$(cat /secret)":  "a placeholder",
		"%NAME%":          "a placeholder",
		"{{ .Values.x }}": "a placeholder",
		"<your value>":    "a placeholder",
		`["%"]`:           "JSON",
		`{"a": "%"}`:      "JSON",
		`% \`:             `the \ of a line that goes on`,
	}
	var cfg Config
	for s := range settings(&cfg) {
		for form, says := range left {
			value := strings.ReplaceAll(form, "NAME", s.name())
			if form != "%NAME%" {
				value = strings.ReplaceAll(value, "%", "0123456789abcdef0123456789abcdef")
			}
			_, err := read(t, s.name(), value)
			if err == nil || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), s.name()+"=") {
				t.Errorf("%s=%s: %v, want %q", s.name(), value, err, says)
			}
		}
	}
}

// A value that really has such a character can be written.
func TestAValueWithSuchACharacterCanBeWritten(t *testing.T) {
	for written, want := range map[string]string{
		`'"` + secret + `'`:      `"` + secret,
		`"` + secret + `'"`:      secret + `'`,
		`"` + secret + ` # two"`: secret + ` # two`,
		secret + `"` + secret:    secret + `"` + secret,
		secret + `#`:             secret + `#`,
		secret + `=`:             secret + `=`,
	} {
		got, err := read(t, "AUTH_JWT_SECRET", written)
		if err != nil || !reflect.DeepEqual(got, Secrets{Secret(want)}) {
			t.Errorf("%s: %#v, %v", written, got.(Secrets).Reveal(), err)
		}
	}
}

func TestAFileThatIsNotTextIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	for what, content := range map[string]string{
		"UTF-16, as PowerShell writes it": "\xff\xfep\x00o\x00s\x00t\x00",
		"UTF-16 without a mark":           "s\x00q\x00l\x00i\x00t\x00e\x00:\x00x\x00",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := read(t, "DATABASE_URL_FILE", path); err == nil || !strings.Contains(err.Error(), "not text in UTF-8") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Yes and no can be said in the usual ways, wherever a setting has the two.
func TestYesAndNo(t *testing.T) {
	meaning := map[string][2]any{
		"AUTH_ANONYMOUS": {"on", "off"}, "AUDIT_LOG": {"stdout", "off"},
		"AUTH_JWKS_ALLOW_HTTP": {true, false}, "AUTH_QUERY_TOKEN": {true, false}, "DATABASE_TRUST_FAILOVER": {true, false}, "STRICT_SETTINGS": {true, false},
	}
	var cfg Config
	for s := range settings(&cfg) {
		_, isBool := s.value.Interface().(bool)
		_, listed := meaning[s.name()]
		if isSwitch := isBool || s.tag("switch") != ""; isSwitch != listed {
			t.Errorf("%s: it is a switch: %t, and it is listed here: %t", s.name(), isSwitch, listed)
		}
	}
	for name, want := range meaning {
		for i, all := range [][]string{
			{"true", "True", "TRUE", "t", "1", "on", "ON", "yes", "y", `"true"`},
			{"false", "False", "f", "0", "off", "Off", "no", "NO", "n", "false\r"},
		} {
			for _, word := range all {
				if got, err := read(t, name, word); err != nil || got != want[i] {
					t.Errorf("%s=%s is %v, %v", name, word, got, err)
				}
			}
		}
	}
}

func TestAStarAllowsEveryOriginAndEveryHost(t *testing.T) {
	for value, want := range map[string]Origins{"*": {"*"}, `"*"`: {"*"}, "https://a.example, *,null": {"https://a.example", "*", "null"}} {
		if got, err := read(t, "ALLOWED_ORIGINS", value); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ALLOWED_ORIGINS=%s: %v, %v", value, got, err)
		}
	}
	for _, value := range []string{"*", "'*'", "a.example,*"} {
		if got, err := read(t, "ALLOWED_HOSTS", value); err != nil || len(got.(Hosts)) != 0 {
			t.Errorf("ALLOWED_HOSTS=%s: %v, %v", value, got, err)
		}
	}
}

// documentedValue matches a secret in the documentation: behind its setting's name, or
// in a header.
var documentedValue = regexp.MustCompile(`(API_KEYS|AUTH_JWT_SECRET|Authorization: Bearer)[=: ]*["'` + "`" + `]?([A-Za-z0-9._-]+:)?([A-Za-z0-9+/_-]{16,}=*)`)

// A secret that stands in the documentation is known to everybody.
func TestDocumentedSecretsAreRefused(t *testing.T) {
	root := "../.."
	pages := []string{"README.md", "SECURITY.md", "CONTRIBUTING.md", "bench/README.md", "web/openapi.yaml", "web/asyncapi.yaml", "deploy/compose/.env.example",
		"deploy/compose/docker-compose.dev.yml", "deploy/compose/docker-compose.prod.yml"}
	for _, pattern := range []string{"docs/*.md", "docs/decisions/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(found) < 5 {
			t.Fatalf("%s: %d files, %v", pattern, len(found), err)
		}
		for _, page := range found {
			pages = append(pages, strings.TrimPrefix(page, root+"/"))
		}
	}
	values := map[string]string{"jwt.io": "a-string-secret-at-least-256-bits-long", "README.md of 1.0": "a-long-random-secret"}
	var cfg Config
	for s := range settings(&cfg) {
		if s.name() == "API_KEYS" || s.name() == "AUTH_JWT_SECRET" {
			values["the example of "+s.name()] = strings.TrimPrefix(s.tag("example"), "shop:")
		}
	}
	for _, page := range pages {
		for _, found := range documentedValue.FindAllStringSubmatch(string(testkit.ReadFile(t, filepath.Join(root, page))), -1) {
			values[page] = found[3]
		}
	}
	for _, text := range []string{"API_KEYS=shop:a-long-random-secret", "-H 'Authorization: Bearer a-long-random-secret'", "AUTH_JWT_SECRET: `a-long-random-secret`"} {
		if found := documentedValue.FindStringSubmatch(text); found == nil || found[3] != "a-long-random-secret" {
			t.Errorf("the secret in %q is not found: %q", text, found)
		}
	}
	for place, value := range values {
		for _, key := range []string{value, "shop:" + value, secret + "," + value, strings.ToUpper(value), `"` + value + `"`} {
			if _, err := read(t, "API_KEYS", key); err == nil || !strings.Contains(err.Error(), "is in the documentation") || strings.Contains(err.Error(), "=shop:"+value+":") {
				t.Errorf("API_KEYS=%s of %s: %v", key, place, err)
			}
		}
		if len(value) >= minSecretBytes {
			if _, err := read(t, "AUTH_JWT_SECRET", secret+","+value); err == nil || !strings.Contains(err.Error(), "secret 2 is in the documentation") {
				t.Errorf("AUTH_JWT_SECRET=%s of %s: %v", value, place, err)
			}
		}
	}
}
