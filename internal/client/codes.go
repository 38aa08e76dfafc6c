package client

import "time"

// Close codes with a meaning of their own, after RFC 6455 §7.4.1 and the
// table in DESIGN.md §5.
const (
	codeNormal      = 1000
	codeProtocol    = 1002
	codeUnsupported = 1003
	codeAbnormal    = 1006 // no close frame came
	codeInvalid     = 1007
	codePolicy      = 1008
	codeTooBig      = 1009
	codeRestart     = 1012
	codeTryLater    = 1013
	codeDiscarded   = 4000 // ours: a second connection is not kept; 1000 would end the session
	codeToken       = 4001
	codeRemoved     = 4003
	codeReplaced    = 4009
	codeSlow        = 4208
	codeSocketFirst = 4200 // 42xx: this socket only
	codeSocketEnd   = 4300
)

// A closeAction is what a close code tells a client to do.
type closeAction int

const (
	actionBackOff       closeAction = iota // come back with growing, random delays
	actionReconnectSoon                    // come back within a second
	actionStop                             // the same again would end the same way
	actionNewToken                         // back off, but only with somebody to ask for a token
)

func actionForCode(code int) closeAction {
	switch code {
	case codeNormal, codeProtocol, codeUnsupported, codeInvalid, codePolicy, codeRemoved:
		return actionStop
	case codeReplaced: // by a newer socket of the same session, which is not ours
		return actionStop
	case codeToken:
		return actionNewToken
	case codeRestart:
		return actionReconnectSoon
	}
	if codeSocketFirst <= code && code < codeSocketEnd {
		return actionReconnectSoon
	}
	return actionBackOff
}

const (
	backoffMin      = 500 * time.Millisecond // the first bound, doubled at each failure
	backoffMax      = 20 * time.Second
	reconnectWithin = time.Second
	// stableAfter is how long a connection lives until failures are forgotten,
	// and how far apart two 4208 are unrelated.
	stableAfter = 10 * time.Second
)

// A backoff decides how long to wait between connections.
type backoff struct {
	random   func() float64 // in [0, 1)
	failures int
	slowAt   time.Time // of the last 4208
}

// next returns the delay after a connection that lived for lived and ended
// with code at now; v says what its code asks for.
func (p *backoff) next(action closeAction, code int, lifetime time.Duration, now time.Time) time.Duration {
	if lifetime >= stableAfter {
		p.failures = 0
	}
	if action == actionReconnectSoon {
		repeated := code == codeSlow && !p.slowAt.IsZero() && now.Sub(p.slowAt) < stableAfter
		if code == codeSlow {
			p.slowAt = now
		}
		if !repeated {
			return time.Duration(p.random() * float64(reconnectWithin))
		}
	}
	bound := min(backoffMin<<min(p.failures, 10), backoffMax)
	p.failures++
	return time.Duration(p.random() * float64(bound))
}
