package hub

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"switchyard/internal/message"
)

// AppendBatch implements BatchAppender. A message whose data is "invalid" makes
// the batch fail.
func (l *memLog) AppendBatch(_ context.Context, batch []*message.Publication) error {
	for i, p := range batch {
		if string(p.Data) == `"invalid"` {
			return &message.BatchError{Index: i, Err: message.ErrRejected}
		}
	}
	if l.down {
		return message.ErrUnavailable
	}
	onComplete := l.onComplete
	var rooms []message.Room
	byRoom := map[message.Room][]*message.Publication{}
	l.onComplete = func(p *message.Publication) {
		rooms = append(rooms, p.Room)
		byRoom[p.Room] = append(byRoom[p.Room], p)
	}
	for _, p := range batch {
		l.Append(p)
	}
	l.onComplete = onComplete
	for _, room := range slices.Compact(rooms) {
		l.onBatchComplete(byRoom[room])
	}
	return nil
}

// ListRooms implements RoomLister.
func (l *memLog) ListRooms(_ context.Context, prefix string, after message.Room, limit int) ([]message.RoomInfo, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reads++; l.down {
		return nil, false, errors.New("injected: the log is down")
	}
	var found []message.RoomInfo
	for room, all := range l.rooms {
		own := room.Reserved() && !strings.HasPrefix(prefix, "_")
		if strings.HasPrefix(string(room), prefix) && room > after && !own {
			found = append(found, message.RoomInfo{Room: room, Head: message.Seq(len(all)), First: 1})
		}
	}
	slices.SortFunc(found, func(a, b message.RoomInfo) int { return strings.Compare(string(a.Room), string(b.Room)) })
	return found[:min(limit, len(found))], len(found) > limit, nil
}

func TestABatchReachesItsRoomsOnEveryNode(t *testing.T) {
	f := newFixture(t, 2)
	a, b := f.client(0), f.client(1)
	a.must(`{"type":"join","room":"r"}`)
	b.must(`{"type":"join","room":"s"}`)
	a.expectFrames("joined 0")
	b.expectFrames("joined 0")
	pubs, err := f.nodes[0].PublishBatch(t.Context(), []message.Draft{
		{Room: "r", Data: []byte(`1`)}, {Room: "r", ID: "mine", Data: []byte(`2`)}, {Room: "s", Data: []byte(`3`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	a.expectFrames("joined 0", "message 1", "message 2")
	b.expectFrames("joined 0", "message 1")
	if len(pubs) != 3 || pubs[1].Seq != 2 || pubs[1].ID != "mine" || pubs[0].ID == "" || pubs[0].ID == pubs[2].ID {
		t.Errorf("got publications %+v", pubs)
	}
	if n := f.broker.published; n != 2 {
		t.Errorf("%d broadcasts, want one for each room", n)
	}
}

func TestAFailedBatchDeliversNothing(t *testing.T) {
	f := newFixture(t, 1)
	a := f.client(0)
	a.must(`{"type":"join","room":"r"}`)
	a.expectFrames("joined 0")
	_, err := f.nodes[0].PublishBatch(t.Context(), []message.Draft{
		{Room: "r", Data: []byte(`1`)}, {Room: "r", Data: []byte(`"invalid"`)},
	})
	var batchErr *message.BatchError
	if !errors.As(err, &batchErr) || batchErr.Index != 1 || !errors.Is(err, message.ErrRejected) {
		t.Errorf("got %v, want an error that names message 1", err)
	}
	f.log.down = true
	if _, err := f.nodes[0].PublishBatch(t.Context(), []message.Draft{{Room: "r", Data: []byte(`1`)}}); !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("with the log down: got %v, want ErrUnavailable", err)
	}
	f.log.down = false
	a.must(`{"type":"publish","room":"r","data":1}`)
	a.expectFrames("joined 0", "message 1")
}

// A batch that timed out may have been stored.
func TestABatchThatTimesOutHasAnUnknownOutcome(t *testing.T) {
	f := newFixture(t, 1)
	f.nodes[0].cfg.Batches = blockedAppender{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.nodes[0].PublishBatch(ctx, []message.Draft{{Room: "r", Data: []byte(`1`)}}); !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}

// A blockedAppender never answers.
type blockedAppender struct{}

func (blockedAppender) AppendBatch(ctx context.Context, _ []*message.Publication) error {
	<-ctx.Done()
	return fmt.Errorf("waiting: %w", ctx.Err())
}

func TestASignalFromABackendReachesEveryNode(t *testing.T) {
	f := newFixture(t, 2)
	a, b := f.client(0), f.client(1)
	for _, p := range []*testClient{a, b} {
		p.must(`{"type":"join","room":"r"}`)
		p.expectFrames("joined 0")
	}
	f.nodes[0].Signal("r", "api:x", []byte(`"hi"`))
	a.expectFrames("joined 0", "signal hi")
	b.expectFrames("joined 0", "signal hi")
}

func TestRoomsAreListedInBoundedPages(t *testing.T) {
	f := newFixture(t, 1)
	for i := range 1001 {
		f.store(message.Room(fmt.Sprintf("r%04d", i)), 1)
	}
	f.store("_canary.1", 1)
	for _, tt := range []struct {
		prefix string
		after  message.Room
		limit  int
		want   string
	}{
		{"", "", 1, "1 from r0000, more true"},
		{"", "", 0, "1000 from r0000, more true"},
		{"", "", math.MaxInt32, "1000 from r0000, more true"},
		{"", "r0998", 9, "2 from r0999, more false"},
		{"r100", "", 9, "1 from r1000, more false"},
		{"_", "", 9, "1 from _canary.1, more false"},
	} {
		rooms, more, err := f.nodes[0].ListRooms(t.Context(), tt.prefix, tt.after, tt.limit)
		if err != nil || len(rooms) == 0 {
			t.Fatalf("%+v: got %d rooms, %v", tt, len(rooms), err)
		}
		if got := fmt.Sprintf("%d from %s, more %v", len(rooms), rooms[0].Room, more); got != tt.want {
			t.Errorf("%+v: got %s", tt, got)
		}
	}
	f.log.down = true
	if _, _, err := f.nodes[0].ListRooms(t.Context(), "", "", 1); !errors.Is(err, message.ErrUnavailable) {
		t.Errorf("with the log down: got %v, want ErrUnavailable", err)
	}
}
