package config

import (
	"fmt"
	"strings"
)

// Markdown returns the text of docs/configuration.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString(`# Configuration

Generated from internal/config by ` + "`make docs`" + `; a test keeps it up to date.

Every setting is an environment variable. With a wrong one the service does not start:
it prints a line for each mistake and exits with 1. A secret can also be read from a
file: set the variable with ` + "`_FILE`" + ` appended to its name to the path of the file
(setting both is a mistake). Secrets are never printed.

| setting | default | bounds | secret | meaning |
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

// boundsText returns the allowed values for the table.
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
