package conn

import "sync"

// buffers lends byte buffers, so that an idle connection owns none.
var buffers sync.Pool

// GetBuffer lends an empty buffer.
func GetBuffer() *[]byte {
	if b, ok := buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, 4096)
	return &b
}

// PutBuffer takes a buffer back, unless it has grown large.
func PutBuffer(b *[]byte) {
	if cap(*b) <= maxWrite {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}
