package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// documentedBounds matches the rows of docs/configuration.md whose bounds are
// numbers or durations.
var documentedBounds = regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\|[^|]*\\| ([0-9][0-9a-z]*) to ([0-9][0-9a-z]*) \\|")

// The bounds in docs/configuration.md are allowed themselves, and the next values
// beyond them are refused.
func TestTheDocumentedBoundsAreAllowedAndNoMore(t *testing.T) {
	text := testkit.ReadFile(t, "../../docs/configuration.md")
	rows := documentedBounds.FindAllStringSubmatch(string(text), -1)
	if len(rows) < 30 {
		t.Fatalf("the page has %d rows with bounds only", len(rows))
	}
	refused := func(name, value string) bool {
		clearSettings(t)
		t.Setenv(name, value)
		_, err := Load() // which may find that the value contradicts another setting
		return err != nil && strings.Contains(err.Error(), name+`="`+value+`": must be from `)
	}
	for _, row := range rows {
		name, low, high := row[1], row[2], row[3]
		for _, value := range []string{low, high} {
			if refused(name, value) {
				t.Errorf("%s=%s is refused although it is the documented bound", name, value)
			}
		}
		if n, err := strconv.ParseInt(low, 10, 64); err == nil {
			m, err := strconv.ParseInt(high, 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			low, high = strconv.FormatInt(n-1, 10), strconv.FormatInt(m+1, 10)
		} else {
			low, high = neighbor(t, low, -1), neighbor(t, high, 1)
		}
		for _, value := range []string{low, high} {
			if !refused(name, value) {
				t.Errorf("%s=%s is accepted although it is beyond the documented bound", name, value)
			}
		}
	}
}

func neighbor(t *testing.T, text string, step time.Duration) string {
	t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return (d + step).String()
}

// The numbers here are those of docs/configuration.md and docs/limits.md.
func TestTheLengthsOfSecretsKeysAndNames(t *testing.T) {
	load := func(name, value string) error {
		clearSettings(t)
		t.Setenv("DATABASE_URL_FILE", "")
		t.Setenv(name, value)
		_, err := Load()
		return err
	}
	x := func(n int) string { return strings.Repeat("x", n) }
	file := func(n int) string { // a DATABASE_URL of n bytes
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte("sqlite:"+x(n-len("sqlite:"))), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct{ name, allowed, refused string }{
		{"AUTH_JWT_SECRET", x(32), x(31)},
		{"API_KEYS", x(16), x(15)},
		{"API_KEYS", x(64) + ":" + x(16), x(65) + ":" + x(16)},
		{"AUTH_AUDIENCE", x(512), x(513)},
		{"AUTH_ISSUER", x(512), x(513)},
		{"DEPLOYMENT", x(64), x(65)},
		{"DATABASE_URL_FILE", file(64 << 10), file(64<<10 + 1)},
		{"QUEUE_BYTES", "589825", "589824"}, // over twice 256 KiB + 64 KiB
	} {
		if err := load(tt.name, tt.allowed); err != nil {
			t.Errorf("%s with %d bytes: %v", tt.name, len(tt.allowed), err)
		}
		if err := load(tt.name, tt.refused); err == nil {
			t.Errorf("%s with %d bytes is accepted", tt.name, len(tt.refused))
		}
	}
}
