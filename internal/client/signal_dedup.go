package client

import (
	"hash/maphash"
	"time"
)

const (
	// signalDedupWindow is how long after a move a signal may still come a second time.
	signalDedupWindow = 5 * time.Second
	// maxDedupSignals bounds the signals that are remembered; beyond it one may be
	// told twice.
	maxDedupSignals = 1024
)

// signalDedup tells which signals of a move were told before. Both connections bring
// each, in any order, and signals have neither seq nor id: what is the same in
// room, user and data is taken for the same, and told as often as that
// connection brings it which brings it most. Guarded by Client.mu; nil knows of
// none.
type signalDedup struct {
	seed    maphash.Seed
	counts  map[uint64]*signalCount
	expires time.Time // zero while two connections are open
}

type signalCount struct {
	delivered int
	received  map[uint64]int // by the number of the connection
}

// start begins what fade ends. What is still remembered of a move before
// counts on.
func (e *signalDedup) start() *signalDedup {
	if e == nil || e.expired() {
		e = &signalDedup{seed: maphash.MakeSeed(), counts: make(map[uint64]*signalCount)}
	}
	e.expires = time.Time{}
	return e
}

// expireSoon begins the end, after which nothing comes twice.
func (e *signalDedup) expireSoon() {
	if e != nil {
		e.expires = time.Now().Add(signalDedupWindow)
	}
}

func (e *signalDedup) expired() bool { return !e.expires.IsZero() && time.Now().After(e.expires) }

// seenBefore says whether a signal of connection number was told before.
func (e *signalDedup) seenBefore(number uint64, f *serverFrame) bool {
	if e == nil || e.expired() {
		return false
	}
	var h maphash.Hash
	h.SetSeed(e.seed)
	for _, part := range [][]byte{[]byte(f.Room), f.From, f.Data} {
		_, _ = h.Write(part)
		_ = h.WriteByte(0) // which no part holds: JSON escapes it
	}
	count := e.counts[h.Sum64()]
	if count == nil {
		if len(e.counts) >= maxDedupSignals {
			return false
		}
		count = &signalCount{received: make(map[uint64]int, 2)}
		e.counts[h.Sum64()] = count
	}
	count.received[number]++
	if count.received[number] <= count.delivered {
		return true
	}
	count.delivered++
	return false
}
