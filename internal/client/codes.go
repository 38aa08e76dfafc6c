package client

import "time"

// Close codes with a meaning of their own, after RFC 6455 §7.4.1 and the
// table in DESIGN.md §5.
const (
	codeNormal       = 1000
	codeProtocol     = 1002
	codeUnsupported  = 1003
	codeAbnormal     = 1006 // no close frame came
	codeInvalid      = 1007
	codePolicy       = 1008
	codeTooBig       = 1009
	codeRestart      = 1012
	codeTryLater     = 1013
	codeNotHere      = 4000 // ours: a second connection is not kept; 1000 would end the session
	codeToken        = 4001
	codeRemoved      = 4003
	codeReplaced     = 4009
	codeSlow         = 4208
	codeSocketFirst  = 4200 // 42xx: this socket only
	codeSocketBehind = 4300
)

// A verdict is what a close code tells a client to do.
type verdict int

const (
	backOff    verdict = iota // come back with growing, random delays
	comeBack                  // come back within a second
	stayAway                  // the same again would end the same way
	freshToken                // back off, but only with somebody to ask for a token
)

func judge(code int) verdict {
	switch code {
	case codeNormal, codeProtocol, codeUnsupported, codeInvalid, codePolicy, codeRemoved:
		return stayAway
	case codeReplaced: // by a newer socket of the same session, which is not ours
		return stayAway
	case codeToken:
		return freshToken
	case codeRestart:
		return comeBack
	}
	if codeSocketFirst <= code && code < codeSocketBehind {
		return comeBack
	}
	return backOff
}

const (
	backoffMin = 500 * time.Millisecond // the first bound, doubled at each failure
	backoffMax = 20 * time.Second
	soon       = time.Second
	// steadyAfter is how long a connection lives until failures are forgotten,
	// and how far apart two 4208 are unrelated.
	steadyAfter = 10 * time.Second
)

// A pacer decides how long to wait between connections.
type pacer struct {
	random   func() float64 // in [0, 1)
	failures int
	slowAt   time.Time // of the last 4208
}

// next returns the delay after a connection that lived for lived and ended
// with code at now; v says what its code asks for.
func (p *pacer) next(v verdict, code int, lived time.Duration, now time.Time) time.Duration {
	if lived >= steadyAfter {
		p.failures = 0
	}
	if v == comeBack {
		again := code == codeSlow && !p.slowAt.IsZero() && now.Sub(p.slowAt) < steadyAfter
		if code == codeSlow {
			p.slowAt = now
		}
		if !again {
			return time.Duration(p.random() * float64(soon))
		}
	}
	bound := min(backoffMin<<min(p.failures, 10), backoffMax)
	p.failures++
	return time.Duration(p.random() * float64(bound))
}
