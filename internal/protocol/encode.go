package protocol

import (
	"encoding/json"
	"strconv"
	"time"

	"switchyard/internal/message"
)

// TimeLayout is RFC 3339 in UTC with microseconds, the precision of the log.
const TimeLayout = "2006-01-02T15:04:05.000000Z"

// overhead is roughly the size of a message frame without names and data, in
// bytes. It only sizes buffers.
const overhead = 160

// A Ref is the client's mark on a request, as the JSON string that the client
// sent, quotes included, or "". The answer repeats it.
type Ref string

// Welcome is the first frame on every connection.
type Welcome struct {
	// Session is the secret that resumes this session, valid for CheckSession.
	// The part before its first dot is its public name.
	Session    string  `json:"session"`
	Resumed    bool    `json:"resumed"`
	User       *string `json:"user"`
	Node       string  `json:"node"`
	Color      string  `json:"color"`
	Deployment string  `json:"deployment"`
	Version    string  `json:"version"`
	// HeartbeatMS is the time between heartbeats in milliseconds.
	HeartbeatMS int64 `json:"heartbeat_ms"`
	// MaxFrame is the largest frame that a client may send, in bytes.
	MaxFrame int `json:"max_frame"`
	// IDWindowMS is how long the id of a publish is remembered at least, in
	// milliseconds. Clients send again for half of it.
	IDWindowMS int64 `json:"id_window_ms"`
	// AuthExpiresMS is the time until the client's token expires, in
	// milliseconds, 0 without a token or if it never expires.
	AuthExpiresMS int64 `json:"auth_expires_ms,omitempty"`
	// Limits are the rates by which a client paces itself.
	Limits *Limits `json:"limits,omitempty"`
}

// Limits are those of one connection. A limit that is nil does not apply.
type Limits struct {
	// Publish counts publishes and signals, Bytes the bytes of all frames, History
	// the history and presence requests, and Join every other frame.
	Publish *Limit `json:"publish,omitempty"`
	Bytes   *Limit `json:"bytes,omitempty"`
	Join    *Limit `json:"join,omitempty"`
	History *Limit `json:"history,omitempty"`
}

// A Limit allows Burst at once and then PerSecond. Left is what is left of the burst
// now: less than Burst if the session's last connection has used some of it.
type Limit struct {
	PerSecond int `json:"per_second"`
	Burst     int `json:"burst"`
	Left      int `json:"left"`
}

// Encode returns the welcome frame.
func (w Welcome) Encode() Frame {
	return marshalFrame(struct {
		Type string `json:"type"`
		Welcome
	}{"welcome", w})
}

// marshalFrame encodes frames that are too rare to be written by hand.
func marshalFrame(frame any) Frame {
	body, err := json.Marshal(frame)
	if err != nil {
		panic(err) // strings, numbers and booleans always encode
	}
	return finishFrame(append(newTextFrame(len(body)), body...))
}

// Message returns the frame that every member of the room receives.
func Message(m *message.Message) Frame {
	b := newTextFrame(overhead + len(m.Room) + len(m.ID) + len(m.From) + len(m.Data))
	return finishFrame(AppendMessage(b, m))
}

// AppendMessage appends the JSON object of a message. History answers hold the
// same object.
func AppendMessage(b []byte, m *message.Message) []byte {
	b = append(b, `{"type":"message"`...)
	b = appendPosition(b, m.Room, m.Epoch)
	b = append(b, `,"seq":`...)
	b = strconv.AppendInt(b, int64(m.Seq), 10)
	b = append(b, `,"id":"`...)
	b = append(b, m.ID...)
	b = append(b, `","from":`...)
	b = appendUser(b, m.From)
	b = append(b, `,"at":"`...)
	b = m.At.UTC().AppendFormat(b, TimeLayout)
	b = append(b, `","data":`...)
	b = append(b, m.Data...)
	return append(b, '}')
}

// Signal returns the frame of a signal.
func Signal(room message.Room, from string, data []byte) Frame {
	b := newTextFrame(overhead + len(data))
	b = append(b, `{"type":"signal","room":"`...)
	b = append(b, room...)
	b = append(b, `","from":`...)
	b = appendUser(b, from)
	b = append(b, `,"data":`...)
	b = append(b, data...)
	return finishFrame(append(b, '}'))
}

// Ack answers a publish that is stored.
func Ack(ref Ref, p *message.Publication) Frame {
	b := beginFrame("ack", ref, overhead)
	b = appendPosition(b, p.Room, p.Epoch)
	b = append(b, `,"seq":`...)
	b = strconv.AppendInt(b, int64(p.Seq), 10)
	b = append(b, `,"id":"`...)
	b = append(b, p.ID...)
	b = append(b, '"')
	if p.Duplicate {
		b = append(b, `,"duplicate":true`...)
	}
	return finishFrame(append(b, '}'))
}

// Joined answers a join. Head is the room's newest seq, first its oldest stored
// one.
func Joined(ref Ref, room message.Room, epoch message.Epoch, head, first message.Seq) Frame {
	return membership("joined", ref, room, epoch, head, first)
}

