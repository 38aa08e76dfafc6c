package load

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// shardedLatencies are Latencies that many may add to at once. One for all clients would be
// the place where they wait; one each would be 8 KiB a client.
type shardedLatencies [16]struct {
	mu sync.Mutex // Protects l.
	l  Latencies
}

func (s *shardedLatencies) add(n int, d time.Duration) {
	shard := &s[n%len(s)]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	shard.l.Add(d)
}

func (s *shardedLatencies) sum() *Latencies {
	sum := new(Latencies)
	for i := range s {
		s[i].mu.Lock()
		sum.Merge(&s[i].l)
		s[i].mu.Unlock()
	}
	return sum
}

// countOutcome counts the outcome of a publish.
func (r *Run) countOutcome(m *member, began time.Duration, err error) {
	if err != nil {
		r.failed.Add(1)
		return
	}
	r.acked.Add(1)
	if r.history == nil {
		r.ackLatencies.add(m.n, time.Since(r.began)-began)
	}
}

// Progress is how far a run has come.
type Progress struct {
	Elapsed                             time.Duration
	Published, Acked, Failed, Delivered int64
	// Reconnects are connections beyond each client's first, but for Moves, which
	// the service asked for.
	Reconnects, Moves int64
	// Ending says that nobody publishes any more.
	Ending bool
}

// Progress returns how far the run has come.
func (r *Run) Progress() Progress {
	p := Progress{
		Elapsed:   time.Since(r.began),
		Published: r.published.Load(), Acked: r.acked.Load(), Failed: r.failed.Load(), Delivered: r.delivered.Load(),
		Reconnects: max(r.connects.Load()-int64(r.plan.Clients), 0), Moves: r.moves.Load(),
	}
	select {
	case <-r.ending:
		p.Ending = true
	default:
	}
	return p
}

// RunSummary are what a run was, beside its history.
type RunSummary struct {
	URLs    int    `json:"urls"`
	Clients int    `json:"clients"`
	Ended   string `json:"ended"` // why publishing ended
	// PublishedFor is how long it lasted.
	PublishedFor Milliseconds `json:"published_for_ms"`
	Reconnects   int64        `json:"reconnects"`
	Moves        int64        `json:"moves"` // to another node, as the service asked
	Cuts         int64        `json:"cuts"`  // of connections, by this program
	// HeldBack messages were due and not sent, since too much waited already.
	HeldBack int64 `json:"held_back"`
	// Behind are subscribers that were not at the end of their room when the
	// time to settle was over. What they miss counts as lost.
	Behind int64 `json:"behind"`
	// Unread rooms could not be read again at the end.
	Unread int64 `json:"unread"`
	// Rejected are clients that the service told to stay away, by reason.
	Rejected map[string]int `json:"turned_away,omitempty"`
}

func (r *Run) summarize() *RunSummary {
	p := r.Progress()
	return &RunSummary{
		URLs: len(r.plan.URLs), Clients: r.plan.Clients, Ended: r.endReason, PublishedFor: Milliseconds(r.publishedFor),
		Reconnects: p.Reconnects, Moves: p.Moves, Cuts: r.cuts.Load(), HeldBack: r.heldBack.Load(),
		Behind: r.behind.Load(), Unread: r.unread.Load(), Rejected: r.rejected(),
	}
}

// rejected counts the clients that ended although nobody closed them.
func (r *Run) rejected() map[string]int {
	why := map[string]int{}
	for _, m := range r.members {
		if err := m.client.Err(); err != nil {
			why[err.Error()]++
		}
	}
	return why
}

// A Speed is what a run measured by itself, which is all that a run that is not
// judged has. Counts and rates are those of the time in which it published;
// latencies are there only when it is not judged.
type Speed struct {
	RunSummary
	Published           int64      `json:"published"`
	Acked               int64      `json:"acked"`
	Failed              int64      `json:"failed"`
	Delivered           int64      `json:"delivered"`
	AcksPerSecond       float64    `json:"acks_per_second"`
	DeliveriesPerSecond float64    `json:"deliveries_per_second"`
	PublishToAck        *Latencies `json:"publish_to_ack"`
	PublishToDelivery   *Latencies `json:"publish_to_delivery"`
}

// Speed waits for the end of the run and returns what it measured.
func (r *Run) Speed() *Speed {
	<-r.done
	seconds := max(r.publishedFor.Seconds(), 0.001)
	return &Speed{
		RunSummary: *r.summary, Published: r.finalProgress.Published, Acked: r.finalProgress.Acked, Failed: r.finalProgress.Failed, Delivered: r.finalProgress.Delivered,
		AcksPerSecond: float64(r.finalProgress.Acked) / seconds, DeliveriesPerSecond: float64(r.finalProgress.Delivered) / seconds,
		PublishToAck: r.ackLatencies.sum(), PublishToDelivery: r.deliveryLatencies.sum(),
	}
}

// String is the measurement for people.
func (s *Speed) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d clients, %s\n\n", s.Clients, s.PublishedFor)
	fmt.Fprintf(&b, "  acked       %.0f/s (%d of %d published, %d failed, %d held back)\n", s.AcksPerSecond, s.Acked, s.Published, s.Failed, s.HeldBack)
	fmt.Fprintf(&b, "  delivered   %.0f/s (%d)\n", s.DeliveriesPerSecond, s.Delivered)
	latencyRows(&b, s.PublishToAck, s.PublishToDelivery)
	s.writeProblems(&b)
	return b.String()
}

// latencyRows writes how long acks and deliveries took since the publish.
func latencyRows(b *strings.Builder, acks, deliveries *Latencies) {
	row := func(name string, l *Latencies) {
		fmt.Fprintf(b, "  %-11s p50 %s, p99 %s, p99.9 %s, at most %s\n", name,
			rounded(l.Quantile(0.5)), rounded(l.Quantile(0.99)), rounded(l.Quantile(0.999)), rounded(l.Max()))
	}
	row("to the ack", acks)
	row("to delivery", deliveries)
}

// writeProblems writes what went not quite as planned.
func (f *RunSummary) writeProblems(b *strings.Builder) {
	if f.Reconnects > 0 || f.Cuts > 0 || f.Moves > 0 {
		fmt.Fprintf(b, "  connections %d made again, %d cut by this program, %d moved\n", f.Reconnects, f.Cuts, f.Moves)
	}
	if f.Behind > 0 {
		fmt.Fprintf(b, "  not settled %d subscribers were behind when the time for it was over; what they miss counts as lost\n", f.Behind)
	}
	for _, why := range slices.Sorted(maps.Keys(f.Rejected)) {
		fmt.Fprintf(b, "  turned away %d clients: %s\n", f.Rejected[why], why)
	}
}
