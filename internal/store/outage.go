package store

import (
	"errors"
	"log/slog"
	"sync"
)

// An exchange is what an append worker tried with the database.
type exchange int

const (
	exchangePing exchange = iota
	exchangeCommit
)

// An outage logs when the log cannot be written and when it can again: one line
// each, however many workers notice it, and however often they try. If it began with
// an error that does not say what to do, the first that does is a second line. Its
// lock is a leaf.
type outage struct {
	log *slog.Logger
	mu  sync.Mutex
	// down has the workers whose last exchange failed. With exchangeCommit their
	// pings prove nothing: a database that is read-only, or full, answers them.
	down    map[*appendWorker]exchange
	advised bool // an operatorError of this outage was logged
}

func (o *outage) recordFailure(w *appendWorker, e exchange, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var advice *operatorError
	isAdvice := errors.As(err, &advice)
	if len(o.down) == 0 || isAdvice && !o.advised {
		o.log.Warn("the log cannot be written; retrying", "error", err)
	}
	o.advised = o.advised || isAdvice
	o.down[w] = max(o.down[w], e)
}

func (o *outage) recordSuccess(w *appendWorker, e exchange) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e == exchangeCommit {
		for other := range o.down { // commits succeed, so pings prove something again
			o.down[other] = exchangePing
		}
	}
	failed, isDown := o.down[w]
	if !isDown || failed > e {
		return
	}
	delete(o.down, w)
	if len(o.down) == 0 {
		o.advised = false
		o.log.Info("the log can be written again")
	}
}
