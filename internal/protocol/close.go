package protocol

import (
	"encoding/binary"
	"fmt"
)

// A CloseCode tells a client why its connection ends, and so what to do next.
// Codes below 4000 are those of RFC 6455 §7.4.1. docs/protocol.md has what a
// client does about each.
type CloseCode uint16

// The close codes that the service sends, and what the client does next.
const (
	CloseNormal             CloseCode = 1000 // the client closed, and does not reconnect
	CloseProtocol           CloseCode = 1002 // the client broke RFC 6455
	CloseBinary             CloseCode = 1003 // a binary frame: this wire is text only
	CloseUTF8               CloseCode = 1007 // a text frame that is not UTF-8
	ClosePolicy             CloseCode = 1008 // three malformed frames in a row
	CloseTooBig             CloseCode = 1009 // a frame over max_frame
	CloseRestart            CloseCode = 1012 // this node stops: the client reconnects within a second
	CloseUnauthorized       CloseCode = 4001 // the token is missing, wrong, late or expired: the client presents a new one
	CloseRemoved            CloseCode = 4003 // the user is banned: the client does not reconnect
	CloseReplaced           CloseCode = 4009 // the session has a newer connection: the client drops this one
	CloseTooManyConnections CloseCode = 4103 // the node has as many connections as it accepts
	CloseRateLimited        CloseCode = 4129 // the client kept sending what rate_limited refused
	CloseSlow               CloseCode = 4208 // the client did not read fast enough: it reconnects and resumes
	CloseNoPong             CloseCode = 4209 // nothing was received for two heartbeats
)

// Reason returns the text that goes with the code, which is also its label in
// metrics.
func (c CloseCode) Reason() string {
	switch c {
	case CloseNormal:
		return "normal"
	case CloseProtocol:
		return "protocol_error"
	case CloseBinary:
		return "binary_frame"
	case CloseUTF8:
		return "invalid_utf8"
	case ClosePolicy:
		return "malformed"
	case CloseTooBig:
		return "too_big"
	case CloseRestart:
		return "restart"
	case CloseUnauthorized:
		return "unauthorized"
	case CloseRemoved:
		return "removed"
	case CloseReplaced:
		return "replaced"
	case CloseTooManyConnections:
		return "too_many_connections"
	case CloseRateLimited:
		return "rate_limited"
	case CloseSlow:
		return "slow"
	case CloseNoPong:
		return "no_pong"
	}
	return fmt.Sprintf("code_%d", uint16(c))
}

// CloseFrame returns a whole close frame with the code and its reason.
func CloseFrame(code CloseCode) Frame {
	reason := code.Reason()
	f := make(Frame, 4, 4+len(reason))
	f[0], f[1] = final|opClose, byte(2+len(reason))
	binary.BigEndian.PutUint16(f[2:], uint16(code))
	return append(f, reason...)
}
