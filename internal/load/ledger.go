package load

import (
	"fmt"
	"slices"
	"time"

	"switchyard/internal/message"
)

// A ledger holds what all acks and deliveries together say about a room's log.
type ledger struct {
	room     message.Room
	messages map[messageKey]*trackedMessage
	order    []*trackedMessage // in order of first appearance
	// byPosition has the message at a position: the delivered one, otherwise the
	// acked one.
	byPosition map[position]*trackedMessage
	// epochSeenAt is when an epoch first appeared in any event.
	epochSeenAt map[message.Epoch]time.Duration

	// Filled by finish.
	seqs          map[message.Epoch][]message.Seq // of byPosition, ascending
	latestPublish map[message.Epoch]time.Duration // for each epoch: when the newest publish that is stored in it began
}

// A messageKey identifies a message in a room: the service deduplicates by it.
type messageKey struct{ user, id string }

// A trackedMessage is a message that was published, or only acked or delivered.
// Several different acks or deliveries of one message are evidence of a fault.
type trackedMessage struct {
	messageKey
	attempts   []publishAttempt // all publishes with this id
	acks       []ack            // one for each position and data
	deliveries []delivery       // one for each position and data
	began      time.Duration    // when it first appeared
	ackedAt    time.Duration    // of the first ack
	missed     int              // subscribers that should have got it and did not
	publisher  string           // of the first attempt
}

// A publishAttempt is one publish of a message.
type publishAttempt struct {
	hash    hash
	outcome kind // published while there is none
}

// An ack says that a message with that data is stored at a position.
type ack struct {
	position
	hash hash
}

// A delivery says that a message was delivered with that data and position.
type delivery struct {
	position
	hash hash
	sub  string // the first subscriber that got it
}

func newLedger(room message.Room) *ledger {
	return &ledger{
		room: room, messages: map[messageKey]*trackedMessage{},
		byPosition: map[position]*trackedMessage{}, epochSeenAt: map[message.Epoch]time.Duration{},
		seqs: map[message.Epoch][]message.Seq{}, latestPublish: map[message.Epoch]time.Duration{},
	}
}

// track returns the message of an event, and makes it if there is none.
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

// apply applies one event of the room.
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
	case lateAck:
		l.addLateAck(e)
	case refused, unknown:
		l.track(e).setOutcome(e)
	case delivered:
		l.addDelivery(e, found)
	}
}

// addLateAck records an ack that the client ignored as an ack of the first
// attempt. It skips a position that is acked already, and publishes of other
// programs.
func (l *ledger) addLateAck(e event) {
	m, at := l.track(e), position{e.Epoch, e.Seq}
	if len(m.attempts) == 0 || slices.ContainsFunc(m.acks, func(a ack) bool { return a.position == at }) {
		return
	}
	m.acks = append(m.acks, ack{at, m.attempts[0].hash})
}

// setOutcome sets the outcome of the first attempt with that data that has none.
// If there is no attempt, in a history that was written by hand, it adds one.
func (m *trackedMessage) setOutcome(e event) {
	for i, a := range m.attempts {
		if a.hash == e.Hash && a.outcome == published {
			m.attempts[i].outcome = e.Kind
			return
		}
	}
	m.attempts = append(m.attempts, publishAttempt{e.Hash, e.Kind})
}

// addDelivery adds the position and data of a delivery, unless another subscriber
// got the same.
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

