package stack

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Settings, services and files that the operators' page names are there.
func TestTheOperatorsPageNamesWhatIsThere(t *testing.T) {
	page := read(t, root+"/docs/operations.md")
	env := example(t)
	file := production(t, env)
	settings := map[string]bool{"DATABASE_URL": true, "REDIS_URL": true, "DATABASE_LANES": true, "IMAGE_MIGRATE": true, "HTTP": true, "COMPOSE_FILE": true}
	for name := range env {
		settings[name] = true
	}
	for _, name := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\|").FindAllStringSubmatch(read(t, root+"/docs/configuration.md"), -1) {
		settings[name[1]] = true
	}
	found := 0
	for _, name := range regexp.MustCompile("[`\n ]([A-Z]+(?:_[A-Z]+)+)\\b").FindAllStringSubmatch(page, -1) {
		if found++; !settings[name[1]] {
			t.Errorf("the page names %s, which neither .env.example nor docs/configuration.md has", name[1])
		}
	}
	for _, name := range regexp.MustCompile(`docker compose[^\n]* (?:exec|rm -sf|up -d --wait --no-deps|stop) ([a-z_]+)`).FindAllStringSubmatch(page, -1) {
		if found++; file.Services[name[1]].Image == "" {
			t.Errorf("the page names the service %s", name[1])
		}
	}
	for _, name := range regexp.MustCompile("`((?:postgres|dynamic|staging|secrets)/[a-z_.]+)`").FindAllStringSubmatch(page, -1) {
		found++
		if secret, ok := strings.CutPrefix(name[1], "secrets/"); ok {
			if _, known := file.Secrets[secret]; !known {
				t.Errorf("the page names the secret %s", secret)
			}
			continue
		}
		if _, err := os.Stat(filepath.Join(compose, name[1])); err == nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(traefik, name[1])); err != nil {
			t.Errorf("the page names %s, which is not there", name[1])
		}
	}
	if found < 30 {
		t.Errorf("only %d names were looked for", found)
	}
}
