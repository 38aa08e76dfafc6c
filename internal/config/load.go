package config

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"
)

// fileSuffix is appended to a secret's name for the variable with the path of its
// file.
const fileSuffix = "_FILE"

// maxSecretFile bounds a secret's file, in bytes.
const maxSecretFile = 64 << 10

// Load reads the environment. The error has one line for each mistake, with the
// setting's name, what is wrong, and an example.
func Load() (Config, error) {
	var cfg Config
	var mistakes []error
	for s := range settings(&cfg) {
		if err := s.read(); err != nil {
			mistakes = append(mistakes, err)
		}
	}
	if len(mistakes) == 0 {
		mistakes = append(mistakes, cfg.conflicts()...)
	}
	return cfg, errors.Join(mistakes...)
}

// conflicts returns the settings that are within their own bounds and contradict
// each other.
func (c *Config) conflicts() (mistakes []error) {
	if minimum := 2*(256<<10) + c.HTTP.MaxFrame; c.HTTP.QueueBytes <= minimum {
		mistakes = append(mistakes, fmt.Errorf("QUEUE_BYTES=%d must be over %d, twice 256 KiB + MAX_FRAME: a page of history and a frame must fit", c.HTTP.QueueBytes, minimum))
	}
	if c.Store.MaxConns < c.Store.Lanes+3 {
		mistakes = append(mistakes, fmt.Errorf("DATABASE_MAX_CONNS=%d must be at least DATABASE_LANES + 3 = %d", c.Store.MaxConns, c.Store.Lanes+3))
	}
	if c.Session.TTL <= 2*c.HTTP.Heartbeat {
		mistakes = append(mistakes, fmt.Errorf("SESSION_TTL=%s must be over %s, twice HEARTBEAT: each heartbeat extends the session", c.Session.TTL, 2*c.HTTP.Heartbeat))
	}
	if minimum := c.Drain.Delay + c.Drain.Window; c.Drain.Timeout < minimum {
		mistakes = append(mistakes, fmt.Errorf("DRAIN_TIMEOUT=%s must be at least DRAIN_DELAY + DRAIN_WINDOW = %s", c.Drain.Timeout, minimum))
	}
	if c.Auth.JWKSMaxStale < c.Auth.JWKSRefresh {
		mistakes = append(mistakes, fmt.Errorf("AUTH_JWKS_MAX_STALE=%s must be at least AUTH_JWKS_REFRESH=%s", c.Auth.JWKSMaxStale, c.Auth.JWKSRefresh))
	}
	return mistakes
}

// A setting is one field of a group of Config.
type setting struct {
	field reflect.StructField
	value reflect.Value
}

// settings yields the settings of cfg, in the order of the struct.
func settings(cfg *Config) func(func(setting) bool) {
	return func(yield func(setting) bool) {
		groups := reflect.ValueOf(cfg).Elem()
		for i := range groups.NumField() {
			group := groups.Field(i)
			for j := range group.NumField() {
				if !yield(setting{group.Type().Field(j), group.Field(j)}) {
					return
				}
			}
		}
	}
}

func (s setting) tag(name string) string { return s.field.Tag.Get(name) }

func (s setting) name() string { return s.tag("envconfig") }

// isSecret reports whether the value must not be printed.
func (s setting) isSecret() bool { return s.tag("secret") == "true" }

// read sets the field from the environment and checks it. envconfig stops at the
// first mistake in a struct, so each setting is read as a struct of its own.
func (s setting) read() error {
	if file := os.Getenv(s.name() + fileSuffix); file != "" && s.isSecret() {
		return s.readFile(file)
	}
	field := s.field
	if os.Getenv(s.name()) == "" {
		// A variable that is set to nothing, as compose files do, counts as not set.
		// No variable can have the name that envconfig gets here, so it uses the
		// default.
		field.Tag = reflect.StructTag(strings.Replace(string(field.Tag), s.name(), s.name()+"=", 1))
	}
	one := reflect.New(reflect.StructOf([]reflect.StructField{field}))
	if err := envconfig.Process("", one.Interface()); err != nil {
		return s.invalid(parseReason(err))
	}
	s.value.Set(one.Elem().Field(0))
	return s.check()
}

// readFile reads a secret from the file that NAME_FILE names.
func (s setting) readFile(path string) error {
	name := s.name() + fileSuffix
	if os.Getenv(s.name()) != "" {
		return fmt.Errorf("%s and %s are both set; unset one", s.name(), name)
	}
	content, err := readBounded(path)
	if err != nil {
		return fmt.Errorf("%s: the file can't be used: %w", name, err)
	}
	text := strings.TrimRight(string(content), "\r\n")
	if text == "" {
		// The file was never filled in. Without the secret the service would start
		// with other access rules or another database than intended.
		return fmt.Errorf("%s: the file is empty: %s", name, path)
	}
	if d, ok := s.value.Addr().Interface().(envconfig.Decoder); ok {
		if err := d.Decode(text); err != nil {
			return s.invalid(err.Error())
		}
		return nil
	}
	s.value.SetString(text)
	return s.check()
}

