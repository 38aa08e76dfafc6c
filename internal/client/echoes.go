package client

import (
	"hash/maphash"
	"time"
)

const (
	// echoFor is how long after a move a signal may still come a second time.
	echoFor = 5 * time.Second
	// maxEchoes bounds the signals that are remembered; beyond it one may be
	// told twice.
	maxEchoes = 1024
)

// echoes tells which signals of a move were told before. Both connections bring
// each, in any order, and signals have neither seq nor id: what is the same in
// room, user and data is taken for the same, and told as often as that
// connection brings it which brings it most. Guarded by Client.mu; nil knows of
// none.
type echoes struct {
	seed  maphash.Seed
	heard map[uint64]*echo
	until time.Time // zero while two connections are open
}

type echo struct {
	told int
	by   map[uint64]int // by the number of the connection
}

// expect begins what fade ends. What is still remembered of a move before
// counts on.
func (e *echoes) expect() *echoes {
	if e == nil || e.over() {
		e = &echoes{seed: maphash.MakeSeed(), heard: make(map[uint64]*echo)}
	}
	e.until = time.Time{}
	return e
}

// fade begins the end, after which nothing comes twice.
func (e *echoes) fade() {
	if e != nil {
		e.until = time.Now().Add(echoFor)
	}
}

func (e *echoes) over() bool { return !e.until.IsZero() && time.Now().After(e.until) }

// again says whether a signal of connection number was told before.
func (e *echoes) again(number uint64, f *serverFrame) bool {
	if e == nil || e.over() {
		return false
	}
	var h maphash.Hash
	h.SetSeed(e.seed)
	for _, part := range [][]byte{[]byte(f.Room), f.From, f.Data} {
		_, _ = h.Write(part)
		_ = h.WriteByte(0) // which no part holds: JSON escapes it
	}
	heard := e.heard[h.Sum64()]
	if heard == nil {
		if len(e.heard) >= maxEchoes {
			return false
		}
		heard = &echo{by: make(map[uint64]int, 2)}
		e.heard[h.Sum64()] = heard
	}
	heard.by[number]++
	if heard.by[number] <= heard.told {
		return true
	}
	heard.told++
	return false
}
