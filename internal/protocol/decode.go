package protocol

import (
	"encoding/json"
	"fmt"
	"strconv"

	"switchyard/internal/message"
)

// A Type is the kind of a client's request.
type Type string

// The requests of wire v1.
const (
	TypeJoin     Type = "join"
	TypeLeave    Type = "leave"
	TypePublish  Type = "publish"
	TypeSignal   Type = "signal"
	TypeHistory  Type = "history"
	TypePresence Type = "presence"
	TypeAuth     Type = "auth"
	TypeMoved    Type = "moved"
	TypePing     Type = "ping"
)

// MaxSeq is the highest seq that is accepted: the largest integer that every
// JSON reader holds exactly (RFC 8259 §6).
const MaxSeq = 1<<53 - 1

// MaxHistory is the most messages that one history answer holds.
const MaxHistory = 200

// MaxDepth is how deep data may be nested: [] is 1, [[]] is 2. Data goes to
// every member of a room, and JSON readers refuse to go deeper than limits of
// their own (RFC 8259 §9). The bound keeps a client from sending what others
// cannot read.
const MaxDepth = 128

// Bounds on the fields of auth and moved.
const (
	// MaxTokenLength is the longest token in bytes, in a frame and in a
	// handshake.
	MaxTokenLength = 8 << 10
	// MaxNodeLength is the longest name of a node in bytes.
	MaxNodeLength = 128
	// MaxHandshakeMS is the longest handshake, in milliseconds, that a client
	// may report. No client waits longer than ten minutes.
	MaxHandshakeMS = 600_000
)

// ErrUnknownType is the answer to a request of unknown type.
var ErrUnknownType = &Error{Code: CodeUnknownType, Message: "unknown type; known are join, leave, publish, signal and history"}

// A Request is a client's frame after validation. Fields that its type does not
// have are zero.
type Request struct {
	Type Type
	Ref  Ref
	Room message.Room
	// After and Before are seqs. HasAfter and HasBefore report whether the
	// request had them.
	After, Before       message.Seq
	HasAfter, HasBefore bool
	Epoch               message.Epoch
	// Limit is the number of messages requested, 0 if the request has none.
	Limit int
	ID    string
	// Data is the JSON value as it was received. It shares memory with the
	// frame it was decoded from.
	Data []byte
	// Follows, in a publish: an earlier publish to the room has no answer yet, so
	// that this one must be refused if that one was.
	Follows bool
	// Token is the credential of an auth request. It is a secret: never log it.
	Token string
	// From is the node that a client moved away from, and HandshakeMS how long
	// the client then waited for its welcome here, in milliseconds.
	From        string
	HandshakeMS int64
}

// Decode reads one client frame. [ErrorFor] turns its error into the answer.
// The Request then has the fields that were read before the error, Ref first of
// all, so that the answer can name the request. Unknown fields are ignored. If
// a field is repeated, the last one is used.
func Decode(frame []byte) (Request, error) {
	var r Request
	if !json.Valid(frame) {
		return r, &Error{Code: CodeMalformed, Message: "a frame is one JSON object"}
	}
	var f fields
	if !f.scan(frame) {
		return r, &Error{Code: CodeMalformed, Message: "a frame is one JSON object"}
	}
	err := f.fillRequest(&r)
	if err != nil {
		return r, err
	}
	return r, r.check()
}

// IsMalformed reports whether Decode could not read the frame at all.
func IsMalformed(err error) bool {
	e, ok := err.(*Error) //nolint:errorlint // Decode's own error, never wrapped
	return ok && e.Code == CodeMalformed
}

// fillRequest validates the fields into r. On an error r has those that were
// valid before it.
func (f *fields) fillRequest(r *Request) (err error) {
	if f.ref != nil {
		if f.ref[0] != '"' || len(f.ref)-2 > message.MaxRefLength {
			return invalidError("ref", "must be a string of at most 64 bytes")
		}
		r.Ref = Ref(f.ref)
	}
	kind, ok := unquote(f.kind)
	if !ok {
		return &Error{Code: CodeMalformed, Message: "a frame has a type, a string"}
	}
	r.Type = Type(kind)
	switch r.Type {
	case TypeJoin, TypeLeave, TypePublish, TypeSignal, TypeHistory, TypePresence:
		return f.fillRoomRequest(r)
	case TypeAuth:
		r.Token, err = requiredString("token", f.token, MaxTokenLength)
		return err
	case TypeMoved:
		return f.fillMoved(r)
	case TypePing:
		return nil
	}
	return ErrUnknownType
}

