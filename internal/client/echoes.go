package client

import (
	"hash/maphash"
	"time"
)

const (
	// echoFor is how long after a move a signal may still come a second time.
	echoFor = 2 * time.Second
	// maxEchoes bounds the signals that are remembered; beyond it one may be
	// told twice.
	maxEchoes = 1024
)

// echoes tells which signals of a move were told before. Both connections bring
// each, in any order, and signals have neither seq nor id: what is the same in
// room, user and data is taken for the same. Guarded by Client.mu; nil knows of
// none.
type echoes struct {
	second uint64 // the number of the second connection
	seed   maphash.Seed
	// ahead is by how many the second connection has brought a signal more
	// often than the first; below zero, less often.
	ahead map[uint64]int
	until time.Time // zero while both are open
}

func newEchoes(second uint64) *echoes {
	return &echoes{second: second, seed: maphash.MakeSeed(), ahead: make(map[uint64]int)}
}

// fade begins the end, after which nothing comes twice.
func (e *echoes) fade() {
	if e != nil {
		e.until = time.Now().Add(echoFor)
	}
}

// again says whether the other connection has brought this signal, and was not
// answered by this one yet.
func (e *echoes) again(number uint64, f *serverFrame) bool {
	if e == nil || (!e.until.IsZero() && time.Now().After(e.until)) {
		return false
	}
	var h maphash.Hash
	h.SetSeed(e.seed)
	for _, part := range [][]byte{[]byte(f.Room), f.From, f.Data} {
		_, _ = h.Write(part)
		_ = h.WriteByte(0) // which no part holds: JSON escapes it
	}
	step := -1
	if number == e.second {
		step = 1
	}
	key := h.Sum64()
	ahead, known := e.ahead[key]
	if !known && len(e.ahead) >= maxEchoes {
		return false
	}
	if ahead += step; ahead == 0 {
		delete(e.ahead, key)
	} else {
		e.ahead[key] = ahead
	}
	return known && ahead*step <= 0
}
