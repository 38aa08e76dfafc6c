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
(setting both is a mistake). Those of ` + "`DATABASE_URL` and `REDIS_URL`" + ` are read again for each new
connection, with another user and password if they have changed; after any other change,
deploy again. Secrets are never printed, and neither is any value with an
` + "`@`" + `, since it may have a password.

**Values.** White space, one pair of quotes and a mark of an editor around a value, which
some readers of env files leave there, are not a part of it. A value is refused if it shows
that its line was not read as it was meant: with a quote at one end, a comment behind it, its
own name in front, JSON, or a placeholder such as ` + "`${NAME}`" + `. Put a value that really is
like that into quotes of the other kind. On and off are also true and false, yes and no, 1 and
0, for every setting that has the two.

**Names.** A variable whose name resembles a setting's (` + "`DATABASE_URI`" + `, ` + "`RETENTION_DAYS`" + `)
has no effect, and the log has a warning with the setting that was likely meant; with
` + "`STRICT_SETTINGS`" + ` the service does not start. Names that Kubernetes, Docker and systemd set
are known. Other names of a database or of Redis (` + "`POSTGRES_URL`, `REDIS_HOST`" + `) are warned of
only while ` + "`DATABASE_URL` or `REDIS_URL`" + ` is not set. A setting's name with something around it
(` + "`export DATABASE_URL`" + ` as the name itself) is refused.

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
