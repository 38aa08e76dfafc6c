package hub

import (
	"errors"
	"testing"
	"time"

	"switchyard/internal/protocol"
)

// A reader may be in twenty times as many rooms as one client, and a join that replaces
// another is none more.
func TestRoomsOfAReaderAreBounded(t *testing.T) {
	storm(t, func(c *crowd) {
		h := c.sim.nodes[0]
		h.cfg.MaxRooms, h.roomQuota = 5, newRoomQuota(5, 1<<30)
		var clients []*Client
		join := func(client *Client, room int) error {
			return client.Handle(t.Context(), &protocol.Request{Type: protocol.TypeJoin, Room: testRoom(room)})
		}
		for i := range 100 {
			if i%5 == 0 {
				clients = append(clients, h.NewClient(&recordingOutlet{}, "ada", "u:ada"))
			}
			if err := join(clients[len(clients)-1], i); err != nil {
				t.Fatalf("room %d: %v", i, err)
			}
		}
		other := h.NewClient(&recordingOutlet{}, "ada", "u:ada")
		if err := join(other, 0); !errors.Is(err, errTooManyOfReader) {
			t.Errorf("one too many: %v", err)
		}
		if err := join(clients[0], 0); err != nil {
			t.Errorf("again in a room: %v", err)
		}
		bob := h.NewClient(&recordingOutlet{}, "bob", "u:bob")
		if err := join(bob, 0); err != nil {
			t.Errorf("another user: %v", err)
		}
		clients[0].Close(true)
		for i := range 5 {
			if err := join(other, i); err != nil {
				t.Errorf("after five were left, room %d: %v", i, err)
			}
		}
		for _, client := range append(clients[1:], other, bob) {
			client.Close(true)
		}
		if q := h.roomQuota; len(q.memberships) != 0 || q.used%TopicBytes != 0 {
			t.Errorf("nobody is in a room: %v, %d bytes", q.memberships, q.used)
		}
	})
}

// However little memory there is for rooms, one reader has an eighth of it at most.
func TestAReaderHasAShareOfTheMemoryForRooms(t *testing.T) {
	for bytes, want := range map[int64]int{1 << 30: 20_000, 112 << 20: 5734, 32 << 20: 1638} {
		if got := MaxRoomsOfReader(1000, bytes); got != want {
			t.Errorf("with %d MiB: %d rooms, want %d", bytes>>20, got, want)
		}
	}
}

// Without memory for another room a join is refused, and may be tried again.
func TestRoomsAreBoundedByMemory(t *testing.T) {
	storm(t, func(c *crowd) {
		h := c.sim.nodes[0]
		h.roomQuota = newRoomQuota(h.cfg.MaxRooms, 3*(MemberBytes+TopicBytes))
		client := h.NewClient(&recordingOutlet{}, "", "")
		var refused error
		joined := 0
		for ; refused == nil && joined < 10; joined++ {
			refused = client.Handle(t.Context(), &protocol.Request{Type: protocol.TypeJoin, Room: testRoom(joined)})
		}
		if joined != 4 || !errors.Is(refused, errNoMemoryForRooms) {
			t.Errorf("join %d: %v", joined, refused)
		}
		client.Close(true)
		time.Sleep(time.Minute) // of the storm's clock: the rooms are closed
		if err := client.Handle(t.Context(), &protocol.Request{Type: protocol.TypeJoin, Room: testRoom(0)}); err != nil {
			t.Errorf("once the rooms are closed: %v", err)
		}
		client.Close(true)
	})
}
