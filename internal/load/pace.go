package load

import "time"

const (
	// retryAfter is the pause of a publisher without a rate after a publish that
	// was not acked.
	retryAfter = 100 * time.Millisecond
	// maxLag is how far a run may fall behind its rate before messages are held
	// back: a run that was paused does not catch up in one burst.
	maxLag = time.Second
)

// publishLoop publishes until the end, at a rate or as fast as acks come. At a
// rate one goroutine serves all publishers, because sending never waits.
func (r *Run) publishLoop() {
	if r.plan.Rate == 0 {
		for _, m := range r.publishers() {
			for range r.plan.Window {
				m.publishNext()
			}
		}
		<-r.ending
		return
	}
	next := time.NewTimer(0)
	defer next.Stop()
	began, sent := time.Now(), 0
	for {
		select {
		case <-r.ending:
			return
		case <-next.C:
		}
		sent = r.publishDue(time.Since(began), sent)
		wait := time.Duration(float64(sent+1)/r.plan.Rate*float64(time.Second)) - time.Since(began)
		next.Reset(max(wait, time.Microsecond)) // rounding may make a due message appear not due yet
	}
}

// publishers returns the members that publish.
func (r *Run) publishers() []*member { return r.members[:r.plan.Publishers] }

// publishDue publishes the messages that are due after a time, by the publishers
// in turn. It returns how many messages were due so far.
func (r *Run) publishDue(elapsed time.Duration, sent int) int {
	publishers := r.publishers()
	from, to := due(elapsed, r.plan.Rate, sent)
	r.heldBack.Add(int64(from - sent))
	for n := from; n < to; n++ {
		if !publishers[n%len(publishers)].publish(nil) {
			r.heldBack.Add(1)
		}
	}
	return to
}

// due returns the range of messages to send now. The messages between sent and
// from are too late, and never sent.
func due(elapsed time.Duration, rate float64, sent int) (from, to int) {
	to = int(elapsed.Seconds() * rate)
	from = max(sent, int((elapsed-maxLag).Seconds()*rate))
	return from, max(from, to)
}

// publishNext publishes one message, and the next one after its outcome.
func (m *member) publishNext() {
	select {
	case <-m.run.ending:
		return
	default:
	}
	again := func(err error) {
		if err == nil {
			m.publishNext()
			return
		}
		time.AfterFunc(retryAfter, m.publishNext) // not at once, or a refusal would cause a busy loop
	}
	if !m.publish(again) && m.client.Err() == nil {
		time.AfterFunc(retryAfter, m.publishNext)
	}
}

// cutLoop cuts the connections in turn, one each Plan.Cut.
func (r *Run) cutLoop() {
	if r.plan.Cut == 0 {
		return
	}
	next := time.NewTicker(r.plan.Cut)
	defer next.Stop()
	for n := 0; ; n++ {
		select {
		case <-r.ending:
			return
		case <-next.C:
		}
		if r.members[n%len(r.members)].conn.cut() {
			r.cuts.Add(1)
		}
	}
}

// historyFull reports whether the history has room for no more than the messages
// that were published already. Each has a publish, an ack, and a delivery to each
// member of its room and to the reader at the end. The reserve is for joins,
// rejoins and ends.
func (r *Run) historyFull() bool {
	if r.history == nil {
		return false
	}
	members := (r.plan.Clients + r.plan.Rooms - 1) / r.plan.Rooms
	messages := int(r.published.Load()) + r.plan.Rooms
	reserve := 4*(r.plan.Clients+r.plan.Rooms) + r.plan.MaxEvents/8
	return !r.history.hasCapacityFor(messages*(members+3) + reserve)
}