// Left answers a leave. Nothing of the room follows it.
func Left(ref Ref, room message.Room, epoch message.Epoch, head, first message.Seq) Frame {
	return membership("left", ref, room, epoch, head, first)
}

// membership encodes joined and left.
func membership(kind string, ref Ref, room message.Room, epoch message.Epoch, head, first message.Seq) Frame {
	b := beginFrame(kind, ref, overhead)
	b = appendPosition(b, room, epoch)
	b = append(b, `,"seq":`...)
	b = strconv.AppendInt(b, int64(head), 10)
	b = append(b, `,"first":`...)
	b = strconv.AppendInt(b, int64(first), 10)
	return finishFrame(append(b, '}'))
}

// Reasons of a gap.
const (
	// GapTrimmed: the range is no longer stored.
	GapTrimmed = "trimmed"
	// GapEpoch: earlier positions are invalid. The range covers the whole new
	// epoch.
	GapEpoch = "epoch"
)

// Gap declares that the messages from..to will not be delivered.
func Gap(room message.Room, epoch message.Epoch, from, to message.Seq, reason string) Frame {
	b := beginFrame("gap", "", overhead)
	b = appendPosition(b, room, epoch)
	b = append(b, `,"from":`...)
	b = strconv.AppendInt(b, int64(from), 10)
	b = append(b, `,"to":`...)
	b = strconv.AppendInt(b, int64(to), 10)
	b = append(b, `,"reason":"`...)
	b = append(b, reason...)
	return finishFrame(append(b, '"', '}'))
}

// History answers a history request with a page of the log.
func History(ref Ref, room message.Room, page *message.Page) Frame {
	b := beginFrame("history", ref, sizeOf(page))
	b = appendPosition(b, room, page.Epoch)
	return finishFrame(appendPage(b, page))
}

// HistoryBody returns the same page as an answer over HTTP, with the room's
// newest and oldest seq.
func HistoryBody(room message.Room, page *message.Page) []byte {
	b := make([]byte, 0, sizeOf(page))
	b = append(b, `{"head":`...)
	b = strconv.AppendInt(b, int64(page.Head), 10)
	b = append(b, `,"first":`...)
	b = strconv.AppendInt(b, int64(page.First), 10)
	b = appendPosition(b, room, page.Epoch)
	return append(appendPage(b, page), '\n')
}

// sizeOf estimates the encoded size of a page in bytes.
func sizeOf(page *message.Page) int {
	size := overhead
	for i := range page.Messages {
		size += 2*overhead + len(page.Messages[i].Data)
	}
	return size
}

// appendPage appends the messages and more, and closes the object.
func appendPage(b []byte, page *message.Page) []byte {
	b = append(b, `,"messages":[`...)
	for i := range page.Messages {
		if i > 0 {
			b = append(b, ',')
		}
		b = AppendMessage(b, &page.Messages[i])
	}
	b = append(b, `],"more":`...)
	b = strconv.AppendBool(b, page.More)
	return append(b, '}')
}

// Heartbeat returns the frame that shows clients that their connection is
// alive.
func Heartbeat(at time.Time) Frame {
	b := append(newTextFrame(64), `{"type":"heartbeat","at":"`...)
	b = at.UTC().AppendFormat(b, TimeLayout)
	return finishFrame(append(b, '"', '}'))
}

// Pong answers a ping: the connection works in both directions.
func Pong(ref Ref) Frame { return finishFrame(append(beginFrame("pong", ref, 64), '}')) }

// Encode returns the error frame. Room and id are those of the request that it
// answers, "" where the request had none.
func (e *Error) Encode(ref Ref, room message.Room, id string) Frame {
	b := beginFrame("error", ref, overhead+len(e.Message))
	if room != "" {
		b = append(b, `,"room":"`...)
		b = append(b, room...)
		b = append(b, '"')
	}
	if id != "" {
		b = append(b, `,"id":"`...)
		b = append(b, id...)
		b = append(b, '"')
	}
	b = append(b, `,"code":"`...)
	b = append(b, e.Code...)
	b = append(b, `","message":`...)
	b = appendString(b, e.Message)
	if e.RetryAfter > 0 {
		b = append(b, `,"retry_after_ms":`...)
		b = strconv.AppendInt(b, e.RetryAfter.Milliseconds(), 10)
	}
	return finishFrame(append(b, '}'))
}

// beginFrame starts a text frame with its type and ref, and leaves the object
// open.
func beginFrame(kind string, ref Ref, size int) []byte {
	b := append(newTextFrame(size), `{"type":"`...)
	b = append(b, kind...)
	b = append(b, '"')
	if ref != "" {
		b = append(b, `,"ref":`...)
		b = append(b, ref...)
	}
	return b
}

// appendPosition appends a room and an epoch. Neither needs escaping: their
// alphabets have no special characters.
func appendPosition(b []byte, room message.Room, epoch message.Epoch) []byte {
	b = append(b, `,"room":"`...)
	b = append(b, room...)
	b = append(b, `","epoch":"`...)
	b = append(b, epoch...)
	return append(b, '"')
}

func appendUser(b []byte, user string) []byte {
	if user == "" {
		return append(b, "null"...)
	}
	return appendString(b, user)
}

func appendString(b []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always encodes
	}
	return append(b, quoted...)
}
