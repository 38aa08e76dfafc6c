package protocol

import (
	"bytes"
	"encoding/json"
	"slices"
)

// fields are the raw JSON values of the fields that requests have, nil where
// the request does not have them. They share memory with the frame.
type fields struct {
	kind, ref, room, after, before, epoch, limit, id, data []byte
	follows                                                []byte
	token, from, handshake                                 []byte
}

// slot returns where the field of a name is kept, nil for an unknown name.
func (f *fields) slot(name []byte) *[]byte {
	switch string(name) {
	case "type":
		return &f.kind
	case "ref":
		return &f.ref
	case "room":
		return &f.room
	case "after":
		return &f.after
	case "before":
		return &f.before
	case "epoch":
		return &f.epoch
	case "limit":
		return &f.limit
	case "id":
		return &f.id
	case "data":
		return &f.data
	case "follows":
		return &f.follows
	case "token":
		return &f.token
	case "from":
		return &f.from
	case "handshake_ms":
		return &f.handshake
	}
	return nil
}

// scan cuts valid JSON into its top-level fields, and reports whether it is an
// object.
func (f *fields) scan(b []byte) bool {
	i := skipSpace(b, 0)
	if b[i] != '{' {
		return false
	}
	i = skipSpace(b, i+1)
	for b[i] != '}' {
		end := skipValue(b, i)
		name := unescape(b[i+1 : end-1])
		i = skipSpace(b, end) + 1 // after the colon
		i = skipSpace(b, i)
		end = skipValue(b, i)
		if slot := f.slot(name); slot != nil {
			*slot = b[i:end:end]
		}
		i = skipSpace(b, end)
		if b[i] == ',' {
			i = skipSpace(b, i+1)
		}
	}
	return true
}

// unescape returns a field's name. Clients need no escapes in field names, but
// JSON allows them.
func unescape(name []byte) []byte {
	if !bytes.ContainsRune(name, '\\') {
		return name
	}
	s, _ := unquote(slices.Concat([]byte{'"'}, name, []byte{'"'}))
	return []byte(s)
}

// skipSpace returns the index of the first byte from i that is not white space.
func skipSpace(b []byte, i int) int {
	for b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r' {
		i++
	}
	return i
}

// skipValue returns the index after the JSON value that begins at i.
func skipValue(b []byte, i int) int {
	depth := 0
	for ; i < len(b); i++ {
		switch b[i] {
		case '"':
			i = skipString(b, i)
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			depth--
			if depth == 0 {
				return i + 1
			}
			if depth < 0 { // a scalar that ends with its container
				return i
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
		}
	}
	return i
}

// skipString returns the index of the quote that ends the string begun at i.
func skipString(b []byte, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i
}

// depth returns how deep a JSON value is nested: 0 for a scalar.
func depth(b []byte) (deepest int) {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			i = skipString(b, i)
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
		case '}', ']':
			depth--
		}
	}
	return deepest
}

// unquote returns the value of a raw JSON string, and false if raw is not a
// string.
func unquote(raw []byte) (string, bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	inner := raw[1 : len(raw)-1]
	for _, c := range inner {
		if c == '\\' {
			var s string
			err := json.Unmarshal(raw, &s)
			return s, err == nil
		}
	}
	return string(inner), true
}
