package protocol

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"

	"switchyard/internal/message"
)

// A Type is what a client asks for.
type Type string

// The requests of wire v1.
const (
	TypeJoin    Type = "join"
	TypeLeave   Type = "leave"
	TypePublish Type = "publish"
	TypeSignal  Type = "signal"
	TypeHistory Type = "history"
)

// MaxSeq is the highest seq and limit that is understood: what every JSON
// reader holds exactly (RFC 8259 §6).
const MaxSeq = 1<<53 - 1

// MaxHistory is the most messages that one history answer holds.
const MaxHistory = 200

// MaxDepth is how deep data may be nested: [] is 1, [[]] is 2. What is stored
// goes to every member of a room, and readers of JSON give up at depths of
// their own (RFC 8259 §9): nobody may send what others can't read.
const MaxDepth = 128

// A Request is a client's frame, checked. Fields that its type does not have
// are zero.
type Request struct {
	Type Type
	Ref  Ref
	Room message.Room
	// After and Before are positions; HasAfter and HasBefore say whether they
	// were given.
	After, Before       message.Seq
	HasAfter, HasBefore bool
	Epoch               message.Epoch
	// Limit is the number of messages asked for, 0 when left out.
	Limit int
	ID    string
	// Data is the JSON value as it was received. It shares memory with the
	// frame it was decoded from.
	Data []byte
}

// Decode reads one client frame. The error, if any, is an *Error to send back;
// the Request then has what was understood until there, Ref first of all.
// Unknown fields are ignored; of a field that stands twice the last one counts.
func Decode(frame []byte) (Request, error) {
	var r Request
	if !json.Valid(frame) {
		return r, &Error{Code: CodeMalformed, Message: "a frame is one JSON object"}
	}
	var f fields
	if !f.scan(frame) {
		return r, &Error{Code: CodeMalformed, Message: "a frame is one JSON object"}
	}
	err := f.into(&r)
	if err != nil {
		return r, err
	}
	return r, r.check()
}

// Malformed says whether err came from a frame that could not be read at all.
func Malformed(err error) bool {
	e, ok := err.(*Error) //nolint:errorlint // Decode's own error, never wrapped
	return ok && e.Code == CodeMalformed
}

// fields are the raw values of the members that any request has.
type fields struct {
	kind, ref, room, after, before, epoch, limit, id, data []byte
}

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
	}
	return nil
}

// scan cuts valid JSON into its top-level members, and says whether it was an
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
		i = skipSpace(b, end) + 1 // past the colon
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

// unescape returns a member's name; those of requests are never written with
// escapes, but JSON allows it.
func unescape(name []byte) []byte {
	if !bytes.ContainsRune(name, '\\') {
		return name
	}
	s, _ := text(slices.Concat([]byte{'"'}, name, []byte{'"'}))
	return []byte(s)
}

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

func (f *fields) into(r *Request) (err error) {
	if f.ref != nil {
		if f.ref[0] != '"' || len(f.ref)-2 > message.MaxRef {
			return invalid("ref", "must be a string of at most 64 bytes")
		}
		r.Ref = Ref(f.ref)
	}
	kind, ok := text(f.kind)
	if !ok {
		return &Error{Code: CodeMalformed, Message: "a frame has a type, a string"}
	}
	r.Type = Type(kind)
	switch r.Type {
	case TypeJoin, TypeLeave, TypePublish, TypeSignal, TypeHistory:
	default:
		return &Error{Code: CodeUnknownType, Message: "unknown type; known are join, leave, publish, signal and history"}
	}
	room, _ := text(f.room)
	if r.Room, err = message.ParseRoom(room); err != nil {
		return err
	}
	if r.Epoch, err = epoch(f.epoch); err != nil {
		return err
	}
	if r.After, r.HasAfter, err = seq("after", f.after); err != nil {
		return err
	}
	if r.Before, r.HasBefore, err = seq("before", f.before); err != nil || r.HasBefore && r.Before < 1 {
		return invalid("before", "must be a whole number from 1 to 9007199254740991")
	}
	limit, given, err := seq("limit", f.limit)
	if err != nil || given && (limit < 1 || limit > MaxHistory) {
		return invalid("limit", "must be a whole number from 1 to 200")
	}
	r.Limit = int(limit)
	r.Data = f.data
	if f.id != nil && string(f.id) != "null" {
		r.ID, err = checkedID(f.id)
	}
	return err
}

// checkedID returns an id that is one, "" with an error otherwise: what is
// wrong must not come back in an answer.
func checkedID(raw []byte) (string, error) {
	id, _ := text(raw)
	if err := message.CheckID(id); err != nil {
		return "", err
	}
	return id, nil
}

// checkData holds the data of a publish or signal against its bounds.
func checkData(data []byte) error {
	if data == nil {
		return invalid("data", "is required: any JSON value")
	}
	if depth(data) > MaxDepth {
		return invalid("data", "must be nested at most 128 deep")
	}
	return nil
}

// check holds the request against what its type needs.
func (r *Request) check() error {
	switch r.Type {
	case TypePublish, TypeSignal:
		return checkData(r.Data)
	case TypeJoin:
		if r.After > 0 && r.Epoch == "" {
			return invalid("epoch", "is required with after: a position counts in one epoch only")
		}
	case TypeHistory:
		if r.HasAfter && r.HasBefore {
			return invalid("before", "can't be given together with after")
		}
	case TypeLeave:
	}
	return nil
}

func invalid(field, reason string) error {
	return &message.InvalidError{Field: field, Reason: reason}
}

// text returns the value of a raw JSON string; false when raw is none.
func text(raw []byte) (string, bool) {
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

func epoch(raw []byte) (message.Epoch, error) {
	if raw == nil || string(raw) == "null" {
		return "", nil
	}
	s, ok := text(raw)
	if !ok || s == "" || len(s) > message.MaxID {
		return "", invalid("epoch", "must be a string of 1 to 64 bytes")
	}
	return message.Epoch(s), nil
}

// seq reads an optional position; null counts as left out.
func seq(field string, raw []byte) (message.Seq, bool, error) {
	if raw == nil || string(raw) == "null" {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || n < 0 || n > MaxSeq {
		return 0, false, invalid(field, "must be a whole number from 0 to 9007199254740991")
	}
	return message.Seq(n), true, nil
}
