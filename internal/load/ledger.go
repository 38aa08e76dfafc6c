package load

import (
	"fmt"
	"slices"
	"time"

	"switchyard/internal/message"
)

// A ledger is all that anybody was told of what a room's log holds.
type ledger struct {
	room     message.Room
	messages map[messageKey]*entry
	order    []*entry // as first heard of
	// known is what holds a position: what was delivered there, else what was
	// acked.
	known map[position]*entry
	// heard is when anybody first heard of an epoch.
	heard map[message.Epoch]time.Duration

	// Made by close.
	seqs  map[message.Epoch][]message.Seq // of known, ascending
	began map[message.Epoch]time.Duration // the latest publish that an epoch holds
}

// A messageKey is what the service tells messages of a room apart by.
type messageKey struct{ user, id string }

// An entry is a message, published or only delivered. One copy and one ack are
// the rule; more of either are evidence.
type entry struct {
	messageKey
	attempts []attempt  // publishes with this id, by anybody
	acks     []ack      // one for each position and data
	copies   []delivery // one for each position and data it was delivered with
	began    time.Duration
	ackedAt  time.Duration // of the first ack
	missed   int           // subscribers that should have got it
	by       string        // who published it first
}

type attempt struct {
	hash    hash
	outcome kind // published while nothing is known
}

type ack struct {
	position
	hash hash
}

type delivery struct {
	position
	hash hash
	sub  string // the first who got it
}

func newLedger(room message.Room) *ledger {
	return &ledger{
		room: room, messages: map[messageKey]*entry{},
		known: map[position]*entry{}, heard: map[message.Epoch]time.Duration{},
		seqs: map[message.Epoch][]message.Seq{}, began: map[message.Epoch]time.Duration{},
	}
}

// entry returns the message an event is about.
func (l *ledger) entry(e event) *entry {
	key := messageKey{e.User, e.ID}
	m := l.messages[key]
	if m == nil {
		m = &entry{messageKey: key, began: e.At}
		l.messages[key] = m
		l.order = append(l.order, m)
	}
	return m
}

// hear takes in an event, whichever it is.
func (l *ledger) hear(e event, found func(Finding)) {
	if _, known := l.heard[e.Epoch]; e.Epoch != "" && !known {
		l.heard[e.Epoch] = e.At
	}
	switch e.Kind {
	case published:
		m := l.entry(e)
		if len(m.attempts) == 0 {
			m.by = e.By
		}
		m.attempts = append(m.attempts, attempt{e.Hash, published})
	case acked:
		m := l.entry(e)
		m.settle(e)
		if len(m.acks) == 0 {
			m.ackedAt = e.At
		}
		if a := (ack{position{e.Epoch, e.Seq}, e.Hash}); !slices.Contains(m.acks, a) {
			m.acks = append(m.acks, a)
		}
	case confirmed:
		l.confirmed(e)
	case refused, unknown:
		l.entry(e).settle(e)
	case delivered:
		l.delivered(e, found)
	}
}

// confirmed takes an ack that came on the wire for another one of the first
// attempt, unless it says the same as one that is known.
func (l *ledger) confirmed(e event) {
	m, at := l.entry(e), position{e.Epoch, e.Seq}
	if len(m.attempts) == 0 || slices.ContainsFunc(m.acks, func(a ack) bool { return a.position == at }) {
		return
	}
	m.acks = append(m.acks, ack{at, m.attempts[0].hash})
}

// settle gives an outcome to the first attempt with that data that has none. An
// outcome without an attempt, in a history by hand, is taken for one.
func (m *entry) settle(e event) {
	for i, a := range m.attempts {
		if a.hash == e.Hash && a.outcome == published {
			m.attempts[i].outcome = e.Kind
			return
		}
	}
	m.attempts = append(m.attempts, attempt{e.Hash, e.Kind})
}

// delivered notes where a message was delivered. That it was so to one subscriber
// after the other is the rule, so most of the time there is nothing to note.
func (l *ledger) delivered(e event, found func(Finding)) {
	m, at := l.entry(e), position{e.Epoch, e.Seq}
	if slices.ContainsFunc(m.copies, func(d delivery) bool { return d.position == at && d.hash == e.Hash }) {
		return
	}
	m.copies = append(m.copies, delivery{at, e.Hash, e.Sub})
	if other := l.known[at]; other != nil && other != m {
		found(l.finding(SeqShared, at, m, e.Sub, fmt.Sprintf("%s was delivered as %d to %s, and so was %s", m, e.Seq, e.Sub, other)))
		return
	}
	l.known[at] = m
}

// close judges each message by itself, once everything was heard.
func (l *ledger) close(found func(Finding)) {
	for _, m := range l.order {
		l.judgeCopies(m, found)
		l.judgePlaces(m, found)
		for _, a := range m.acks {
			l.judgeAck(m, a, found)
		}
		l.date(m)
	}
	for at := range l.known {
		l.seqs[at.epoch] = append(l.seqs[at.epoch], at.seq)
	}
	for _, seqs := range l.seqs {
		slices.Sort(seqs)
	}
}

// date notes that the epochs which hold a message lasted until after its publish began.
func (l *ledger) date(m *entry) {
	if len(m.attempts) == 0 {
		return
	}
	for _, d := range m.copies {
		l.began[d.epoch] = max(l.began[d.epoch], m.began)
	}
	for _, a := range m.acks {
		l.began[a.epoch] = max(l.began[a.epoch], m.began)
	}
}

