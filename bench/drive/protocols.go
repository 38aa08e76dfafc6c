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

// A protocol is that of one server.
type protocol interface {
	// dial returns the path and the headers of the handshake.
	dial(c *conn) (path, headers string)
	// onOpen logs in, and joins c.room if it is not -1.
	onOpen(d *driver, c *conn)
	// onMessage handles one frame: it calls onReady, recordDeliveries and recordAnswer of d.
	onMessage(d *driver, c *conn, p []byte)
	// publish sends a payload to a room. The payload is not JSON yet.
	publish(d *driver, c *conn, room int, payload []byte)
	// acksPublishes says whether the server answers a publish.
	acksPublishes() bool
}

func protocolByName(name, token string) (protocol, error) {
	switch name {
	case "switchyard", "signal":
		return &switchyardProtocol{frameType: map[string]string{"switchyard": "publish", "signal": "signal"}[name], secret: token}, nil
	case "centrifuge":
		return centrifugeProtocol{}, nil
	case "raw":
		return rawProtocol{}, nil
	}
	return nil, fmt.Errorf("unknown protocol %q, want switchyard, signal, centrifuge or raw", name)
}

// switchyardProtocol is wire v1. By the name signal, it sends signals instead of
// publishes.
type switchyardProtocol struct {
	frameType string
	secret    string // of HS256 tokens; empty for anonymous connections
}

func (s *switchyardProtocol) dial(c *conn) (string, string) {
	headers := "Sec-WebSocket-Protocol: switchyard.v1\r\n"
	if s.secret != "" {
		headers += "Authorization: Bearer " + s.token(c.id) + "\r\n"
	}
	return "/ws", headers
}

// token returns a token for the connection's own user.
func (s *switchyardProtocol) token(id int) string {
	enc := base64.RawURLEncoding
	body := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString(fmt.Appendf(nil,
		`{"sub":"user%d","exp":%d,"rooms":{"*":"rw"}}`, id, time.Now().Add(time.Hour).Unix()))
	mac := hmac.New(sha256.New, []byte(s.secret))
	mac.Write([]byte(body))
	return body + "." + enc.EncodeToString(mac.Sum(nil))
}

func (s *switchyardProtocol) onOpen(*driver, *conn) {}
func (s *switchyardProtocol) acksPublishes() bool   { return s.frameType == "publish" }

func (s *switchyardProtocol) onMessage(d *driver, c *conn, p []byte) {
	kind := bytes.TrimPrefix(p, []byte(`{"type":"`))
	switch {
	case bytes.HasPrefix(kind, []byte("message\"")), bytes.HasPrefix(kind, []byte("signal\"")):
		d.recordDeliveries(c, p)
	case bytes.HasPrefix(kind, []byte("ack\"")), bytes.HasPrefix(kind, []byte("history\"")):
		d.recordAnswer(c)
	case bytes.HasPrefix(kind, []byte("welcome\"")):
		if c.room < 0 || c.publisher {
			d.onReady(c)
			return
		}
		c.sendText(fmt.Appendf(nil, `{"type":"join","room":"%s"}`, d.roomName(c.room)))
	case bytes.HasPrefix(kind, []byte("joined\"")):
		if _, rest, ok := bytes.Cut(p, []byte(`"epoch":"`)); ok && d.epoch == "" {
			epoch, _, _ := bytes.Cut(rest, []byte(`"`))
			d.epoch = string(epoch)
		}
		if !c.ready {
			d.onReady(c)
			return
		}
		clear(c.lastSeqs) // it rejoins, and receives the same messages again
		d.recordAnswer(c)
	case bytes.HasPrefix(kind, []byte("error\"")), bytes.HasPrefix(kind, []byte("gap\"")):
		d.recordError(string(p))
	}
}

func (s *switchyardProtocol) publish(d *driver, c *conn, room int, payload []byte) {
	b := append(make([]byte, 0, 256), `{"type":"`...)
	b = append(b, s.frameType...)
	b = append(b, `","ref":"`...)
	c.lastRef++
	b = strconv.AppendUint(b, uint64(c.lastRef), 10)
	b = append(b, `","room":"`...)
	b = append(b, d.roomName(room)...)
	b = append(b, `","data":"`...)
	b = append(append(b, payload...), `"}`...)
	c.sendText(b)
}

// centrifugeProtocol is the JSON protocol of github.com/centrifugal/centrifuge.
type centrifugeProtocol struct{}

func (centrifugeProtocol) dial(*conn) (string, string) { return "/connection/websocket", "" }
func (centrifugeProtocol) acksPublishes() bool         { return true }

func (centrifugeProtocol) onOpen(d *driver, c *conn) {
	c.sendText([]byte(`{"id":1,"connect":{}}`))
	if c.room >= 0 && !c.publisher {
		c.sendText(fmt.Appendf(nil, `{"id":2,"subscribe":{"channel":"%s"}}`, d.roomName(c.room)))
	}
	c.lastRef = 2
}

func (centrifugeProtocol) onMessage(d *driver, c *conn, p []byte) {
	if bytes.HasPrefix(p, []byte(`{"push"`)) { // a frame may have several pushes
		if bytes.Contains(p, []byte("\n{\"id\"")) {
			d.recordAnswer(c)
		}
		d.recordDeliveries(c, p)
		return
	}
	for line := range bytes.SplitSeq(p, []byte("\n")) {
		switch {
		case len(line) == 0:
		case len(line) == 2: // {}: a ping
			c.sendText([]byte("{}"))
		case bytes.HasPrefix(line, []byte(`{"push"`)):
			d.recordDeliveries(c, line)
		case bytes.Contains(line, []byte(`"error":`)):
			d.recordError(string(line))
		case bytes.HasPrefix(line, []byte(`{"id":1,`)):
			if c.room < 0 || c.publisher {
				d.onReady(c)
			}
		case bytes.HasPrefix(line, []byte(`{"id":2,`)):
			d.onReady(c)
		default:
			d.recordAnswer(c)
		}
	}
}

func (centrifugeProtocol) publish(d *driver, c *conn, room int, payload []byte) {
	c.lastRef++
	c.sendText(fmt.Appendf(nil, `{"id":%d,"publish":{"channel":"%s","data":"%s"}}`, c.lastRef, d.roomName(room), payload))
}

// rawProtocol is that of ../floor: every frame goes to all members of the room.
type rawProtocol struct{}

func (rawProtocol) dial(c *conn) (string, string) {
	if c.publisher {
		return "/to/" + strconv.Itoa(c.room), ""
	}
	return "/in/" + strconv.Itoa(c.room), ""
}

func (rawProtocol) acksPublishes() bool                               { return false }
func (rawProtocol) onOpen(d *driver, c *conn)                         { d.onReady(c) }
func (rawProtocol) onMessage(d *driver, c *conn, p []byte)            { d.recordDeliveries(c, p) }
func (rawProtocol) publish(_ *driver, c *conn, _ int, payload []byte) { c.sendText(payload) }