// finish checks each message by itself, after all events were applied.
func (l *ledger) finish(found func(Finding)) {
	for _, m := range l.order {
		l.judgeDeliveries(m, found)
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

// updateEpoch updates latestPublish of the epochs that hold a message.
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

// judgeDeliveries compares the deliveries of a message with its attempts.
func (l *ledger) judgeDeliveries(m *trackedMessage, found func(Finding)) {
	for _, d := range m.deliveries {
		outcomes := map[kind]bool{}
		for _, a := range m.attempts {
			if a.hash == d.hash {
				outcomes[a.outcome] = true
			}
		}
		// Any attempt may be the stored one, so it is a fault only if all were refused.
		switch {
		case len(m.attempts) == 0:
			found(l.finding(NotPublished, d.position, m, d.sub, fmt.Sprintf("%s was delivered to %s and was never published", m, d.sub)))
		case len(outcomes) == 0:
			found(l.finding(NotPublished, d.position, m, d.sub, fmt.Sprintf("%s was delivered to %s with data that was never published under this id", m, d.sub)))
		case len(outcomes) == 1 && outcomes[refused]:
			found(l.finding(RefusedStored, d.position, m, d.sub, fmt.Sprintf("%s was refused, and nevertheless delivered to %s", m, d.sub)))
		}
	}
}

// judgePositions looks for a message that has two seqs in one epoch, according to
// its deliveries, or to its acks if there are no deliveries.
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

// judgeAck compares an ack with the deliveries. If there is none at the position,
// the ack decides which message is there.
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
	// The message was not delivered at that position. Another one may be there.
	other := l.byPosition[a.position]
	switch {
	case otherSeq != 0:
		found(l.finding(WrongAck, a.position, m, "", fmt.Sprintf("%s was acked as %d and delivered as %d", m, a.seq, otherSeq)))
	case other == nil:
		l.byPosition[a.position] = m // so subscribers that should have got it lost it
	case other != m && other.deliveredAt(a.position):
		found(l.finding(WrongAck, a.position, m, "", fmt.Sprintf("%s was acked as %d, but %d is %s", m, a.seq, a.seq, other)))
	case other != m:
		found(l.finding(SeqShared, a.position, m, "", fmt.Sprintf("%s was acked as %d, and so was %s", m, a.seq, other)))
	}
}

// deliveredAt reports whether the message was delivered with that position.
func (m *trackedMessage) deliveredAt(at position) bool {
	return slices.ContainsFunc(m.deliveries, func(d delivery) bool { return d.position == at })
}

// reportUndelivered reports acked messages that no subscriber got, even though
// some should have.
func (l *ledger) reportUndelivered(found func(Finding)) {
	for _, m := range l.order {
		if m.missed > 0 && len(m.deliveries) == 0 && len(m.acks) > 0 {
			a := m.acks[0]
			found(l.finding(WrongAck, a.position, m, "", fmt.Sprintf(
				"%s was acked as %d, and none of the %d subscribers that should have got it did", m, a.seq, m.missed)))
		}
	}
}

// latestHead returns the last position of the epoch that holds the latest
// publish.
func (l *ledger) latestHead() (last position) {
	for epoch, seqs := range l.seqs {
		if last.epoch == "" || l.latestPublish[epoch] > l.latestPublish[last.epoch] {
			last = position{epoch, seqs[len(seqs)-1]}
		}
	}
	return last
}

// head returns the last position of an epoch.
func (l *ledger) head(epoch message.Epoch) position {
	if seqs := l.seqs[epoch]; len(seqs) > 0 {
		return position{epoch, seqs[len(seqs)-1]}
	}
	return position{epoch, 0}
}

// overtaken counts the messages with a lower seq than one that their publisher
// sent before them. The service keeps the order of a publisher in a room, except
// after it answered unavailable.
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

// between returns the seqs of an epoch that are in byPosition and lie in a range,
// both ends included.
func (l *ledger) between(epoch message.Epoch, from, to message.Seq) []message.Seq {
	seqs := l.seqs[epoch]
	begin, _ := slices.BinarySearch(seqs, from)
	end, exact := slices.BinarySearch(seqs, to)
	if exact {
		end++
	}
	return seqs[begin:max(begin, end)]
}

// newer reports whether epoch a certainly came after epoch b: a holds a message
// whose publish began after b had appeared. The order in which epochs appear
// proves nothing, because acks may be recorded late.
func (l *ledger) newer(a, b message.Epoch) bool {
	seenAt, known := l.epochSeenAt[b]
	return a != b && known && l.latestPublish[a] > seenAt
}

// finding returns a finding about a message.
func (l *ledger) finding(f Fault, at position, m *trackedMessage, sub, text string) Finding {
	return Finding{
		Fault: f, Room: l.room, Epoch: at.epoch, Seq: at.seq, ID: m.id, Subscriber: sub,
		Text: fmt.Sprintf("room %s: %s", l.room, text),
	}
}

// String names the message in a finding.
func (m *trackedMessage) String() string {
	if m.user == "" {
		return m.id
	}
	return m.id + " of " + m.user
}
