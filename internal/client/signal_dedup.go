package client

import (
	"hash/maphash"
	"time"
)

const (
	// signalDedupWindow is how long after a move the second copy of a signal may
	// still arrive.
	signalDedupWindow = 5 * time.Second
	// maxDedupSignals bounds the signals that are remembered. Beyond it a signal
	// may be delivered twice.
	maxDedupSignals = 1024
)

// A signalDedup recognizes the second copy of a signal. During a move each signal
// arrives on both connections, in any order, and signals have neither seq nor id.
// So signals with the same room, user and data count as equal. Equal signals go
// to the handler as often as they arrived on one connection, the one with the
// most copies. Guarded by Client.mu. A nil signalDedup recognizes nothing.
type signalDedup struct {
	seed    maphash.Seed
	counts  map[uint64]*signalCount // by the hash of room, user and data
	expires time.Time               // zero while two connections are open
}

// A signalCount is how often equal signals were delivered to the handler and
// received from each connection.
type signalCount struct {
	delivered int
	received  map[uint64]int // by the number of the connection
}

// start returns the signalDedup for a move that begins: d itself, with what it
// still remembers, unless that has expired.
func (d *signalDedup) start() *signalDedup {
	if d == nil || d.expired() {
		d = &signalDedup{seed: maphash.MakeSeed(), counts: make(map[uint64]*signalCount)}
	}
	d.expires = time.Time{}
	return d
}

// expireSoon lets d expire after signalDedupWindow, because one of the two
// connections has ended.
func (d *signalDedup) expireSoon() {
	if d != nil {
		d.expires = time.Now().Add(signalDedupWindow)
	}
}

func (d *signalDedup) expired() bool { return !d.expires.IsZero() && time.Now().After(d.expires) }

// seenBefore counts a signal that the connection with that number has received,
// and reports whether it was delivered before.
func (d *signalDedup) seenBefore(number uint64, f *serverFrame) bool {
	if d == nil || d.expired() {
		return false
	}
	var h maphash.Hash
	h.SetSeed(d.seed)
	for _, part := range [][]byte{[]byte(f.Room), f.From, f.Data} {
		_, _ = h.Write(part)
		_ = h.WriteByte(0) // a separator: JSON escapes zero bytes
	}
	count := d.counts[h.Sum64()]
	if count == nil {
		if len(d.counts) >= maxDedupSignals {
			return false
		}
		count = &signalCount{received: make(map[uint64]int, 2)}
		d.counts[h.Sum64()] = count
	}
	count.received[number]++
	if count.received[number] <= count.delivered {
		return true
	}
	count.delivered++
	return false
}