// judgeCopies compares what was delivered with what was published.
func (l *ledger) judgeCopies(m *entry, found func(Finding)) {
	for _, d := range m.copies {
		outcomes := map[kind]bool{}
		for _, a := range m.attempts {
			if a.hash == d.hash {
				outcomes[a.outcome] = true
			}
		}
		// One attempt of several may be the stored one; refused must be all of them.
		switch {
		case len(m.attempts) == 0:
			found(l.finding(Undeclared, d.position, m, d.sub, fmt.Sprintf("%s was delivered to %s and was never published", m, d.sub)))
		case len(outcomes) == 0:
			found(l.finding(Undeclared, d.position, m, d.sub, fmt.Sprintf("%s was delivered to %s with other data than was published", m, d.sub)))
		case len(outcomes) == 1 && outcomes[refused]:
			found(l.finding(RefusedStored, d.position, m, d.sub, fmt.Sprintf("%s was refused, and delivered to %s all the same", m, d.sub)))
		}
	}
}

// judgePlaces looks for a message that has two seqs in one epoch. What was
// delivered decides; acks do where nothing was.
func (l *ledger) judgePlaces(m *entry, found func(Finding)) {
	places, verb := make([]position, 0, 1), "delivered"
	for _, d := range m.copies {
		places = append(places, d.position)
	}
	if len(places) == 0 {
		verb = "acked"
		for _, a := range m.acks {
			places = append(places, a.position)
		}
	}
	for i, at := range places {
		first := slices.IndexFunc(places, func(p position) bool { return p.epoch == at.epoch })
		if first < i && places[first] != at && !slices.Contains(places[:i], at) {
			found(l.finding(StoredTwice, at, m, "", fmt.Sprintf("%s was %s as %d and as %d", m, verb, places[first].seq, at.seq)))
		}
	}
}

// judgeAck holds an ack against what was delivered, and takes it for the truth
// where nothing was.
func (l *ledger) judgeAck(m *entry, a ack, found func(Finding)) {
	elsewhere := message.Seq(0)
	for _, d := range m.copies {
		switch {
		case d.position == a.position && d.hash == a.hash:
			return
		case d.position == a.position:
			found(l.finding(WrongAck, a.position, m, d.sub, fmt.Sprintf("%s was acked as %d, where other data was delivered under its id", m, a.seq)))
			return
		case d.epoch == a.epoch:
			elsewhere = d.seq
		}
	}
	// Nobody got it there. Somebody else's message may stand in its place.
	other := l.known[a.position]
	switch {
	case elsewhere != 0:
		found(l.finding(WrongAck, a.position, m, "", fmt.Sprintf("%s was acked as %d and delivered as %d", m, a.seq, elsewhere)))
	case other == nil:
		l.known[a.position] = m // the ack alone tells: whoever should have got it lost it
	case other != m && other.deliveredAt(a.position):
		found(l.finding(WrongAck, a.position, m, "", fmt.Sprintf("%s was acked as %d, but %d is %s", m, a.seq, a.seq, other)))
	case other != m:
		found(l.finding(SeqShared, a.position, m, "", fmt.Sprintf("%s was acked as %d, and so was %s", m, a.seq, other)))
	}
}

func (m *entry) deliveredAt(at position) bool {
	return slices.ContainsFunc(m.copies, func(d delivery) bool { return d.position == at })
}

// nobody names acked messages that none of those who should have got did get.
func (l *ledger) nobody(found func(Finding)) {
	for _, m := range l.order {
		if m.missed > 0 && len(m.copies) == 0 && len(m.acks) > 0 {
			a := m.acks[0]
			found(l.finding(WrongAck, a.position, m, "", fmt.Sprintf(
				"%s was acked as %d, and none of the %d subscribers that should have got it did", m, a.seq, m.missed)))
		}
	}
}

// last returns the epoch that holds the latest publish, and how far it goes.
func (l *ledger) last() (last position) {
	for epoch, seqs := range l.seqs {
		if last.epoch == "" || l.began[epoch] > l.began[last.epoch] {
			last = position{epoch, seqs[len(seqs)-1]}
		}
	}
	return last
}

// head is how far an epoch goes.
func (l *ledger) head(epoch message.Epoch) position {
	if seqs := l.seqs[epoch]; len(seqs) > 0 {
		return position{epoch, seqs[len(seqs)-1]}
	}
	return position{epoch, 0}
}

// overtaken counts messages that stand behind one which their publisher sent
// later. Within a room a publisher's messages keep their order.
func (l *ledger) overtaken() (n int) {
	type lane struct {
		by    string
		epoch message.Epoch
	}
	last := map[lane]message.Seq{}
	for _, m := range l.order {
		if len(m.acks) == 0 || m.by == "" {
			continue
		}
		lane := lane{m.by, m.acks[0].epoch}
		if m.acks[0].seq < last[lane] {
			n++
		}
		last[lane] = max(last[lane], m.acks[0].seq)
	}
	return n
}

// between returns the known seqs of an epoch from one to another, both included.
func (l *ledger) between(epoch message.Epoch, from, to message.Seq) []message.Seq {
	seqs := l.seqs[epoch]
	begin, _ := slices.BinarySearch(seqs, from)
	end, exact := slices.BinarySearch(seqs, to)
	if exact {
		end++
	}
	return seqs[begin:max(begin, end)]
}

// newer says whether one epoch certainly came after another: it holds a message
// whose publish began when the other had been heard of. Acks may be told late,
// so that the order in which epochs were heard of says nothing.
func (l *ledger) newer(a, b message.Epoch) bool {
	heard, known := l.heard[b]
	return a != b && known && l.began[a] > heard
}

func (l *ledger) finding(f Fault, at position, m *entry, sub, text string) Finding {
	return Finding{
		Fault: f, Room: l.room, Epoch: at.epoch, Seq: at.seq, ID: m.id, Subscriber: sub,
		Text: fmt.Sprintf("room %s: %s", l.room, text),
	}
}

func (m *entry) String() string {
	if m.user == "" {
		return m.id
	}
	return m.id + " of " + m.user
}
