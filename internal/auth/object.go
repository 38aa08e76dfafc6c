package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// visitObject calls visit for each member of a JSON object, in order, and stops at
// the first error. It is stricter than encoding/json where two readers of one token
// might disagree. It refuses a repeated name, of which encoding/json would use the
// last value. It compares names exactly, where a struct would accept SUB for sub.
// And it refuses text that is not UTF-8, where encoding/json would replace all
// invalid bytes by the same character.
func visitObject(text []byte, visit func(name string, value json.RawMessage) error) error {
	if !utf8.Valid(text) || !json.Valid(text) {
		return errors.New("is not JSON in UTF-8")
	}
	// The text is valid from here on, so that only the ends of its values must be
	// found.
	rest := bytes.TrimLeft(text, whitespace)
	if rest[0] != '{' {
		return errors.New("is not a JSON object")
	}
	seen := make(map[string]bool)
	for rest = skipSeparators(rest[1:]); rest[0] != '}'; rest = skipSeparators(rest) {
		end := valueEnd(rest)
		name, _ := unquote(rest[:end])
		if seen[name] {
			return errors.New("has a name twice")
		}
		seen[name] = true
		rest = skipSeparators(rest[end:])
		end = valueEnd(rest)
		if err := visit(name, rest[:end]); err != nil {
			return err
		}
		rest = rest[end:]
	}
	return nil
}

// whitespace is what JSON allows between two tokens.
const whitespace = " \t\r\n"

// skipSeparators skips white space, commas and colons before the next name, value
// or end.
func skipSeparators(valid []byte) []byte { return bytes.TrimLeft(valid, whitespace+",:") }

// valueEnd returns the length of the value at the start of a valid text.
func valueEnd(valid []byte) int {
	depth := 0
	for i := 0; ; i++ {
		switch valid[i] {
		case '"':
			for i++; valid[i] != '"'; i++ {
				if valid[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		default:
			if depth == 0 {
				return i + len(valid[i:]) - len(bytes.TrimLeft(valid[i:], "-+.0123456789Eaeflnrstu"))
			}
			continue
		}
		if depth == 0 {
			return i + 1
		}
	}
}

// unquote reads a JSON string, and reports whether the value is one.
func unquote(value json.RawMessage) (string, bool) {
	if len(value) == 0 || value[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(value, '\\') < 0 {
		return string(value[1 : len(value)-1]), true
	}
	var s string
	err := json.Unmarshal(value, &s)
	return s, err == nil
}
