//go:build !386

package conn

import (
	"io"
	"testing"

	"switchyard/internal/testkit"
)

// The socket takes more than a client has received, and says how much: a client that
// reads slowly is known to be alive before the socket takes anything again.
func TestWhatAClientHasNotReceivedIsKnown(t *testing.T) {
	c, client, _ := tcpPair(t, 1<<20)
	buf := make([]byte, 8<<10)
	for n := 1; n > 0; {
		var err error
		if n, err = c.direct.tryWrite(buf); err != nil {
			t.Fatal(err)
		}
	}
	full := c.direct.unacked()
	if full == 0 {
		t.Fatal("a socket that takes no more has nothing that is not acknowledged")
	}
	testkit.Eventually(t, "what the client reads to be acknowledged", func() bool {
		if _, err := io.ReadFull(client, buf); err != nil {
			t.Fatal(err)
		}
		return c.direct.unacked() < full
	})
	_ = c.Close()
}
