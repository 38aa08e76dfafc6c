package load

import "time"

const (
	// retryAfter is how long a publisher waits that publishes as fast as acks
	// come, and got something else.
	retryAfter = 100 * time.Millisecond
	// maxLag is how far the pace may fall behind before messages are held
	// back: a run that was paused does not make up for it in one burst.
	maxLag = time.Second
)

// publishLoop publishes until the end, at a rate or as fast as acks come. At a
// rate one goroutine does for all publishers: sending never waits.
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
		next.Reset(time.Duration(float64(sent+1)/r.plan.Rate*float64(time.Second)) - time.Since(began))
	}
}

// publishers are the members that publish.
func (r *Run) publishers() []*member { return r.members[:r.plan.Publishers] }

// publishDue publishes what is due after so long and returns how many that are,
// with the sent ones. Publishers take turns.
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

// due says which messages to send now: those from sent on that are held back
// for ever, since they are too late, end where from begins.
func due(elapsed time.Duration, rate float64, sent int) (from, to int) {
	to = int(elapsed.Seconds() * rate)
	from = max(sent, int((elapsed-maxLag).Seconds()*rate))
	return from, max(from, to)
}

// publishNext publishes one message, and the next one when its answer has come.
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
		time.AfterFunc(retryAfter, m.publishNext) // not at once: whatever refused it would be asked for ever
	}
	if !m.publish(again) && m.client.Err() == nil {
		time.AfterFunc(retryAfter, m.publishNext)
	}
}

// cutLoop cuts one connection after the other.
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

// historyFull says that the history has no room for more than is under way: each
// message is published, acked, and delivered to a room's members and its reader
// at the end. Joins, returns and ends come once or twice a client.
func (r *Run) historyFull() bool {
	if r.history == nil {
		return false
	}
	members := (r.plan.Clients + r.plan.Rooms - 1) / r.plan.Rooms
	messages := int(r.published.Load()) + r.plan.Rooms
	reserve := 4*(r.plan.Clients+r.plan.Rooms) + r.plan.MaxEvents/8
	return !r.history.hasCapacityFor(messages*(members+3) + reserve)
}
