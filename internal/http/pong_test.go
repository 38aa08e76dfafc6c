package http

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"switchyard/internal/testkit"
)

// clientFrame returns a frame as a client sends it, with a random mask.
func clientFrame(opcode byte, payload []byte) []byte {
	f := []byte{0x80 | opcode}
	switch n := len(payload); {
	case n < 126:
		f = append(f, 0x80|byte(n))
	case n < 1<<16:
		f = append(f, 0x80|126, byte(n>>8), byte(n))
	default:
		f = binary.BigEndian.AppendUint64(append(f, 0x80|127), uint64(n))
	}
	mask := [4]byte{byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32())}
	f = append(f, mask[:]...)
	for i, b := range payload {
		f = append(f, b^mask[i%4])
	}
	return f
}

func pong(n uint64) []byte { return clientFrame(0xA, binary.BigEndian.AppendUint64(nil, n)) }

func TestPongsAreFoundInSplitReads(t *testing.T) {
	stream := bytes.Join([][]byte{
		clientFrame(1, []byte(`{"type":"join"}`)), pong(7), clientFrame(1, nil), clientFrame(0xA, nil), pong(1 << 60),
		clientFrame(2, bytes.Repeat([]byte{0x8A}, 300)), pong(8), clientFrame(1, bytes.Repeat(pong(99), 5000)), pong(9),
		clientFrame(0xA, []byte("1234567")), clientFrame(9, []byte("12345678")), clientFrame(0xA, []byte("123456789")), pong(10),
	}, nil)
	want := []uint64{7, 1 << 60, 8, 9, 10}
	for round := range 300 {
		var s pongScanner
		var got []uint64
		for rest := stream; len(rest) > 0; {
			n := len(rest)
			if round > 0 { // the first round is one read, others are split
				n = min(n, 1+rand.IntN(1<<(round%10)))
			}
			s.scan(rest[:n], func(n uint64) { got = append(got, n) })
			rest = rest[n:]
		}
		if !slices.Equal(got, want) {
			t.Fatalf("round %d: pongs %v, want %v", round, got, want)
		}
	}
}

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

// Whatever a client sends, the scanner ends, never reads outside of its bytes, and
// finds the same pongs however the bytes are split.
func FuzzPongScanner(f *testing.F) {
	f.Add(pong(7), 3)
	f.Add([]byte{0x8A, 0x08, 1, 2, 3, 4, 5, 6, 7, 8}, 1) // without a mask
	f.Add([]byte{0x8A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 1}, 2)
	f.Fuzz(func(t *testing.T, stream []byte, cut int) {
		var whole, split pongScanner
		var a, b []uint64
		whole.scan(stream, func(n uint64) { a = append(a, n) })
		cut = max(0, min(cut, len(stream)))
		split.scan(stream[:cut], func(n uint64) { b = append(b, n) })
		split.scan(stream[cut:], func(n uint64) { b = append(b, n) })
		if !slices.Equal(a, b) {
			t.Errorf("whole %v, cut at %d %v", a, cut, b)
		}
	})
}
