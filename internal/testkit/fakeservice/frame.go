package fakeservice

import (
	"encoding/json"
	"fmt"

	"switchyard/internal/message"
)

// A Frame is a frame that a client sent. Its methods return the service's frames
// about it.
type Frame struct {
	Type, Ref, ID string
	Room          message.Room
	Epoch         message.Epoch
	After, Before *message.Seq
	Limit         int
	Follows       bool
	Data          json.RawMessage
}

// Joined accepts a join of a room whose newest message is head.
func (f Frame) Joined(epoch message.Epoch, head int) string {
	return fmt.Sprintf(`{"type":"joined","ref":%q,"room":%q,"epoch":%q,"seq":%d,"first":1}`, f.Ref, f.Room, epoch, head)
}

// Ack acks a publish.
func (f Frame) Ack(epoch message.Epoch, seq int, duplicate bool) string {
	flag := ""
	if duplicate {
		flag = `,"duplicate":true`
	}
	return fmt.Sprintf(`{"type":"ack","ref":%q,"room":%q,"epoch":%q,"seq":%d,"id":%q%s}`, f.Ref, f.Room, epoch, seq, f.ID, flag)
}

// Message delivers what was published. from is JSON.
func (f Frame) Message(epoch message.Epoch, seq int, from string) string {
	return fmt.Sprintf(`{"type":"message","room":%q,"epoch":%q,"seq":%d,"id":%q,"from":%s,"at":"2026-01-02T15:04:05.000001Z","data":%s}`,
		f.Room, epoch, seq, f.ID, from, f.Data)
}

// Error refuses a request. more has further fields, and begins with a comma if it is
// not empty.
func (f Frame) Error(code, more string) string {
	return fmt.Sprintf(`{"type":"error","ref":%q,"room":%q,"code":%q,"message":"no"%s}`, f.Ref, f.Room, code, more)
}
