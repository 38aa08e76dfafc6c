package client

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"switchyard/internal/message"
)

// A Welcome is the first frame of a connection: which node serves it, and its
// limits.
type Welcome struct {
	Session     string  `json:"session"`
	Resumed     bool    `json:"resumed"`
	User        *string `json:"user"` // nil when anonymous
	Node        string  `json:"node"`
	Color       string  `json:"color"`
	Deployment  string  `json:"deployment"`
	Version     string  `json:"version"`
	HeartbeatMS int64   `json:"heartbeat_ms"`
	MaxFrame    int     `json:"max_frame"`    // bytes
	IDWindowMS  int64   `json:"id_window_ms"` // 0 from older services
	// AuthExpiresMS is the time until the token expires; 0 if it never does or
	// there is none.
	AuthExpiresMS int64 `json:"auth_expires_ms"`
	// Limits are the rates by which the client paces itself; nil from older services.
	Limits *Limits `json:"limits,omitempty"`
}

// An Ack is the answer to a publish: the message is stored at this position.
type Ack struct {
	Room  message.Room
	Epoch message.Epoch
	Seq   message.Seq
	ID    string
	// Duplicate: the message had been stored before under this id. It is false
	// when the client received the message itself before its ack.
	Duplicate bool
}

// A Joined is the answer to a join. Head is the room's newest seq, First the
// oldest one that is stored.
type Joined struct {
	Room        message.Room
	Epoch       message.Epoch
	Head, First message.Seq
}

// A Gap is a range of messages, bounds included, that will not be delivered. They
// are no longer stored (Reason "trimmed"), or the log is in a new epoch, Epoch,
// in which earlier positions are invalid (Reason "epoch").
type Gap struct {
	Room     message.Room
	Epoch    message.Epoch
	From, To message.Seq
	Reason   string
}

// A Signal is an event that is never stored. From is "" when anonymous.
type Signal struct {
	Room message.Room
	From string
	Data json.RawMessage
}

// A History is a page of a room's messages, in the order of seq.
type History struct {
	Messages []message.Message
	// More: the requested range has more messages.
	More bool
}

// A serverFrame has the fields of every frame of the service except welcome.
type serverFrame struct {
	Type       string            `json:"type"`
	Ref        string            `json:"ref"`
	Room       message.Room      `json:"room"`
	Epoch      message.Epoch     `json:"epoch"`
	Seq        message.Seq       `json:"seq"`
	First      message.Seq       `json:"first"`
	ID         string            `json:"id"`
	From       json.RawMessage   `json:"from"` // a user or null; a seq in gap
	To         message.Seq       `json:"to"`
	At         time.Time         `json:"at"`
	Data       json.RawMessage   `json:"data"`
	Duplicate  bool              `json:"duplicate"`
	Reason     string            `json:"reason"`
	Messages   []json.RawMessage `json:"messages"`
	More       bool              `json:"more"`
	Code       string            `json:"code"`
	Message    string            `json:"message"`
	RetryAfter int64             `json:"retry_after_ms"`

	User        *string  `json:"user"`
	AuthExpires int64    `json:"auth_expires_ms"`
	After       int64    `json:"after_ms"`
	Deadline    int64    `json:"deadline_ms"`
	Avoid       Avoid    `json:"avoid"`
	Count       int      `json:"count"`
	Members     []Member `json:"members"`
	Joined      []Member `json:"joined"`
	Left        []Member `json:"left"`
}

// Avoid names the deployment or the node that a client is to leave in a move.
type Avoid struct {
	Deployment string `json:"deployment,omitempty"`
	Node       string `json:"node,omitempty"`
}

// A Presence is which sessions are in a room. A full list has Members; a change
// has Joined and Left instead. Both are nil when there are too many members to
// list, and Count is all that is known.
type Presence struct {
	Room         message.Room
	Count        int
	Members      []Member
	Joined, Left []Member
}

// A Member is a session in a room. Session is the public part of its secret.
type Member struct {
	Session string  `json:"session"`
	User    *string `json:"user"` // nil when anonymous
}

func decodeFrame(b []byte) (*serverFrame, error) {
	f := new(serverFrame)
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("read a frame of the service: %w", err)
	}
	return f, nil
}

func decodeWelcome(b []byte) (Welcome, error) {
	var w struct {
		Type string `json:"type"`
		Welcome
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return Welcome{}, fmt.Errorf("read the welcome: %w", err)
	}
	if w.Type != "welcome" {
		return Welcome{}, fmt.Errorf("the first frame is %q, not welcome", w.Type)
	}
	return w.Welcome, nil
}

// user returns the user in From, "" for null.
func (f *serverFrame) user() string {
	var user string
	_ = json.Unmarshal(f.From, &user) // null and an absent field leave it empty
	return user
}

func (f *serverFrame) message() message.Message {
	return message.Message{
		Draft: message.Draft{Room: f.Room, ID: f.ID, From: f.user(), Data: f.Data},
		Epoch: f.Epoch, Seq: f.Seq, At: f.At,
	}
}

func (f *serverFrame) gap() (Gap, error) {
	var from message.Seq
	if err := json.Unmarshal(f.From, &from); err != nil {
		return Gap{}, fmt.Errorf("read a gap: %w", err)
	}
	return Gap{Room: f.Room, Epoch: f.Epoch, From: from, To: f.To, Reason: f.Reason}, nil
}

func (f *serverFrame) history() (History, error) {
	h := History{More: f.More, Messages: make([]message.Message, 0, len(f.Messages))}
	for _, raw := range f.Messages {
		m, err := decodeFrame(raw)
		if err != nil {
			return History{}, fmt.Errorf("history of %s: %w", f.Room, err)
		}
		m.Room = f.Room
		h.Messages = append(h.Messages, m.message())
	}
	return h, nil
}

func (f *serverFrame) presence() Presence {
	return Presence{Room: f.Room, Count: f.Count, Members: f.Members, Joined: f.Joined, Left: f.Left}
}

func (f *serverFrame) err() *Error {
	return &Error{
		Code: f.Code, Message: f.Message,
		RetryAfter: time.Duration(f.RetryAfter) * time.Millisecond,
	}
}

// A request is a client frame under construction. Rooms, ids and refs need no
// escaping. Data is sent byte for byte, which json.Marshal would not do.
type request []byte

func newRequest(kind, ref string, room message.Room) request {
	b := append(make(request, 0, 96+len(room)), `{"type":"`...)
	b = append(append(b, kind...), '"')
	if ref != "" {
		b = append(append(append(b, `,"ref":"`...), ref...), '"')
	}
	if room == "" { // not every request has one
		return b
	}
	return append(append(append(b, `,"room":"`...), room...), '"')
}

func (b request) number(name string, n int64) request {
	b = append(append(append(b, `,"`...), name...), `":`...)
	return strconv.AppendInt(b, n, 10)
}

func (b request) text(name, value string) request {
	quoted, _ := json.Marshal(value) // a string always encodes
	b = append(append(append(b, `,"`...), name...), `":`...)
	return append(b, quoted...)
}

func (b request) data(data []byte) request {
	return append(append(b, `,"data":`...), data...)
}

func (b request) end() []byte { return append(b, '}') }
