package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// visitObject hands each member of a JSON object to visit, in order, and stops at
// the first error. It is stricter than encoding/json on the points where two
// readers of one token may come to differ: a name that comes twice is refused
// (encoding/json would take the last value), names count as they are written
// (a struct would take SUB for sub), and the text must be UTF-8 (invalid bytes
// would all become the same replacement character).
func visitObject(text []byte, visit func(name string, value json.RawMessage) error) error {
	if !utf8.Valid(text) || !json.Valid(text) {
		return errors.New("is not JSON in UTF-8")
	}
	// From here on the text is known to be valid: only where things end is
	// looked for.
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

// What JSON allows between two values, beside commas and colons.
const whitespace = " \t\r\n"

// skipSeparators drops what stands before the next name, value or end.
func skipSeparators(valid []byte) []byte { return bytes.TrimLeft(valid, whitespace+",:") }

// valueEnd returns where the value ends that a valid text begins with.
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

// unquote reads a JSON string, and says whether the value is one.
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
