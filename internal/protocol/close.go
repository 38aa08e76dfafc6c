package protocol

import (
	"encoding/binary"
	"fmt"
)

// A CloseCode tells a client why its socket ends and so what to do next. Codes
// below 4000 are those of RFC 6455 §7.4.1; the table of what clients do is in
// docs/protocol.md.
type CloseCode uint16

// The close codes the service sends.
const (
	CloseNormal             CloseCode = 1000 // asked to: stays away
	CloseProtocol           CloseCode = 1002 // broke RFC 6455
	CloseBinary             CloseCode = 1003 // a binary frame: only text is spoken here
	CloseUTF8               CloseCode = 1007 // text that is not UTF-8
	ClosePolicy             CloseCode = 1008 // three malformed frames in a row
	CloseTooBig             CloseCode = 1009 // a frame over max_frame
	CloseRestart            CloseCode = 1012 // this node goes: comes back within a second
	CloseUnauthorized       CloseCode = 4001 // the token is missing, wrong, late, or has ended: brings a fresh one
	CloseRemoved            CloseCode = 4003 // the user was removed: stays away
	CloseReplaced           CloseCode = 4009 // its session has a newer socket: forgets this one
	CloseTooManyConnections CloseCode = 4103 // the node has as many connections as it may
	CloseRateLimited        CloseCode = 4129 // went on sending what rate_limited refused
	CloseSlow               CloseCode = 4208 // did not read fast enough: comes back and resumes
	CloseNoPong             CloseCode = 4209 // no byte for two heartbeats
)

// Reason is the text that goes with the code, and its name in metrics.
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

// CloseFrame is a whole close frame with the code and its reason.
func CloseFrame(code CloseCode) Frame {
	reason := code.Reason()
	f := make(Frame, 4, 4+len(reason))
	f[0], f[1] = final|opClose, byte(2+len(reason))
	binary.BigEndian.PutUint16(f[2:], uint16(code))
	return append(f, reason...)
}
