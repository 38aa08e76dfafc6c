package load

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"switchyard/internal/message"
)

// A serviceModel keeps every promise; what it does at random is a valid history.
type serviceModel struct {
	t      *rapid.T
	events []event
	log    map[message.Room][]*storedMessage
	epoch  map[message.Room]int
	first  map[message.Room]message.Seq // the oldest that is stored
	late   []event                      // acks under way
	subs   []*modelSubscriber
	next   int
}

type storedMessage struct {
	id   string
	hash hash
}

// A modelSubscriber is a subscriber that is somewhere on its way through a room.
type modelSubscriber struct {
	name  string
	room  message.Room
	epoch int
	at    message.Seq
	left  bool
}

var roomNames = []message.Room{"q", "r"}

func (w *serviceModel) record(e event) {
	e.At = time.Duration(len(w.events)) * time.Millisecond
	w.events = append(w.events, e)
}

func (w *serviceModel) epochOf(room message.Room) message.Epoch {
	return message.Epoch(fmt.Sprint("e", w.epoch[room]))
}

func (w *serviceModel) publish() {
	room := rapid.SampledFrom(roomNames).Draw(w.t, "room")
	id := fmt.Sprint("m", w.next)
	w.next++
	e := event{Kind: published, Room: room, Publisher: "p", ID: id, Hash: hashOf([]byte(id))}
	w.record(e)
	outcome := rapid.SampledFrom([]string{"ack", "ack", "ack", "late", "unknown", "unknown, stored", "refused"}).Draw(w.t, "outcome")
	e.Publisher = ""
	if outcome == "refused" || outcome == "unknown" {
		e.Kind, e.Reason = map[string]kind{"refused": refused, "unknown": unknown}[outcome], "why"
		w.record(e)
		return
	}
	w.log[room] = append(w.log[room], &storedMessage{id, e.Hash})
	if outcome == "unknown, stored" {
		e.Kind = unknown
		w.record(e)
		return
	}
	e.Kind, e.Epoch, e.Seq = acked, w.epochOf(room), message.Seq(len(w.log[room]))
	if outcome == "late" {
		w.late = append(w.late, e)
		return
	}
	w.record(e)
}

func (w *serviceModel) ackLate() {
	if len(w.late) > 0 {
		w.record(w.late[0])
		w.late = w.late[1:]
	}
}

func (w *serviceModel) join() {
	room := rapid.SampledFrom(roomNames).Draw(w.t, "room")
	s := &modelSubscriber{name: fmt.Sprint("s", len(w.subs)), room: room, epoch: w.epoch[room]}
	if rapid.Bool().Draw(w.t, "from now") {
		s.at = message.Seq(len(w.log[room]))
	}
	w.subs = append(w.subs, s)
	w.record(event{Kind: joined, Room: room, Sub: s.name, Epoch: w.epochOf(room), Seq: s.at})
}

// step brings a watcher on by a message or a gap; false when there is nothing.
func (w *serviceModel) step(s *modelSubscriber) bool {
	log, epoch := w.log[s.room], w.epochOf(s.room)
	head := message.Seq(len(log))
	switch {
	case s.left:
		return false
	case s.epoch != w.epoch[s.room]:
		w.record(event{Kind: gapDeclared, Room: s.room, Sub: s.name, Epoch: epoch, Seq: 1, To: head, Reason: "epoch"})
		s.epoch, s.at = w.epoch[s.room], head
	case s.at == head:
		return false
	case s.at+1 < w.first[s.room]:
		to := w.first[s.room] - 1
		w.record(event{Kind: gapDeclared, Room: s.room, Sub: s.name, Epoch: epoch, Seq: s.at + 1, To: to, Reason: "trimmed"})
		s.at = to
	default:
		m := log[s.at]
		s.at++
		w.record(event{Kind: delivered, Room: s.room, Sub: s.name, Epoch: epoch, Seq: s.at, ID: m.id, Hash: m.hash})
	}
	return true
}

func (w *serviceModel) leave(s *modelSubscriber) {
	if !s.left {
		s.left = true
		w.record(event{Kind: left, Room: s.room, Sub: s.name})
	}
}

// restore brings a room back to an older state, in a new epoch.
func (w *serviceModel) restore() {
	room := rapid.SampledFrom(roomNames).Draw(w.t, "room")
	keep := rapid.IntRange(0, len(w.log[room])).Draw(w.t, "keep")
	w.log[room] = w.log[room][:keep:keep]
	w.first[room] = min(w.first[room], message.Seq(keep)+1)
	w.epoch[room]++
}

func (w *serviceModel) trim() {
	room := rapid.SampledFrom(roomNames).Draw(w.t, "room")
	w.first[room] = max(w.first[room], message.Seq(rapid.IntRange(1, len(w.log[room])+1).Draw(w.t, "first")))
}

