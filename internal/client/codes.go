package client

import "time"

// Close codes that this package handles: those of RFC 6455 §7.4.1, and the
// service's own, listed in web/asyncapi.yaml.
const (
	codeNormal      = 1000
	codeProtocol    = 1002
	codeUnsupported = 1003
	codeAbnormal    = 1006 // no close frame arrived
	codeInvalid     = 1007
	codePolicy      = 1008
	codeTooBig      = 1009
	codeRestart     = 1012
	codeTryLater    = 1013
	codeDiscarded   = 4000 // sent by this client, to close an unused next connection: 1000 would end the session
	codeToken       = 4001
	codeRemoved     = 4003
	codeReplaced    = 4009
	codeSlow        = 4208
	codeSocketFirst = 4200 // 42xx concerns this connection only
	codeSocketEnd   = 4300 // exclusive
)

// A closeAction is what a close code asks of the client.
type closeAction int

const (
	actionBackOff       closeAction = iota // reconnect after growing, random delays
	actionReconnectSoon                    // reconnect within a second
	actionStop                             // end: a further attempt would fail in the same way
	actionNewToken                         // back off with Options.Token, end without it
)

func actionForCode(code int) closeAction {
	switch code {
	case codeNormal, codeProtocol, codeUnsupported, codeInvalid, codePolicy, codeRemoved:
		return actionStop
	case codeReplaced: // by a newer connection of the session, which this client did not open
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
	backoffMin      = 500 * time.Millisecond // the first bound; each failure doubles it
	backoffMax      = 20 * time.Second
	reconnectWithin = time.Second
	// stableAfter is how long a connection must be open to reset the count of
	// failures, and the time after which a second 4208 counts as unrelated to the
	// first.
	stableAfter = 10 * time.Second
)

// A backoff decides how long to wait before the next connection. One goroutine
// uses it at a time.
type backoff struct {
	random   func() float64 // in [0, 1)
	failures int
	slowAt   time.Time // when the last 4208 arrived
}

// next returns the delay after a connection that was open for lifetime and ended
// with code at now. action is what the code asks for.
func (b *backoff) next(action closeAction, code int, lifetime time.Duration, now time.Time) time.Duration {
	if lifetime >= stableAfter {
		b.failures = 0
	}
	if action == actionReconnectSoon {
		repeated := code == codeSlow && !b.slowAt.IsZero() && now.Sub(b.slowAt) < stableAfter
		if code == codeSlow {
			b.slowAt = now
		}
		if !repeated {
			return time.Duration(b.random() * float64(reconnectWithin))
		}
	}
	bound := min(backoffMin<<min(b.failures, 10), backoffMax)
	b.failures++
	return time.Duration(b.random() * float64(bound))
}
