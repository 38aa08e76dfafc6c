package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"time"
)

// A protocol is how one server is spoken to.
type protocol interface {
	// dial gives the path and the headers of the upgrade.
	dial(c *conn) (path, headers string)
	// opened logs in and joins c.room, where there is one.
	opened(c *conn)
	// message takes one frame: it calls ready, stamps and answered of d.
	message(d *driver, c *conn, p []byte)
	// publish sends a payload, which is no JSON yet, to a room.
	publish(c *conn, room int, payload []byte)
	// answers says whether a publish is answered.
	answers() bool
}

func protocolOf(name, token string) (protocol, error) {
	switch name {
	case "switchyard", "signal":
		return &switchyard{verb: map[string]string{"switchyard": "publish", "signal": "signal"}[name], secret: token}, nil
	case "centrifuge":
		return centrifuge{}, nil
	case "raw":
		return raw{}, nil
	}
	return nil, fmt.Errorf("no protocol %q: there are switchyard, signal, centrifuge and raw", name)
}

// switchyard is wire v1; as "signal" it publishes what is not stored.
type switchyard struct {
	verb   string
	secret string // of HS256 tokens; "": anonymous
}

func (s *switchyard) dial(c *conn) (string, string) {
	headers := "Sec-WebSocket-Protocol: switchyard.v1\r\n"
	if s.secret != "" {
		headers += "Authorization: Bearer " + s.token(c.id) + "\r\n"
	}
	return "/ws", headers
}

// token is a user's of its own for each connection.
func (s *switchyard) token(id int) string {
	enc := base64.RawURLEncoding
	body := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString(fmt.Appendf(nil,
		`{"sub":"user%d","exp":%d,"rooms":{"*":"rw"}}`, id, time.Now().Add(time.Hour).Unix()))
	mac := hmac.New(sha256.New, []byte(s.secret))
	mac.Write([]byte(body))
	return body + "." + enc.EncodeToString(mac.Sum(nil))
}

func (s *switchyard) opened(*conn)  {}
func (s *switchyard) answers() bool { return s.verb == "publish" }

func (s *switchyard) message(d *driver, c *conn, p []byte) {
	kind := bytes.TrimPrefix(p, []byte(`{"type":"`))
	switch {
	case bytes.HasPrefix(kind, []byte("message\"")), bytes.HasPrefix(kind, []byte("signal\"")):
		d.stamps(c, p)
	case bytes.HasPrefix(kind, []byte("ack\"")), bytes.HasPrefix(kind, []byte("history\"")):
		d.answered(c)
	case bytes.HasPrefix(kind, []byte("welcome\"")):
		if c.room < 0 || c.publisher {
			d.ready(c)
			return
		}
		c.text(fmt.Appendf(nil, `{"type":"join","room":"%s"}`, d.roomName(c.room)))
	case bytes.HasPrefix(kind, []byte("joined\"")):
		if _, rest, ok := bytes.Cut(p, []byte(`"epoch":"`)); ok && d.epoch == "" {
			epoch, _, _ := bytes.Cut(rest, []byte(`"`))
			d.epoch = string(epoch)
		}
		if !c.ready {
			d.ready(c)
			return
		}
		clear(c.last) // it asks for what it had before, in order again
		d.answered(c)
	case bytes.HasPrefix(kind, []byte("error\"")), bytes.HasPrefix(kind, []byte("gap\"")):
		d.trouble(string(p))
	}
}

func (s *switchyard) publish(c *conn, room int, payload []byte) {
	b := append(make([]byte, 0, 256), `{"type":"`...)
	b = append(b, s.verb...)
	b = append(b, `","ref":"`...)
	c.refs++
	b = strconv.AppendUint(b, uint64(c.refs), 10)
	b = append(b, `","room":"`...)
	b = append(b, d.roomName(room)...)
	b = append(b, `","data":"`...)
	b = append(append(b, payload...), `"}`...)
	c.text(b)
}

// centrifuge is the JSON protocol of github.com/centrifugal/centrifuge.
type centrifuge struct{}

func (centrifuge) dial(*conn) (string, string) { return "/connection/websocket", "" }
func (centrifuge) answers() bool               { return true }

func (centrifuge) opened(c *conn) {
	c.text([]byte(`{"id":1,"connect":{}}`))
	if c.room >= 0 && !c.publisher {
		c.text(fmt.Appendf(nil, `{"id":2,"subscribe":{"channel":"%s"}}`, d.roomName(c.room)))
	}
	c.refs = 2
}

func (centrifuge) message(d *driver, c *conn, p []byte) {
	if bytes.HasPrefix(p, []byte(`{"push"`)) { // a frame may hold several, and only such
		if bytes.Contains(p, []byte("\n{\"id\"")) {
			d.answered(c)
		}
		d.stamps(c, p)
		return
	}
	for line := range bytes.SplitSeq(p, []byte("\n")) {
		switch {
		case len(line) == 0:
		case len(line) == 2: // {}: a ping
			c.text([]byte("{}"))
		case bytes.HasPrefix(line, []byte(`{"push"`)):
			d.stamps(c, line)
		case bytes.Contains(line, []byte(`"error":`)):
			d.trouble(string(line))
		case bytes.HasPrefix(line, []byte(`{"id":1,`)):
			if c.room < 0 || c.publisher {
				d.ready(c)
			}
		case bytes.HasPrefix(line, []byte(`{"id":2,`)):
			d.ready(c)
		default:
			d.answered(c)
		}
	}
}

func (centrifuge) publish(c *conn, room int, payload []byte) {
	c.refs++
	c.text(fmt.Appendf(nil, `{"id":%d,"publish":{"channel":"%s","data":"%s"}}`, c.refs, d.roomName(room), payload))
}

// raw is that of ../floor: whatever is sent goes to everybody in the room.
type raw struct{}

func (raw) dial(c *conn) (string, string) {
	if c.publisher {
		return "/to/" + strconv.Itoa(c.room), ""
	}
	return "/in/" + strconv.Itoa(c.room), ""
}

func (raw) answers() bool                          { return false }
func (raw) opened(c *conn)                         { d.ready(c) }
func (raw) message(d *driver, c *conn, p []byte)   { d.stamps(c, p) }
func (raw) publish(c *conn, _ int, payload []byte) { c.text(payload) }
