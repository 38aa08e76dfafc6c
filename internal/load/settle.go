package load

import (
	"context"
	"fmt"
	"slices"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// maxRoomsPerReader bounds the rooms that one late reader joins.
const maxRoomsPerReader = 50

// settle waits until every publish is answered and everybody has everything,
// but no longer than the plan allows. In a run that is judged, a last message in
// each room marks its head, and readers that were not there before read all
// rooms from the start: what was acked must be stored.
func (r *Run) settle() {
	ctx, cancel := context.WithTimeout(context.Background(), r.plan.Settle)
	defer cancel()
	// A publish that is answered later could be stored behind the mark.
	poll(ctx, func() bool { return r.inFlight.Load() == 0 })
	if r.history == nil {
		return
	}
	heads := r.publishLast(ctx)
	subs := make([]*Subscription, 0, len(r.members)+r.plan.Rooms)
	for _, m := range r.members {
		subs = append(subs, m.sub)
	}
	readers, read := r.readBack(ctx)
	subs = append(subs, read...)
	poll(ctx, func() bool {
		return !slices.ContainsFunc(subs, func(s *Subscription) bool { return !s.hasReached(heads[s.room]) })
	})
	for _, s := range subs {
		if !s.hasReached(heads[s.room]) {
			r.behind.Add(1)
		}
	}
	// Where the mark was not acked nobody knows the head: such a subscriber is held
	// to all that is known.
	for _, s := range subs {
		if head := heads[s.room]; head.seq > 0 {
			s.recordEnd(head)
		}
	}
	for _, reader := range readers {
		reader.Close()
	}
}

// poll looks every tick whether something holds, until it does or ctx ends.
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

// publishLast publishes a last message in each room and returns where it was stored. When
// a member's life is over, the room's next one does it.
func (r *Run) publishLast(ctx context.Context) map[message.Room]position {
	marks := make([]position, r.plan.Rooms)
	forEach(r.plan.Rooms, func(n int) {
		for k := n; k < len(r.members) && marks[n].seq == 0 && ctx.Err() == nil; k += r.plan.Rooms {
			marks[n] = r.members[k].publishLast(ctx)
		}
	})
	heads := make(map[message.Room]position, len(marks))
	for n, at := range marks {
		heads[r.plan.room(n)] = at
	}
	return heads
}

// publishLast publishes a member's last message; without an ack the seq is 0.
func (m *member) publishLast(ctx context.Context) position {
	id := m.name + "-last"
	data := m.data(time.Since(m.run.began))
	attempt := m.recordPublish(id, data)
	ack, err := m.client.Publish(ctx, m.room, data, id)
	m.recordOutcome(attempt, id, ack, err)
	return position{ack.Epoch, ack.Seq}
}

// readBack joins all rooms with new clients, from the start. What it can't join
// in time is counted.
func (r *Run) readBack(ctx context.Context) (readers []*client.Client, subs []*Subscription) {
	readers = make([]*client.Client, (r.plan.Rooms+maxRoomsPerReader-1)/maxRoomsPerReader)
	subs = make([]*Subscription, r.plan.Rooms)
	forEach(len(readers), func(n int) {
		opts := r.options(n, new(cuttableConn))
		opts.OnState, opts.OnMoved = nil, nil // it is none of the plan's clients
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
				r.unread.Add(1)
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

// hasReached says whether the subscriber is at a position or beyond it, or that is
// not known.
func (s *Subscription) hasReached(head position) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return head.seq == 0 || s.at.epoch == head.epoch && s.at.seq >= head.seq
}

// recordEnd tells how far the subscriber had to come.
func (s *Subscription) recordEnd(head position) {
	s.record(ended, head, event{})
	s.close()
}
