package config

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
)

// checks are the rules that the tag check names. They return what is wrong, or
// nothing.
var checks = map[string]func(string) string{
	"address": func(s string) string {
		if _, _, err := net.SplitHostPort(s); err != nil {
			return "must be host:port, or :port for all addresses"
		}
		return ""
	},
	"printable": func(s string) string {
		if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return "must be letters, digits and signs of ASCII, without spaces"
		}
		return ""
	},
	"database": func(s string) string {
		if path, ok := strings.CutPrefix(s, "sqlite:"); ok {
			switch path {
			case "":
				return "names no file"
			case ":memory:":
				return "names no file: messages must be on disk before they are acked"
			}
			return ""
		}
		if !strings.HasPrefix(s, "postgres://") && !strings.HasPrefix(s, "postgresql://") {
			return "must be postgres://user:password@host:port/name or sqlite:path"
		}
		if reason := brokenUserinfo(s); reason != "" {
			return reason
		}
		if _, err := url.Parse(s); err != nil {
			return "must be postgres://user:password@host:port/name; " + escapes
		}
		return ""
	},
	// These two find gross mistakes; internal/auth parses the values and reports the
	// rest.
	"jwks": func(s string) string {
		if s == "" || strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://") {
			return brokenUserinfo(s)
		}
		return "must be https://host/path"
	},
	"anonymous": func(s string) string {
		if s == "auto" || s == "on" || s == "off" || strings.Contains(s, ":") {
			return ""
		}
		return "must be auto, on, off or pattern:rights, separated by commas"
	},
	// With one colon, at its end, no prefix is the beginning of another one, and none has
	// the braces by which a cluster chooses a slot.
	"prefix": func(s string) string {
		if name, found := strings.CutSuffix(s, ":"); !found || !isName(name) {
			return "must be 1 to 64 of A-Z a-z 0-9 . _ - and a colon"
		}
		return ""
	},
	// internal/broker parses the rest of the URL and reports its mistakes.
	"redis": func(s string) string {
		if reason := brokenUserinfo(s); reason != "" {
			return reason
		}
		if s == "" || redisURL.MatchString(s) {
			return ""
		}
		return "must be redis://host:port/number, redis+sentinel://host:port,host:port/master or redis+cluster://host:port,host:port; rediss for TLS; " + escapes
	},
}

// redisURL requires a host, and for sentinels also a master's name.
var redisURL = regexp.MustCompile(`^rediss?(://([^/?#]*@)?[^/?#@]+|\+cluster://([^/?#]*@)?[^/?#@]+|\+sentinel://([^/?#]*@)?[^/?#@]+/[^/?#]+)([/?]|$)`)

// escapes says how a password is written in a URL.
const escapes = "escape @ as %40 in a user or password, and : / ? # % as %3A %2F %3F %23 %25"

// urlUsers are the parameters of a URL whose values may have an @.
var urlUsers = regexp.MustCompile(`^(user|password|sentinel_username|sentinel_password|application_name|options|sslpassword|passfile|[a-z_]*file|sslcert|sslkey|sslrootcert)=`)

// brokenUserinfo returns a reason to refuse a URL in which a part of the password would
// be taken for a host, a port, a path or an option, and be shown as such: by errors, in
// logs, and to name servers.
func brokenUserinfo(s string) string {
	_, rest, _ := strings.Cut(s, "://")
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, tail := rest[:end], rest[end:]
	if strings.Count(authority, "@") > 1 {
		return "has a second @ before the host; " + escapes
	}
	if strings.Contains(authority, "@") {
		return ""
	}
	path, query, _ := strings.Cut(tail, "?")
	misplaced := strings.Contains(path, "@") && strings.Contains(authority, ":")
	for parameter := range strings.SplitSeq(query, "&") {
		misplaced = misplaced || strings.Contains(parameter, "@") && !urlUsers.MatchString(parameter)
	}
	if misplaced {
		return "has an @ behind the host; " + escapes
	}
	return ""
}

// shown returns a value for an error. One with an @ may have a password.
func shown(value string) string {
	if strings.Contains(value, "@") {
		return redacted
	}
	return fmt.Sprintf("%.80q", value)
}
