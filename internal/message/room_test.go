package message

import (
	"errors"
	"strings"
	"testing"
)

func TestRoomNames(t *testing.T) {
	tests := []struct {
		name string
		ok   bool
	}{
		{"a", true},
		{"orders:7.open_now-x", true},
		{"ABCxyz019", true},
		{strings.Repeat("r", 128), true},
		{"_canary.n1", true}, // a valid name, but closed to clients
		{"", false},
		{strings.Repeat("r", 129), false},
		{"a b", false},
		{"a/b", false},
		{"a\x00", false},
		{"ä", false},
		{"a*", false},
	}
	for _, tt := range tests {
		room, err := ParseRoom(tt.name)
		var invalid *InvalidError
		switch {
		case tt.ok && (err != nil || string(room) != tt.name):
			t.Errorf("%q is refused: %v", tt.name, err)
		case !tt.ok && (!errors.As(err, &invalid) || invalid.Field != "room"):
			t.Errorf("%q: got %v, want an error that names the room", tt.name, err)
		}
	}
}

func TestReservedRoomsBelongToTheService(t *testing.T) {
	for room, want := range map[Room]bool{"_x": true, "_canary.n": true, "x_": false, "": false, "a._b": false} {
		if room.Reserved() != want {
			t.Errorf("Reserved of %q is %v, want %v", room, room.Reserved(), want)
		}
	}
}

func TestIDs(t *testing.T) {
	for id, ok := range map[string]bool{
		"1": true, "0190cafe-7000": true, strings.Repeat("i", 64): true,
		"": false, "a b": false, strings.Repeat("i", 65): false, "\"": false, "\n": false,
	} {
		if err := CheckID(id); (err == nil) != ok {
			t.Errorf("id %q: got %v, want it accepted: %v", id, err, ok)
		}
	}
}

func TestAPublicationKeepsItsDraft(t *testing.T) {
	p := &Publication{Draft: Draft{Room: "r", ID: "i", From: "u", Data: []byte(`1`)}, Epoch: "e", Seq: 3}
	m := p.Message()
	if m.Room != "r" || m.ID != "i" || m.From != "u" || string(m.Data) != `1` || m.Epoch != "e" || m.Seq != 3 {
		t.Errorf("got %+v", m)
	}
}
