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
	messages map[messageKey]*trackedMessage
	order    []*trackedMessage // as first heard of
	// known is what holds a position: what was delivered there, else what was
	// acked.
	byPosition map[position]*trackedMessage
	// heard is when anybody first heard of an epoch.
	epochSeenAt map[message.Epoch]time.Duration

	// Made by close.
	seqs          map[message.Epoch][]message.Seq // of known, ascending
	latestPublish map[message.Epoch]time.Duration // the latest publish that an epoch holds
}

// A messageKey is what the service tells messages of a room apart by.
type messageKey struct{ user, id string }

// An trackedMessage is a message, published or only delivered. One copy and one ack are
// the rule; more of either are evidence.
type trackedMessage struct {
	messageKey
	attempts   []publishAttempt // publishes with this id, by anybody
	acks       []ack            // one for each position and data
	deliveries []delivery       // one for each position and data it was delivered with
	began      time.Duration
	ackedAt    time.Duration // of the first ack
	missed     int           // subscribers that should have got it
	publisher  string        // who published it first
}

type publishAttempt struct {
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
		room: room, messages: map[messageKey]*trackedMessage{},
		byPosition: map[position]*trackedMessage{}, epochSeenAt: map[message.Epoch]time.Duration{},
		seqs: map[message.Epoch][]message.Seq{}, latestPublish: map[message.Epoch]time.Duration{},
	}
}

// track returns the message an event is about.
func (l *ledger) track(e event) *trackedMessage {
	key := messageKey{e.User, e.ID}
	m := l.messages[key]
	if m == nil {
		m = &trackedMessage{messageKey: key, began: e.At}
		l.messages[key] = m
		l.order = append(l.order, m)
	}
	return m
}

// apply takes in an event, whichever it is.
func (l *ledger) apply(e event, found func(Finding)) {
	if _, known := l.epochSeenAt[e.Epoch]; e.Epoch != "" && !known {
		l.epochSeenAt[e.Epoch] = e.At
	}
	switch e.Kind {
	case published:
		m := l.track(e)
		if len(m.attempts) == 0 {
			m.publisher = e.Publisher
		}
		m.attempts = append(m.attempts, publishAttempt{e.Hash, published})
	case acked:
		m := l.track(e)
		m.setOutcome(e)
		if len(m.acks) == 0 {
			m.ackedAt = e.At
		}
		if a := (ack{position{e.Epoch, e.Seq}, e.Hash}); !slices.Contains(m.acks, a) {
			m.acks = append(m.acks, a)
		}
	case confirmed:
		l.addLateAck(e)
	case refused, unknown:
		l.track(e).setOutcome(e)
	case delivered:
		l.addDelivery(e, found)
	}
}

// addLateAck takes an ack that came on the wire for another one of the first
// attempt, unless it says the same as one that is known.
func (l *ledger) addLateAck(e event) {
	m, at := l.track(e), position{e.Epoch, e.Seq}
	if len(m.attempts) == 0 || slices.ContainsFunc(m.acks, func(a ack) bool { return a.position == at }) {
		return
	}
	m.acks = append(m.acks, ack{at, m.attempts[0].hash})
}

// setOutcome gives an outcome to the first attempt with that data that has none. An
// outcome without an attempt, in a history by hand, is taken for one.
func (m *trackedMessage) setOutcome(e event) {
	for i, a := range m.attempts {
		if a.hash == e.Hash && a.outcome == published {
			m.attempts[i].outcome = e.Kind
			return
		}
	}
	m.attempts = append(m.attempts, publishAttempt{e.Hash, e.Kind})
}

// addDelivery notes where a message was delivered. That it was so to one subscriber
// after the other is the rule, so most of the time there is nothing to note.
func (l *ledger) addDelivery(e event, found func(Finding)) {
	m, at := l.track(e), position{e.Epoch, e.Seq}
	if slices.ContainsFunc(m.deliveries, func(d delivery) bool { return d.position == at && d.hash == e.Hash }) {
		return
	}
	m.deliveries = append(m.deliveries, delivery{at, e.Hash, e.Sub})
	if other := l.byPosition[at]; other != nil && other != m {
		found(l.finding(SeqShared, at, m, e.Sub, fmt.Sprintf("%s was delivered as %d to %s, and so was %s", m, e.Seq, e.Sub, other)))
		return
	}
	l.byPosition[at] = m
}

// finish judges each message by itself, once everything was heard.
func (l *ledger) finish(found func(Finding)) {
	for _, m := range l.order {
		l.judgeCopies(m, found)
		l.judgePositions(m, found)
		for _, a := range m.acks {
			l.judgeAck(m, a, found)
		}
		l.updateEpoch(m)
	}
	for at := range l.byPosition {
		l.seqs[at.epoch] = append(l.seqs[at.epoch], at.seq)
	}
	for _, seqs := range l.seqs {
		slices.Sort(seqs)
	}
}

