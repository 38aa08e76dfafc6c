package load

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"switchyard/internal/message"
)

// A serviceModel makes a random history of a service that keeps every promise.
type serviceModel struct {
	t      *rapid.T
	events []event
	log    map[message.Room][]*storedMessage
	epoch  map[message.Room]int
	first  map[message.Room]message.Seq // the oldest stored message
	late   []event                      // acks that are recorded later
	subs   []*modelSubscriber
	next   int // the number of the next message
}

// A storedMessage is a message in the log of the model.
type storedMessage struct {
	id   string
	hash hash
}

// A modelSubscriber is a subscriber with its position in a room.
type modelSubscriber struct {
	name  string
	room  message.Room
	epoch int
	at    message.Seq
	left  bool
}

var roomNames = []message.Room{"q", "r"}

func (m *serviceModel) record(e event) {
	e.At = time.Duration(len(m.events)) * time.Millisecond
	m.events = append(m.events, e)
}

func (m *serviceModel) epochOf(room message.Room) message.Epoch {
	return message.Epoch(fmt.Sprint("e", m.epoch[room]))
}

func (m *serviceModel) publish() {
	room := rapid.SampledFrom(roomNames).Draw(m.t, "room")
	id := fmt.Sprint("m", m.next)
	m.next++
	e := event{Kind: published, Room: room, Publisher: "p", ID: id, Hash: hashOf([]byte(id))}
	m.record(e)
	outcome := rapid.SampledFrom([]string{"ack", "ack", "ack", "late", "unknown", "unknown, stored", "refused"}).Draw(m.t, "outcome")
	e.Publisher = ""
	if outcome == "refused" || outcome == "unknown" {
		e.Kind, e.Reason = map[string]kind{"refused": refused, "unknown": unknown}[outcome], "why"
		m.record(e)
		return
	}
	m.log[room] = append(m.log[room], &storedMessage{id, e.Hash})
	if outcome == "unknown, stored" {
		e.Kind = unknown
		m.record(e)
		return
	}
	e.Kind, e.Epoch, e.Seq = acked, m.epochOf(room), message.Seq(len(m.log[room]))
	if outcome == "late" {
		m.late = append(m.late, e)
		return
	}
	m.record(e)
}

func (m *serviceModel) ackLate() {
	if len(m.late) > 0 {
		m.record(m.late[0])
		m.late = m.late[1:]
	}
}

func (m *serviceModel) join() {
	room := rapid.SampledFrom(roomNames).Draw(m.t, "room")
	s := &modelSubscriber{name: fmt.Sprint("s", len(m.subs)), room: room, epoch: m.epoch[room]}
	if rapid.Bool().Draw(m.t, "from now") {
		s.at = message.Seq(len(m.log[room]))
	}
	m.subs = append(m.subs, s)
	m.record(event{Kind: joined, Room: room, Sub: s.name, Epoch: m.epochOf(room), Seq: s.at})
}

// step delivers the next message or gap to a subscriber. It returns false if there
// is none.
func (m *serviceModel) step(s *modelSubscriber) bool {
	log, epoch := m.log[s.room], m.epochOf(s.room)
	head := message.Seq(len(log))
	switch {
	case s.left:
		return false
	case s.epoch != m.epoch[s.room]:
		m.record(event{Kind: gapDeclared, Room: s.room, Sub: s.name, Epoch: epoch, Seq: 1, To: head, Reason: "epoch"})
		s.epoch, s.at = m.epoch[s.room], head
	case s.at == head:
		return false
	case s.at+1 < m.first[s.room]:
		to := m.first[s.room] - 1
		m.record(event{Kind: gapDeclared, Room: s.room, Sub: s.name, Epoch: epoch, Seq: s.at + 1, To: to, Reason: "trimmed"})
		s.at = to
	default:
		stored := log[s.at]
		s.at++
		m.record(event{Kind: delivered, Room: s.room, Sub: s.name, Epoch: epoch, Seq: s.at, ID: stored.id, Hash: stored.hash})
	}
	return true
}

