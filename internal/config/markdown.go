package config

import (
	"fmt"
	"strings"
)

// Markdown is docs/configuration.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString(`# Configuration

Made from internal/config by ` + "`make docs`" + `; a test holds it to the code.

Every setting is an environment variable. A wrong one ends the start with exit code 1
and a line for each mistake. A secret can also be given by file: set its name with
` + "`_FILE`" + ` appended to a path (both at once is a mistake). Secrets are never printed.

| setting | default | bounds | secret | what it is |
|---|---|---|---|---|
`)
	var cfg Config
	for s := range settings(&cfg) {
		value := s.tag("default")
		if value != "" {
			value = "`" + value + "`"
		}
		secret := ""
		if s.isSecret() {
			secret = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s Example: `%s` |\n", s.name(), value, s.boundsText(), secret, s.tag("doc"), s.tag("example"))
	}
	return b.String()
}

func (s setting) boundsText() string {
	if allowed := s.tag("oneof"); allowed != "" {
		return strings.Trim(strings.ReplaceAll(allowed, ",", ", "), ", ")
	}
	low, high := s.tag("min"), s.tag("max")
	switch {
	case low != "" && high != "":
		return low + " to " + high
	case high != "":
		return "at most " + high + " bytes"
	}
	return ""
}