// updateEpoch notes that the epochs which hold a message lasted until after its publish began.
func (l *ledger) updateEpoch(m *trackedMessage) {
	if len(m.attempts) == 0 {
		return
	}
	for _, d := range m.deliveries {
		l.latestPublish[d.epoch] = max(l.latestPublish[d.epoch], m.began)
	}
	for _, a := range m.acks {
		l.latestPublish[a.epoch] = max(l.latestPublish[a.epoch], m.began)
	}
}

// judgeCopies compares what was delivered with what was published.
func (l *ledger) judgeCopies(m *trackedMessage, found func(Finding)) {
	for _, d := range m.deliveries {
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

// judgePositions looks for a message that has two seqs in one epoch. What was
// delivered decides; acks do where nothing was.
func (l *ledger) judgePositions(m *trackedMessage, found func(Finding)) {
	positions, verb := make([]position, 0, 1), "delivered"
	for _, d := range m.deliveries {
		positions = append(positions, d.position)
	}
	if len(positions) == 0 {
		verb = "acked"
		for _, a := range m.acks {
			positions = append(positions, a.position)
		}
	}
	for i, at := range positions {
		first := slices.IndexFunc(positions, func(p position) bool { return p.epoch == at.epoch })
		if first < i && positions[first] != at && !slices.Contains(positions[:i], at) {
			found(l.finding(StoredTwice, at, m, "", fmt.Sprintf("%s was %s as %d and as %d", m, verb, positions[first].seq, at.seq)))
		}
	}
}

// judgeAck holds an ack against what was delivered, and takes it for the truth
// where nothing was.
func (l *ledger) judgeAck(m *trackedMessage, a ack, found func(Finding)) {
	otherSeq := message.Seq(0)
	for _, d := range m.deliveries {
		switch {
		case d.position == a.position && d.hash == a.hash:
			return
		case d.position == a.position:
			found(l.finding(WrongAck, a.position, m, d.sub, fmt.Sprintf("%s was acked as %d, where other data was delivered under its id", m, a.seq)))
			return
		case d.epoch == a.epoch:
			otherSeq = d.seq
		}
	}
	// Nobody got it there. Somebody else's message may stand in its place.
	other := l.byPosition[a.position]
	switch {
	case otherSeq != 0:
		found(l.finding(WrongAck, a.position, m, "", fmt.Sprintf("%s was acked as %d and delivered as %d", m, a.seq, otherSeq)))
	case other == nil:
		l.byPosition[a.position] = m // the ack alone tells: whoever should have got it lost it
	case other != m && other.deliveredAt(a.position):
		found(l.finding(WrongAck, a.position, m, "", fmt.Sprintf("%s was acked as %d, but %d is %s", m, a.seq, a.seq, other)))
	case other != m:
		found(l.finding(SeqShared, a.position, m, "", fmt.Sprintf("%s was acked as %d, and so was %s", m, a.seq, other)))
	}
}

func (m *trackedMessage) deliveredAt(at position) bool {
	return slices.ContainsFunc(m.deliveries, func(d delivery) bool { return d.position == at })
}

// reportUndelivered names acked messages that none of those who should have got did get.
func (l *ledger) reportUndelivered(found func(Finding)) {
	for _, m := range l.order {
		if m.missed > 0 && len(m.deliveries) == 0 && len(m.acks) > 0 {
			a := m.acks[0]
			found(l.finding(WrongAck, a.position, m, "", fmt.Sprintf(
				"%s was acked as %d, and none of the %d subscribers that should have got it did", m, a.seq, m.missed)))
		}
	}
}

// latestHead returns the epoch that holds the latest publish, and how far it goes.
func (l *ledger) latestHead() (last position) {
	for epoch, seqs := range l.seqs {
		if last.epoch == "" || l.latestPublish[epoch] > l.latestPublish[last.epoch] {
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
	type publisherEpoch struct {
		publisher string
		epoch     message.Epoch
	}
	last := map[publisherEpoch]message.Seq{}
	for _, m := range l.order {
		if len(m.acks) == 0 || m.publisher == "" {
			continue
		}
		key := publisherEpoch{m.publisher, m.acks[0].epoch}
		if m.acks[0].seq < last[key] {
			n++
		}
		last[key] = max(last[key], m.acks[0].seq)
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
	seenAt, known := l.epochSeenAt[b]
	return a != b && known && l.latestPublish[a] > seenAt
}

func (l *ledger) finding(f Fault, at position, m *trackedMessage, sub, text string) Finding {
	return Finding{
		Fault: f, Room: l.room, Epoch: at.epoch, Seq: at.seq, ID: m.id, Subscriber: sub,
		Text: fmt.Sprintf("room %s: %s", l.room, text),
	}
}

func (m *trackedMessage) String() string {
	if m.user == "" {
		return m.id
	}
	return m.id + " of " + m.user
}
