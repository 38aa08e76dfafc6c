package load

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// A shardedLatencies is a Latencies for concurrent use. One lock for all clients
// would make them wait; one histogram each would take 31 KiB a client.
type shardedLatencies [16]struct {
	mu sync.Mutex // Protects l.
	l  Latencies
}

// add counts a duration of the nth client.
func (s *shardedLatencies) add(n int, d time.Duration) {
	shard := &s[n%len(s)]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	shard.l.Add(d)
}

// sum returns the histogram of all clients.
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

// Progress holds the counts of a run so far.
type Progress struct {
	Elapsed                             time.Duration
	Published, Acked, Failed, Delivered int64
	// Reconnects counts connections beyond the first of each client. Moves counts
	// the connections that the service asked for.
	Reconnects, Moves int64
	// Ending is true when publishing has ended.
	Ending bool
}

// Progress returns the counts of the run so far.
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

// A RunSummary holds the facts about a run that its history does not have.
type RunSummary struct {
	URLs    int    `json:"urls"`
	Clients int    `json:"clients"`
	Ended   string `json:"ended"` // why publishing ended
	// PublishedFor is how long publishing lasted.
	PublishedFor Milliseconds `json:"published_for_ms"`
	Reconnects   int64        `json:"reconnects"`
	Moves        int64        `json:"moves"` // to other nodes, at the service's request
	Cuts         int64        `json:"cuts"`  // of connections, by this program
	// HeldBack counts messages that were due and not sent, because too many
	// publishes had no outcome or the run was late.
	HeldBack int64 `json:"held_back"`
	// Behind counts subscribers that had not reached the head of their room when
	// the time to settle was over. The messages that they miss count as lost.
	Behind int64 `json:"behind"`
	// Unread counts rooms that no reader could join at the end.
	Unread int64 `json:"unread"`
	// Rejected counts clients that the service closed for good, by reason.
	Rejected map[string]int `json:"turned_away,omitempty"`
}

// summarize returns the summary of the run so far.
func (r *Run) summarize() *RunSummary {
	p := r.Progress()
	return &RunSummary{
		URLs: len(r.plan.URLs), Clients: r.plan.Clients, Ended: r.endReason, PublishedFor: Milliseconds(r.publishedFor),
		Reconnects: p.Reconnects, Moves: p.Moves, Cuts: r.cuts.Load(), HeldBack: r.heldBack.Load(),
		Behind: r.behind.Load(), Unread: r.roomsNotRead.Load(), Rejected: r.rejected(),
	}
}

// rejected counts the clients that have ended, by reason. Before closeAll these are
// the ones that the service closed for good.
func (r *Run) rejected() map[string]int {
	why := map[string]int{}
	for _, m := range r.members {
		if err := m.client.Err(); err != nil {
			why[err.Error()]++
		}
	}
	return why
}

// A Speed holds the counts and rates of a run while it published. The latencies
// are empty unless the run is unchecked; a checked run has them in its report.
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

// Speed waits for the end of the run and returns its speed.
func (r *Run) Speed() *Speed {
	<-r.done
	p, seconds := r.finalProgress, max(r.publishedFor.Seconds(), 0.001)
	return &Speed{
		RunSummary: *r.summary,
		Published:  p.Published, Acked: p.Acked, Failed: p.Failed, Delivered: p.Delivered,
		AcksPerSecond: float64(p.Acked) / seconds, DeliveriesPerSecond: float64(p.Delivered) / seconds,
		PublishToAck: r.ackLatencies.sum(), PublishToDelivery: r.deliveryLatencies.sum(),
	}
}

// String returns the speed as text.
func (s *Speed) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d clients, %s\n\n", s.Clients, s.PublishedFor)
	fmt.Fprintf(&b, "  acked       %.0f/s (%d of %d published, %d failed, %d held back)\n", s.AcksPerSecond, s.Acked, s.Published, s.Failed, s.HeldBack)
	fmt.Fprintf(&b, "  delivered   %.0f/s (%d)\n", s.DeliveriesPerSecond, s.Delivered)
	latencyRows(&b, s.PublishToAck, s.PublishToDelivery)
	s.writeProblems(&b)
	return b.String()
}

// latencyRows writes the latencies of acks and deliveries since the publish.
func latencyRows(b *strings.Builder, acks, deliveries *Latencies) {
	row := func(name string, l *Latencies) {
		fmt.Fprintf(b, "  %-11s p50 %s, p99 %s, p99.9 %s, at most %s\n", name,
			rounded(l.Quantile(0.5)), rounded(l.Quantile(0.99)), rounded(l.Quantile(0.999)), rounded(l.Max()))
	}
	row("to the ack", acks)
	row("to delivery", deliveries)
}

// writeProblems writes the counts that are zero in a run without trouble.
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
