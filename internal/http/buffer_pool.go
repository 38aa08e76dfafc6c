package http

import "sync"

// A bufferPool lends byte buffers, so that an idle connection owns none. It is safe
// for concurrent use.
type bufferPool struct{ p sync.Pool }

var buffers bufferPool

func (p *bufferPool) get() *[]byte {
	if b, ok := p.p.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, 4096)
	return &b
}

// put returns a buffer to the pool, unless it has grown large.
func (p *bufferPool) put(b *[]byte) {
	if cap(*b) <= maxWrite {
		*b = (*b)[:0]
		p.p.Put(b)
	}
}
