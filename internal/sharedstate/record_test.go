package sharedstate

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"switchyard/internal/message"
)

func exampleRecord() sessionRecord {
	return sessionRecord{node: "node-b", Session: message.Session{
		User: "ada", Generation: 3, Revision: 5, PreviousNode: "node-a",
		Rooms: []message.RoomPosition{{Room: "a:1", Epoch: "e1", Seq: 9}, {Room: "a:2", Epoch: "e2", Seq: 300}},
	}}
}

// Nodes of several releases share a Redis, so each must read what the others
// write.
func TestTheFormatOfARecordIsFixed(t *testing.T) {
	const golden = "01" + "00000003" + "0000000000000005" + "00" + "030606" +
		"616461" + "6e6f64652d62" + "6e6f64652d61" + // ada node-b node-a
		"02" + "026531" + "026532" + // epochs e1 e2
		"02" + "00" + "03613a31" + "00" + "09" + // a:1, its whole name, first epoch, 9
		"02" + "0132" + "01" + "ac02" // a:2, without the two letters in common, second epoch, 300
	rec := exampleRecord()
	got, whole := rec.encode()
	if hex.EncodeToString(got) != golden || !whole {
		t.Errorf("encoded as\n%x, want\n%s", got, golden)
	}
	raw, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := decodeRecord(raw); err != nil || !reflect.DeepEqual(back, rec) {
		t.Errorf("decoded as %+v, %v", back, err)
	}
}

func TestARecordRoundTrips(t *testing.T) {
	for name, rec := range map[string]sessionRecord{
		"empty":      {},
		"all fields": exampleRecord(),
		"the longest": {node: strings.Repeat("n", 128), Session: message.Session{
			User: strings.Repeat("u", message.MaxUserLength), PreviousNode: strings.Repeat("f", 128), Generation: 1<<32 - 1, Revision: 1<<53 - 1,
			Rooms: []message.RoomPosition{{Room: message.Room(strings.Repeat("r", message.MaxRoomLength)), Epoch: "", Seq: maxSeq}},
		}},
	} {
		b, whole := rec.encode()
		if got, err := decodeRecord(b); err != nil || !whole || !reflect.DeepEqual(got, rec) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	// encode sorts the rooms, but not the slice of its caller.
	rec := exampleRecord()
	slices.Reverse(rec.Rooms)
	if b, _ := rec.encode(); rec.Rooms[0].Room != "a:2" {
		t.Error("encode changed its caller's rooms")
	} else if got, err := decodeRecord(b); err != nil || got.Rooms[0].Room != "a:1" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTheSizeOfARecord(t *testing.T) {
	for _, tt := range []struct {
		what  string
		rooms []message.RoomPosition
		most  int
	}{
		{"no room", nil, 100},
		{"20 rooms", manyRooms(20), 400},
		{"1,000 rooms", manyRooms(1000), 8_000},
		{"1,000 rooms of the longest names with nothing in common", longRooms(1000), 140_000},
	} {
		rec := sessionRecord{node: "web-7f9c-k3x1zq", Session: message.Session{
			User: "8a1f4c9e-0000-4000-8000-000000000000", PreviousNode: "web-7f9c-a81mdi", Rooms: tt.rooms,
		}}
		b, whole := rec.encode()
		t.Logf("%s: %d bytes", tt.what, len(b))
		if len(b) > tt.most || !whole {
			t.Errorf("%s: %d bytes, want %d at most", tt.what, len(b), tt.most)
		}
	}
}

// longRooms returns positions in n rooms with the longest names, which have no
// prefix in common.
func longRooms(n int) []message.RoomPosition {
	rooms := make([]message.RoomPosition, n)
	for i := range rooms {
		name := fmt.Sprintf("%04d", i)
		rooms[i] = message.RoomPosition{
			Room:  message.Room(fmt.Sprintf("%c%s", 'A'+i%26, strings.Repeat(name, message.MaxRoomLength)[:message.MaxRoomLength-1])),
			Epoch: "0190cafe-7000", Seq: maxSeq,
		}
	}
	return rooms
}

// A record with too many rooms says that they are missing, because a client may
// rely on the service for them.
func TestTooManyRoomsMakeARecordPartial(t *testing.T) {
	rec := sessionRecord{node: "n", Session: message.Session{User: "ada", Rooms: longRooms(2500)}}
	b, whole := rec.encode()
	got, err := decodeRecord(b)
	if err != nil || whole || !got.Partial || got.Rooms != nil || got.User != "ada" {
		t.Errorf("%d bytes, decoded as %+v, %v", len(b), got, err)
	}
}

// FuzzRecord decodes any bytes: they are refused or become a valid record, and
// allocate no more than their size warrants.
func FuzzRecord(f *testing.F) {
	rec := exampleRecord()
	b, _ := rec.encode()
	f.Add(b)
	f.Add(b[:headerSize])
	f.Add(append(slices.Clone(b[:headerSize+15]), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f))
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := decodeRecord(b)
		if err != nil {
			return
		}
		if !rec.Partial && len(rec.Rooms) > len(b)/4 {
			t.Errorf("%d bytes became %d rooms", len(b), len(rec.Rooms))
		}
		for _, p := range rec.Rooms {
			if _, err := message.ParseRoom(string(p.Room)); err != nil || p.Seq < 0 || p.Seq > maxSeq {
				t.Errorf("room %q at %d", p.Room, p.Seq)
			}
		}
		again, _ := rec.encode()
		back, err := decodeRecord(again)
		if err != nil {
			t.Fatalf("a decoded record cannot be encoded and decoded again: %v", err)
		}
		third, _ := back.encode()
		if !bytes.Equal(again, third) {
			t.Error("encoding the same record twice gives different bytes")
		}
	})
}

func FuzzSecret(f *testing.F) {
	secret, _ := newSecret()
	f.Add(secret)
	f.Add(".")
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, secret string) {
		if id, ok := readSecret(secret); ok && !strings.HasPrefix(secret, string(id)+".") {
			t.Errorf("%q is accepted as the secret of %q", secret, id)
		}
	})
}

func TestSecretsAreLongAndUnique(t *testing.T) {
	seen := map[message.SessionID]bool{}
	for range 1000 {
		secret, id := newSecret()
		got, ok := readSecret(secret)
		if !ok || got != id || seen[id] || len(id) != 32 {
			t.Fatalf("the secret %q belongs to %q, %v", secret, got, ok)
		}
		seen[id] = true
		_, rest, _ := strings.Cut(secret, ".")
		if len(rest)*5 < 128 { // letters of base32
			t.Fatalf("%d letters are under 128 bits", len(rest))
		}
		if strings.ContainsFunc(secret, func(r rune) bool { // a subprotocol allows no other letters
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.'
		}) {
			t.Fatalf("%q does not fit a header", secret)
		}
	}
}
