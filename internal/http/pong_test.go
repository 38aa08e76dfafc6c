package http

import (
	"encoding/binary"
	"io"
	"testing"

	"switchyard/internal/testkit"
)

// A pong proves what was sent before the ping with its counter. A pong with another
// counter, such as one that the client sends unasked, proves nothing.
func TestAPongOfAnotherPingProvesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		n, a := startSessionNode(t, nil)
		c, br := n.rawHandshake("")
		testkit.Eventually(t, "the session to be saved", func() bool { return a.saves.Load() > 0 })
		if _, err := io.WriteString(c, testkit.MaskedFrame(frameText, `{"type":"join","room":"a"}`)); err != nil {
			t.Fatal(err)
		}
		answer := func(pings int, change uint64) {
			for range pings {
				op, payload := readFrame(t, br)
				for op != framePing {
					op, payload = readFrame(t, br)
				}
				counter := binary.BigEndian.Uint64([]byte(payload)) + change
				if _, err := io.WriteString(c, testkit.MaskedFrame(framePong, string(binary.BigEndian.AppendUint64(nil, counter)))); err != nil {
					t.Fatal(err)
				}
			}
		}
		answer(5, 1)
		if got := a.savedRooms(); got != "" {
			t.Errorf("room %s is saved, though no ping was answered", got)
		}
		answer(1, 0)
		go func() { _, _ = io.Copy(io.Discard, br) }()
		testkit.Eventually(t, "the room to be saved", func() bool { return a.savedRooms() == "a" })
	})
}