// runServiceModel lives for a while, and then brings everybody to the end.
func runServiceModel(t *rapid.T) *serviceModel {
	w := &serviceModel{
		t: t, log: map[message.Room][]*storedMessage{}, epoch: map[message.Room]int{}, first: map[message.Room]message.Seq{"q": 1, "r": 1},
	}
	w.join()
	for range rapid.IntRange(10, 120).Draw(t, "steps") {
		switch do := rapid.IntRange(0, 99).Draw(t, "do"); {
		case do < 40:
			w.publish()
		case do < 80:
			w.step(rapid.SampledFrom(w.subs).Draw(t, "who"))
		case do < 88:
			w.ackLate()
		case do < 94:
			w.join()
		case do < 96:
			w.leave(rapid.SampledFrom(w.subs).Draw(t, "who"))
		case do < 98:
			w.trim()
		default:
			w.restore()
		}
	}
	for len(w.late) > 0 {
		w.ackLate()
	}
	for _, s := range w.subs {
		for w.step(s) {
			continue
		}
	}
	return w
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

// A injectedFault spoils a history at a delivery and says what must be found; false
// when it would not be a fault there.
type injectedFault struct {
	name   string
	faults []Fault
	inject func(events []event, at int) ([]event, bool)
}

var injectedFaults = []injectedFault{
	{"drop a delivery", []Fault{Lost, SilentGap}, func(events []event, at int) ([]event, bool) {
		lastOfAll := !anyOther(events, at, func(e event) bool { // nobody else can know of it
			return e.ID == events[at].ID && e.Epoch == events[at].Epoch && (e.Kind == acked || e.Kind == delivered)
		})
		isFault := mustReceive(events, at) && !lastOfAll
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
	{"deliver other data", []Fault{Undeclared}, func(events []event, at int) ([]event, bool) {
		events[at].Hash++
		return events, true
	}},
	{"deliver another id", []Fault{Undeclared}, func(events []event, at int) ([]event, bool) {
		events[at].ID = "nobody's"
		return events, true
	}},
	{"deliver what comes later", []Fault{Lost, SilentGap}, func(events []event, at int) ([]event, bool) {
		events[at].Seq += 1000
		return events, true
	}},
	{"store twice", []Fault{StoredTwice}, func(events []event, at int) ([]event, bool) {
		again := events[at]
		again.Seq += 1000
		return slices.Insert(events, at+1, again), true
	}},
	{"deliver to a stranger", []Fault{WrongRoom}, func(events []event, at int) ([]event, bool) {
		other := events[at]
		other.Sub = "a stranger"
		return slices.Insert(events, at, other), true
	}},
	{"refuse what is delivered", []Fault{RefusedStored}, func(events []event, at int) ([]event, bool) {
		for i, e := range events {
			if e.ID == events[at].ID && (e.Kind == acked || e.Kind == unknown) {
				events[i].Kind, events[i].Epoch, events[i].Seq = refused, "", 0
			}
		}
		return events, true
	}},
	{"ack another place", []Fault{WrongAck}, func(events []event, at int) ([]event, bool) {
		i := slices.IndexFunc(events, func(e event) bool {
			return e.Kind == acked && e.ID == events[at].ID && e.Epoch == events[at].Epoch
		})
		if i >= 0 {
			events[i].Seq++
		}
		return events, i >= 0
	}},
	{"an epoch without a word", []Fault{SilentEpoch}, func(events []event, at int) ([]event, bool) {
		events[at].Epoch = "unheard of"
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

// anyOther says whether another event fits.
func anyOther(events []event, at int, fits func(event) bool) bool {
	for i, e := range events {
		if i != at && fits(e) {
			return true
		}
	}
	return false
}

// mustReceive says that no later gap, epoch or leaving excuses a delivery's
// subscriber from having it.
func mustReceive(events []event, at int) bool {
	for _, e := range events[at+1:] {
		if e.Sub != events[at].Sub {
			continue
		}
		if e.Kind == delivered && e.Epoch == events[at].Epoch {
			return true // it would be skipped
		}
		if e.Kind == left || e.Kind == gapDeclared {
			return false
		}
	}
	return true
}

// startsFresh says that a subscriber had nothing yet when the gap came: it begins
// anew in whatever epoch it meets.
func startsFresh(events []event, gap int) bool {
	for _, e := range slices.Backward(events[:gap]) {
		if e.Sub == events[gap].Sub {
			return e.Seq == 0
		}
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
				t.Error("was never planted")
			}
		})
	}
}

// check plants the fault somewhere in a valid run, and says whether it could.
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
