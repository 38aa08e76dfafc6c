package conn

import (
	"io"
	"testing"

	"switchyard/internal/protocol"
)

// Sending a frame to a client that reads allocates nothing.
func TestASendAllocatesNothing(t *testing.T) {
	c, client, _ := tcpPair(t, 1<<20)
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(io.Discard, client)
	}()
	f := protocol.Signal("r", "", []byte(`"some words"`))
	if n := testing.AllocsPerRun(2000, func() { c.Send(f) }); n > 0 {
		t.Errorf("a send allocates %.2f objects", n)
	}
	_ = c.Conn.Close()
	<-read
}
