package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// readEnv reads the plain NAME=value lines of a .env file; the last of a name
// counts.
func readEnv(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the stack's settings: %w", err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := parseAssignment(line); ok {
			env[name] = value
		}
	}
	return env, nil
}

// parseAssignment takes a line apart. Quotes around a value are no part of it.
func parseAssignment(line string) (name, value string, ok bool) {
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "#") {
		return "", "", false
	}
	name, value, ok = strings.Cut(line, "=")
	name, value = strings.TrimSpace(strings.TrimPrefix(name, "export ")), strings.TrimSpace(value)
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		value = value[1 : n-1]
	}
	return name, value, ok && name != ""
}

// setEnv returns a .env text with some names set and every other byte as it was.
// Of a name that stands there twice both lines are changed.
func setEnv(text string, set map[string]string, order []string) string {
	var b strings.Builder
	done := map[string]bool{}
	for line := range strings.Lines(text) {
		name, _, ok := parseAssignment(line)
		if value, wanted := set[name]; ok && wanted {
			line = name + "=" + value + "\n"
			done[name] = true
		}
		b.WriteString(line)
	}
	if s := b.String(); s != "" && !strings.HasSuffix(s, "\n") {
		b.WriteString("\n")
	}
	for _, name := range order {
		if !done[name] {
			b.WriteString(name + "=" + set[name] + "\n")
		}
	}
	return b.String()
}

// writeColorEnv has .env say how a color runs, so that a plain `docker compose up
// -d` keeps it so. Nothing is written when it says so already.
func writeColorEnv(dir string, l ColorSpec) error {
	path := filepath.Join(dir, ".env")
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the stack's settings: %w", err)
	}
	c := strings.ToUpper(string(l.Color))
	set := map[string]string{"REPLICAS_" + c: fmt.Sprint(l.Replicas)}
	order := []string{"REPLICAS_" + c}
	if l.Image.Ref != "" { // a color that is stopped keeps its image
		set["IMAGE_"+c], set["DEPLOYMENT_"+c] = l.Image.Ref, l.Deployment
		order = []string{"IMAGE_" + c, "DEPLOYMENT_" + c, "REPLICAS_" + c}
	}
	changed := setEnv(string(text), set, order)
	if changed == string(text) {
		return nil
	}
	return writeFileAtomic(path, path+".new", []byte(changed))
}
