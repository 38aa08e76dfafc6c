package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

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
	mistakes = append(mistakes, damagedNames()...)
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

// read sets the field from the environment and checks it.
func (s setting) read() error {
	text, source, err := s.text()
	if err != nil {
		return err
	}
	text, _, reason := clean(s.name(), text)
	if reason != "" {
		return s.invalid(source, reason)
	}
	if err := s.decode(s.switched(text)); err != nil {
		return s.invalid(source, parseReason(err))
	}
	if reason := s.check(); reason != "" {
		return s.invalid(source, reason)
	}
	return nil
}

// text returns the text of the setting as it was written, and the name of the
// variable that has it, or that has the path of its file.
func (s setting) text() (text, source string, err error) {
	text, source = os.Getenv(s.name()), s.name()
	fileSource := s.name() + fileSuffix
	path, _, reason := clean(fileSource, os.Getenv(fileSource))
	switch {
	case !s.isSecret(), path == "" && reason == "":
		return text, source, nil
	case reason != "":
		return "", "", fmt.Errorf("%s: %s", fileSource, reason)
	case text != "":
		return "", "", fmt.Errorf("%s and %s are both set; unset one", source, fileSource)
	}
	content, err := readBounded(path)
	switch text = trim(string(content)); {
	case err != nil:
		return "", "", fmt.Errorf("%s: the file can't be used: %w", fileSource, err)
	case text == "":
		// The file was never filled in. Without the secret the service would start
		// with other access rules or another database than intended.
		return "", "", fmt.Errorf("%s: the file is empty: %s", fileSource, path)
	case !utf8.ValidString(text), strings.Contains(text, "\x00"):
		return "", "", fmt.Errorf("%s: the file can't be used: it is not text in UTF-8: %s", fileSource, path)
	}
	return text, fileSource, nil
}

// decode sets the field to a text, or to its default if that is empty: a variable
// that is set to nothing, as compose files do, counts as not set. envconfig stops at
// the first mistake in a struct, so each setting is decoded as a struct of its own.
func (s setting) decode(text string) error {
	field := s.field
	// No variable can have the name that envconfig gets here, so it takes the text
	// as the default.
	field.Tag = reflect.StructTag(fmt.Sprintf("envconfig:%q default:%q", s.name()+"=", cmp.Or(text, s.tag("default"))))
	one := reflect.New(reflect.StructOf([]reflect.StructField{field}))
	if err := envconfig.Process("", one.Interface()); err != nil {
		return err
	}
	s.value.Set(one.Elem().Field(0))
	return nil
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

// check returns what is wrong with the value by the setting's tags.
func (s setting) check() string {
	if reason := s.checkBounds(); reason != "" {
		return reason
	}
	if s.value.Kind() == reflect.String && strings.ContainsFunc(s.value.String(), unicode.IsControl) {
		return "has a line break or another control character"
	}
	if allowed := s.tag("oneof"); allowed != "" && !slices.Contains(strings.Split(allowed, ","), s.value.String()) {
		return "must be one of " + strings.Trim(strings.ReplaceAll(allowed, ",", ", "), ", ")
	}
	if check := checks[s.tag("check")]; check != nil {
		return check(s.value.String())
	}
	return ""
}

func (s setting) checkBounds() string {
	low, high := s.tag("min"), s.tag("max")
	if low == "" && high == "" {
		return ""
	}
	n, unit := s.measure(), ""
	if s.value.Kind() == reflect.String {
		unit = " bytes"
	}
	if low != "" && n < s.bound(low) || high != "" && n > s.bound(high) {
		return fmt.Sprintf("must be from %s to %s%s", cmp.Or(low, "0"), high, unit)
	}
	return ""
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

// invalid returns an error with the reason, the value as it was written unless that
// may be a secret, and an example.
func (s setting) invalid(source, reason string) error {
	if source != s.name() { // read from its file
		return fmt.Errorf("%s: %s; the file holds, for example, %s", source, reason, s.tag("example"))
	}
	value := shown(os.Getenv(s.name()))
	if s.isSecret() {
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
		return "must be true or false; on and off, yes and no, 1 and 0 mean the same"
	case "time.Duration":
		return "must be a duration with its unit, such as 500ms, 20s or 10m"
	case "slog.Level":
		return "must be debug, info, warn or error"
	}
	return parse.Err.Error()
}
