package load

import (
	"context"
	"fmt"
	"slices"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// maxRoomsPerReader bounds the rooms that one reader joins at the end.
const maxRoomsPerReader = 50

// settle waits until every publish has its outcome and every subscriber has every
// message, but no longer than the plan allows. In a checked run a last message in
// each room marks its head, and new readers read all rooms from the start, which
// proves that acked messages are stored.
func (r *Run) settle() {
	ctx, cancel := context.WithTimeout(context.Background(), r.plan.Settle)
	defer cancel()
	// A publish that is still under way could be stored after the last message.
	poll(ctx, func() bool { return r.inFlight.Load() == 0 })
	if r.history == nil {
		return
	}
	heads := r.publishLast(ctx)
	subs := make([]*Subscription, 0, len(r.members)+r.plan.Rooms)
	for _, m := range r.members {
		subs = append(subs, m.sub)
	}
	readers, readerSubs := r.readBack(ctx)
	subs = append(subs, readerSubs...)
	poll(ctx, func() bool {
		return !slices.ContainsFunc(subs, func(s *Subscription) bool { return !s.hasReached(heads[s.room]) })
	})
	for _, s := range subs {
		if !s.hasReached(heads[s.room]) {
			r.behind.Add(1)
		}
	}
	// Without an ack of the last message the head is unknown. Then the subscriber
	// must get all that the history knows.
	for _, s := range subs {
		if head := heads[s.room]; head.seq > 0 {
			s.recordEnd(head)
		}
	}
	for _, reader := range readers {
		reader.Close()
	}
}

// poll waits until a condition holds or ctx ends.
func poll(ctx context.Context, holds func() bool) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// publishLast publishes a last message in each room and returns the positions. If
// a participant gets no ack, the room's next participant publishes one; if none
// gets an ack, the seq is 0.
func (r *Run) publishLast(ctx context.Context) map[message.Room]position {
	byRoom := make([]position, r.plan.Rooms)
	forEach(r.plan.Rooms, func(n int) {
		for k := n; k < len(r.members) && byRoom[n].seq == 0 && ctx.Err() == nil; k += r.plan.Rooms {
			byRoom[n] = r.members[k].publishLast(ctx)
		}
	})
	heads := make(map[message.Room]position, len(byRoom))
	for n, at := range byRoom {
		heads[r.plan.room(n)] = at
	}
	return heads
}

// publishLast publishes a member's last message and returns its position. Without
// an ack the seq is 0.
func (m *member) publishLast(ctx context.Context) position {
	id := m.name + "-last"
	data := m.data(time.Since(m.run.began))
	attempt := m.recordPublish(id, data)
	ack, err := m.client.Publish(ctx, m.room, data, id)
	m.recordOutcome(attempt, id, ack, err)
	return position{ack.Epoch, ack.Seq}
}

// readBack joins all rooms with new clients, from the start. It counts the rooms
// that it can't join in time.
func (r *Run) readBack(ctx context.Context) (readers []*client.Client, subs []*Subscription) {
	readers = make([]*client.Client, (r.plan.Rooms+maxRoomsPerReader-1)/maxRoomsPerReader)
	subs = make([]*Subscription, r.plan.Rooms)
	forEach(len(readers), func(n int) {
		opts := r.options(n, new(cuttableConn))
		opts.OnState, opts.OnMoved = nil, nil // because it is not one of the plan's clients
		tap := newFrameTap(r.history, func() string { return "" })
		opts.OnFrame = tap.onFrame
		reader, err := client.New(opts)
		for k := n * maxRoomsPerReader; k < min((n+1)*maxRoomsPerReader, r.plan.Rooms); k++ {
			s := r.history.Subscribe(fmt.Sprintf("%s-reader-%d", r.plan.Prefix, n), r.plan.room(k), client.Start())
			tap.watch(s)
			if err == nil {
				_, err = reader.Join(ctx, s.room, client.Start(), s.Handler())
			}
			if err != nil {
				r.roomsNotRead.Add(1)
				s.close()
				continue
			}
			subs[k] = s
		}
		readers[n] = reader
	})
	isNil := func(s *Subscription) bool { return s == nil }
	return slices.DeleteFunc(readers, func(c *client.Client) bool { return c == nil }), slices.DeleteFunc(subs, isNil)
}

// hasReached reports whether the subscriber has reached a room's head. It is true
// for an unknown head.
func (s *Subscription) hasReached(head position) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return head.seq == 0 || s.at.epoch == head.epoch && s.at.seq >= head.seq
}

// recordEnd records the position that the subscriber must have reached.
func (s *Subscription) recordEnd(head position) {
	s.record(ended, head, event{})
	s.close()
}
