package config

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Env files have as many dialects as programs that read them: one removes the
// quotes around a value, and another passes them on. A value is cleaned of what
// such a file leaves around it, where that can't be a part of the value, and is
// refused where it shows that the line was not read as it was meant.

// quotes can't be the first or the last character of a value. Those after the first
// two come from text that was copied out of a document.
const quotes = `"'` + "`“”„‘’"

// clean returns a value without the white space and the pair of quotes around it,
// and whether there were quotes. The reason, if there is one, says why the value of
// the setting can't be used.
func clean(name, raw string) (value string, quoted bool, reason string) {
	value = trim(raw)
	if inner, ok := unquote(value); ok {
		value, quoted = trim(inner), true
	}
	if value == "" && raw != "" {
		return "", quoted, "has only quotes or white space; unset it, or leave nothing behind the ="
	}
	return value, quoted, brokenLine(name, value, quoted)
}

// trim removes white space, and the marks that editors put at the start of a file.
func trim(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return unicode.IsSpace(r) || r == '\ufeff' || r == '\u200b' })
}

// unquote returns what is between two equal quotes. ok is false if there are more of
// them: then they do not enclose one value.
func unquote(s string) (inner string, ok bool) {
	if len(s) < 2 || s[0] != '"' && s[0] != '\'' || s[len(s)-1] != s[0] {
		return s, false
	}
	inner = s[1 : len(s)-1]
	return inner, !strings.ContainsRune(inner, rune(s[0]))
}

var (
	// comment matches the beginning of a comment behind a value.
	comment = regexp.MustCompile(`[\t ]#`)
	// jsonText matches the beginning of a list or an object in JSON.
	jsonText = regexp.MustCompile(`^[\[{]\s*["']`)
	// placeholder matches what a shell, a template or a person should have replaced.
	placeholder = regexp.MustCompile(`\$\{[A-Za-z_][A-Za-z0-9_]*[^{}]*\}|\$\([A-Za-z][^()]*\)|\{\{.*\}\}|^\$[A-Za-z_][A-Za-z0-9_]*$|^%[A-Za-z_][A-Za-z0-9_]*%$|^<[^<>]*>$`)
)

// brokenLine returns what in a value belongs to the line of an env file and not to the
// value.
func brokenLine(name, value string, quoted bool) string {
	first, _ := utf8.DecodeRuneInString(value)
	last, _ := utf8.DecodeLastRuneInString(value)
	atFirst, atLast := strings.ContainsRune(quotes, first), strings.ContainsRune(quotes, last)
	switch {
	case value == "":
		return ""
	case quoted && atFirst && atLast:
		return "is in quotes twice; remove both pairs"
	case !quoted && (atFirst || atLast):
		return "begins or ends with a quote that does not enclose all of it; write it without quotes, a comment on a line of its own, and a value that really has such a quote in quotes of the other kind"
	case !quoted && comment.MatchString(value):
		return "has a comment behind it; write comments on lines of their own, or a value that really has a # behind a space in quotes"
	case strings.HasPrefix(value, name+"="):
		return "begins with its own name; write the name once"
	case placeholder.MatchString(value):
		return "has a placeholder that nothing has replaced; write the value itself"
	case jsonText.MatchString(value):
		return "is JSON; write the value itself, and several separated by commas"
	case strings.HasSuffix(value, ` \`):
		return "ends with the \\ of a line that goes on; write it on one line"
	}
	return ""
}

// words are the ways to say yes and no.
var words = map[string]bool{
	"true": true, "t": true, "1": true, "on": true, "yes": true, "y": true,
	"false": false, "f": false, "0": false, "off": false, "no": false, "n": false,
}

// switched returns the value that a word stands for. The tag switch names the two
// values of a setting that has more than true and false.
func (s setting) switched(text string) string {
	yes, no := "true", "false"
	if both := s.tag("switch"); both != "" {
		yes, no, _ = strings.Cut(both, ",")
	} else if _, isBool := s.value.Interface().(bool); !isBool {
		return text
	}
	switch on, known := words[strings.ToLower(text)]; {
	case !known:
		return text
	case on:
		return yes
	}
	return no
}