func (m *serviceModel) leave(s *modelSubscriber) {
	if !s.left {
		s.left = true
		m.record(event{Kind: left, Room: s.room, Sub: s.name})
	}
}

// restore takes messages off a room's log and begins a new epoch.
func (m *serviceModel) restore() {
	room := rapid.SampledFrom(roomNames).Draw(m.t, "room")
	keep := rapid.IntRange(0, len(m.log[room])).Draw(m.t, "keep")
	m.log[room] = m.log[room][:keep:keep]
	m.first[room] = min(m.first[room], message.Seq(keep)+1)
	m.epoch[room]++
}

func (m *serviceModel) trim() {
	room := rapid.SampledFrom(roomNames).Draw(m.t, "room")
	m.first[room] = max(m.first[room], message.Seq(rapid.IntRange(1, len(m.log[room])+1).Draw(m.t, "first")))
}

// runServiceModel takes random steps, and then delivers everything to all
// subscribers.
func runServiceModel(t *rapid.T) *serviceModel {
	m := &serviceModel{
		t: t, log: map[message.Room][]*storedMessage{}, epoch: map[message.Room]int{}, first: map[message.Room]message.Seq{"q": 1, "r": 1},
	}
	m.join()
	for range rapid.IntRange(10, 120).Draw(t, "steps") {
		switch do := rapid.IntRange(0, 99).Draw(t, "do"); {
		case do < 40:
			m.publish()
		case do < 80:
			m.step(rapid.SampledFrom(m.subs).Draw(t, "who"))
		case do < 88:
			m.ackLate()
		case do < 94:
			m.join()
		case do < 96:
			m.leave(rapid.SampledFrom(m.subs).Draw(t, "who"))
		case do < 98:
			m.trim()
		default:
			m.restore()
		}
	}
	for len(m.late) > 0 {
		m.ackLate()
	}
	for _, s := range m.subs {
		for m.step(s) {
			continue
		}
	}
	return m
}

func historyOf(events []event) *History {
	h := NewHistory()
	for _, e := range events {
		h.add(e)
	}
	return h
}

func TestAValidRunIsClean(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		if report := Check(historyOf(runServiceModel(t).events)); report.FaultCount() > 0 {
			t.Fatal(report)
		}
	})
}

// An injectedFault changes a history at a delivery, so that Check must find one of
// the faults. inject returns false if the change would not be a fault there.
type injectedFault struct {
	name   string
	faults []Fault
	inject func(events []event, at int) ([]event, bool)
}

