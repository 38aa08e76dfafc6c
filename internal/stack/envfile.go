package stack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// readEnv reads the plain NAME=value lines of a .env file. Of two lines with the
// same name the last one counts.
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

// parseAssignment splits a line into name and value, and removes quotes around the
// value. ok is false if the line is not an assignment.
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

// setEnv returns the text of a .env file with some names set, and all other bytes
// unchanged. If a name occurs twice, both lines are changed. order is the order in
// which missing names are appended.
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

// writeColorEnv writes a color's spec into .env, so that a plain `docker compose up
// -d` keeps the color as it is. It does not write a file that is right already.
func writeColorEnv(dir string, spec ColorSpec) error {
	path := filepath.Join(dir, ".env")
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the stack's settings: %w", err)
	}
	c := strings.ToUpper(string(spec.Color))
	set := map[string]string{"REPLICAS_" + c: fmt.Sprint(spec.Replicas)}
	order := []string{"REPLICAS_" + c}
	if spec.Image.Ref != "" { // a stopped color keeps its image
		set["IMAGE_"+c], set["DEPLOYMENT_"+c] = spec.Image.Ref, spec.Deployment
		order = []string{"IMAGE_" + c, "DEPLOYMENT_" + c, "REPLICAS_" + c}
	}
	changed := setEnv(string(text), set, order)
	if changed == string(text) {
		return nil
	}
	return rewriteFile(path, dir, []byte(changed))
}