// readBounded reads a file or a pipe, at most maxSecretFile bytes of it.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	content, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err == nil && len(content) > maxSecretFile {
		err = fmt.Errorf("it has over %d bytes", maxSecretFile)
	}
	return content, err
}

// check checks the value against its tags.
func (s setting) check() error {
	if err := s.checkBounds(); err != nil {
		return err
	}
	if allowed := s.tag("oneof"); allowed != "" && !slices.Contains(strings.Split(allowed, ","), s.value.String()) {
		return s.invalid("must be one of " + strings.Trim(strings.ReplaceAll(allowed, ",", ", "), ", "))
	}
	if check := checks[s.tag("check")]; check != nil {
		if reason := check(s.value.String()); reason != "" {
			return s.invalid(reason)
		}
	}
	return nil
}

func (s setting) checkBounds() error {
	low, high := s.tag("min"), s.tag("max")
	if low == "" && high == "" {
		return nil
	}
	n, unit := s.measure(), ""
	if s.value.Kind() == reflect.String {
		unit = " bytes"
	}
	if low != "" && n < s.bound(low) || high != "" && n > s.bound(high) {
		if low == "" {
			low = "0"
		}
		return s.invalid(fmt.Sprintf("must be from %s to %s%s", low, high, unit))
	}
	return nil
}

// measure returns the number that bounds apply to: the value, or the length of
// text.
func (s setting) measure() int64 {
	if s.value.Kind() == reflect.String {
		return int64(s.value.Len())
	}
	return s.value.Int()
}

// bound parses a bound in the setting's own unit.
func (s setting) bound(text string) int64 {
	if s.value.Type() == reflect.TypeFor[time.Duration]() {
		d, err := time.ParseDuration(text)
		if err != nil {
			panic(err) // a tag of this package
		}
		return int64(d)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		panic(err) // a tag of this package
	}
	return n
}

// invalid returns an error with the reason, the value unless it is a secret, and
// an example.
func (s setting) invalid(reason string) error {
	value := fmt.Sprintf("%.80q", os.Getenv(s.name()))
	switch {
	case s.isSecret() && os.Getenv(s.name()) == "": // read from its file
		return fmt.Errorf("%s: %s; the file holds, for example, %s", s.name()+fileSuffix, reason, s.tag("example"))
	case s.isSecret():
		value = redacted
	}
	return fmt.Errorf("%s=%s: %s; for example %s=%s", s.name(), value, reason, s.name(), s.tag("example"))
}

// parseReason returns what envconfig found wrong, without the value, which may be
// a secret.
func parseReason(err error) string {
	var parse *envconfig.ParseError
	if !errors.As(err, &parse) {
		return err.Error()
	}
	switch parse.TypeName {
	case "int":
		return "must be a whole number"
	case "bool":
		return "must be true or false"
	case "time.Duration":
		return "must be a duration with its unit, such as 500ms, 20s or 10m"
	case "slog.Level":
		return "must be debug, info, warn or error"
	}
	return parse.Err.Error()
}

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
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
			return "must be postgres://user:password@host:port/name or sqlite:path"
		}
		return ""
	},
	// These two find gross mistakes; internal/auth parses the values and reports the
	// rest.
	"jwks": func(s string) string {
		if s == "" || strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://") {
			return ""
		}
		return "must be https://host/path"
	},
	"anonymous": func(s string) string {
		if s == "auto" || s == "on" || s == "off" || strings.Contains(s, ":") {
			return ""
		}
		return "must be auto, on, off or pattern:rights, separated by commas"
	},
	// internal/broker parses the rest of the URL and reports its mistakes.
	"redis": func(s string) string {
		if s == "" || redisURL.MatchString(s) {
			return ""
		}
		return "must be redis://host:port/number, redis+sentinel://host:port,host:port/master or redis+cluster://host:port,host:port; rediss for TLS"
	},
}

// redisURL requires a host, and for sentinels also a master's name.
var redisURL = regexp.MustCompile(`^rediss?(://([^/?#]*@)?[^/?#@]+|\+cluster://([^/?#]*@)?[^/?#@]+|\+sentinel://([^/?#]*@)?[^/?#@]+/[^/?#]+)([/?]|$)`)