var injectedFaults = []injectedFault{
	{"drop a delivery", []Fault{Lost, SilentGap}, func(events []event, at int) ([]event, bool) {
		unknown := !anyOther(events, at, func(e event) bool { // no other event shows that the message exists
			return e.ID == events[at].ID && e.Epoch == events[at].Epoch && (e.Kind == acked || e.Kind == delivered)
		})
		isFault := mustReceive(events, at) && !unknown
		return slices.Delete(events, at, at+1), isFault
	}},
	{"double a delivery", []Fault{Doubled}, func(events []event, at int) ([]event, bool) {
		return slices.Insert(events, at+1, events[at]), true
	}},
	{"swap two deliveries", []Fault{Reordered}, func(events []event, at int) ([]event, bool) {
		next := slices.IndexFunc(events[at+1:], func(e event) bool { return e.Sub == events[at].Sub })
		if next < 0 || events[at+1+next].Kind != delivered {
			return events, false
		}
		events[at], events[at+1+next] = events[at+1+next], events[at]
		return events, true
	}},
	{"deliver other data", []Fault{NotPublished}, func(events []event, at int) ([]event, bool) {
		events[at].Hash++
		return events, true
	}},
	{"deliver another id", []Fault{NotPublished}, func(events []event, at int) ([]event, bool) {
		events[at].ID = "never published"
		return events, true
	}},
	{"deliver a far later seq", []Fault{Lost, SilentGap}, func(events []event, at int) ([]event, bool) {
		events[at].Seq += 1000
		return events, true
	}},
	{"store twice", []Fault{StoredTwice}, func(events []event, at int) ([]event, bool) {
		again := events[at]
		again.Seq += 1000
		return slices.Insert(events, at+1, again), true
	}},
	{"deliver without a join", []Fault{WrongRoom}, func(events []event, at int) ([]event, bool) {
		other := events[at]
		other.Sub = "never joined"
		return slices.Insert(events, at, other), true
	}},
	{"refuse a delivered message", []Fault{RefusedStored}, func(events []event, at int) ([]event, bool) {
		for i, e := range events {
			if e.ID == events[at].ID && (e.Kind == acked || e.Kind == unknown) {
				events[i].Kind, events[i].Epoch, events[i].Seq = refused, "", 0
			}
		}
		return events, true
	}},
	{"ack another seq", []Fault{WrongAck}, func(events []event, at int) ([]event, bool) {
		i := slices.IndexFunc(events, func(e event) bool {
			return e.Kind == acked && e.ID == events[at].ID && e.Epoch == events[at].Epoch
		})
		if i >= 0 {
			events[i].Seq++
		}
		return events, i >= 0
	}},
	{"a new epoch without a gap", []Fault{SilentEpoch}, func(events []event, at int) ([]event, bool) {
		events[at].Epoch = "new"
		return events, events[at].Seq > 1
	}},
	{"keep a gap from a subscriber", []Fault{Lost, SilentGap, SilentEpoch, Reordered}, func(events []event, at int) ([]event, bool) {
		i := slices.IndexFunc(events[:at], func(e event) bool {
			return e.Kind == gapDeclared && e.Sub == events[at].Sub && e.Epoch == events[at].Epoch && e.To >= e.Seq
		})
		if i < 0 || events[i].Reason == "epoch" && startsFresh(events, i) {
			return events, false
		}
		return slices.Delete(events, i, i+1), true
	}},
}

// anyOther reports whether another event fits.
func anyOther(events []event, at int, fits func(event) bool) bool {
	for i, e := range events {
		if i != at && fits(e) {
			return true
		}
	}
	return false
}

// mustReceive reports whether the subscriber of a delivery would lose the message
// without it: no later gap, epoch or leave excuses that.
func mustReceive(events []event, at int) bool {
	for _, e := range events[at+1:] {
		if e.Sub != events[at].Sub {
			continue
		}
		if e.Kind == delivered && e.Epoch == events[at].Epoch {
			return true // which would skip the message
		}
		if e.Kind == left || e.Kind == gapDeclared {
			return false
		}
	}
	return true
}

// startsFresh reports whether a subscriber had got no message before a gap: then
// it may be in any epoch.
func startsFresh(events []event, gap int) bool {
	for _, e := range slices.Backward(events[:gap]) {
		if e.Sub != events[gap].Sub {
			continue
		}
		if e.Kind == gapDeclared {
			return e.To == 0 // the room was empty
		}
		return e.Seq == 0
	}
	return true
}

func TestAnInjectedFaultIsFound(t *testing.T) {
	for _, p := range injectedFaults {
		t.Run(p.name, func(t *testing.T) {
			injected := 0
			rapid.Check(t, func(t *rapid.T) {
				if p.check(t) {
					injected++
				}
			})
			if injected == 0 {
				t.Error("no fault was injected")
			}
		})
	}
}

// check injects the fault at a random delivery of a valid history, and reports
// whether that was possible.
func (p injectedFault) check(t *rapid.T) bool {
	var deliveries []int
	events := runServiceModel(t).events
	for i, e := range events {
		if e.Kind == delivered {
			deliveries = append(deliveries, i)
		}
	}
	for len(deliveries) > 0 {
		i := rapid.IntRange(0, len(deliveries)-1).Draw(t, "at")
		victim := events[deliveries[i]]
		faulty, isFault := p.inject(slices.Clone(events), deliveries[i])
		if !isFault {
			deliveries = slices.Delete(deliveries, i, i+1)
			continue
		}
		report := Check(historyOf(faulty))
		if !slices.ContainsFunc(p.faults, func(f Fault) bool { return report.Faults[f] > 0 }) {
			t.Fatalf("at %+v it was not found as %v:\n%v", victim, p.faults, report)
		}
		return true
	}
	return false
}