// fillRoomRequest reads the fields of requests that name a room.
func (f *fields) fillRoomRequest(r *Request) (err error) {
	room, _ := unquote(f.room)
	if r.Room, err = message.ParseRoom(room); err != nil {
		return err
	}
	if r.Epoch, err = parseEpoch(f.epoch); err != nil {
		return err
	}
	if r.After, r.HasAfter, err = parseSeq("after", f.after); err != nil {
		return err
	}
	if r.Before, r.HasBefore, err = parseSeq("before", f.before); err != nil || r.HasBefore && r.Before < 1 {
		return invalidError("before", "must be a whole number from 1 to 9007199254740991")
	}
	limit, given, err := parseSeq("limit", f.limit)
	if err != nil || given && (limit < 1 || limit > MaxHistory) {
		return invalidError("limit", "must be a whole number from 1 to 200")
	}
	r.Limit = int(limit)
	r.Data = f.data
	if r.Follows, err = parseFlag("follows", f.follows); err != nil {
		return err
	}
	if f.id != nil && string(f.id) != "null" {
		r.ID, err = parseID(f.id)
	}
	return err
}

// fillMoved reads the fields of a moved request.
func (f *fields) fillMoved(r *Request) (err error) {
	if r.From, err = requiredString("from", f.from, MaxNodeLength); err != nil {
		return err
	}
	took, given, err := parseSeq("handshake_ms", f.handshake)
	if err != nil || !given || took > MaxHandshakeMS {
		return invalidError("handshake_ms", "must be a whole number from 0 to 600000")
	}
	r.HandshakeMS = int64(took)
	return nil
}

// requiredString reads a string of 1 to maxLength bytes.
func requiredString(field string, raw []byte, maxLength int) (string, error) {
	s, ok := unquote(raw)
	if !ok || s == "" || len(s) > maxLength {
		return "", invalidError(field, fmt.Sprintf("must be a string of 1 to %d bytes", maxLength))
	}
	return s, nil
}

// parseID returns a valid id, or "" with an error: an invalid id must not be
// repeated in an answer.
func parseID(raw []byte) (string, error) {
	id, _ := unquote(raw)
	if err := message.CheckID(id); err != nil {
		return "", err
	}
	return id, nil
}

// checkData checks the data of a publish or signal against its bounds.
func checkData(data []byte) error {
	if data == nil {
		return invalidError("data", "is required: any JSON value")
	}
	if depth(data) > MaxDepth {
		return invalidError("data", "must be nested at most 128 deep")
	}
	return nil
}

// check checks the request against the rules of its type.
func (r *Request) check() error {
	switch r.Type {
	case TypePublish, TypeSignal:
		return checkData(r.Data)
	case TypeJoin:
		if r.After > 0 && r.Epoch == "" {
			return invalidError("epoch", "is required with after: a position counts in one epoch only")
		}
	case TypeHistory:
		if r.HasAfter && r.HasBefore {
			return invalidError("before", "can't be given together with after")
		}
	case TypeLeave, TypePresence, TypeAuth, TypeMoved, TypePing:
	}
	return nil
}

func invalidError(field, reason string) error {
	return &message.InvalidError{Field: field, Reason: reason}
}

// parseFlag reads an optional boolean; null counts as absent.
func parseFlag(field string, raw []byte) (bool, error) {
	switch string(raw) {
	case "true":
		return true, nil
	case "", "false", "null":
		return false, nil
	}
	return false, invalidError(field, "must be true or false")
}

// parseEpoch reads an optional epoch; null counts as absent.
func parseEpoch(raw []byte) (message.Epoch, error) {
	if raw == nil || string(raw) == "null" {
		return "", nil
	}
	s, ok := unquote(raw)
	if !ok || s == "" || len(s) > message.MaxIDLength {
		return "", invalidError("epoch", "must be a string of 1 to 64 bytes")
	}
	return message.Epoch(s), nil
}

// parseSeq reads an optional whole number, such as a seq; null counts as
// absent.
func parseSeq(field string, raw []byte) (message.Seq, bool, error) {
	if raw == nil || string(raw) == "null" {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || n < 0 || n > MaxSeq {
		return 0, false, invalidError(field, "must be a whole number from 0 to 9007199254740991")
	}
	return message.Seq(n), true, nil
}
