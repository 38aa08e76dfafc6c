package load

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"switchyard/internal/message"
)

// A Fault is a kind of broken promise.
type Fault string

// The faults.
const (
	// Lost: a message was acked, or delivered to another member, and never
	// delivered to a subscriber that should have got it.
	Lost Fault = "lost"
	// Doubled: a message was delivered to a subscriber again.
	Doubled Fault = "doubled"
	// Reordered: a message was delivered to a subscriber after a later one.
	Reordered Fault = "reordered"
	// NotPublished: a message was delivered that was never published, or not with
	// this data.
	NotPublished Fault = "undeclared"
	// RefusedStored: a message was delivered although its publish was refused.
	RefusedStored Fault = "refused_stored"
	// StoredTwice: one id has two seqs.
	StoredTwice Fault = "stored_twice"
	// SeqShared: two ids have one seq.
	SeqShared Fault = "seq_shared"
	// SilentGap: seqs were skipped without a gap. It may show only in the frames,
	// if the client asked again and got them.
	SilentGap Fault = "silent_gap"
	// SilentEpoch: a position became invalid without a gap.
	SilentEpoch Fault = "silent_epoch"
	// WrongAck: an ack has another position than the deliveries, or no subscriber
	// got the acked message.
	WrongAck Fault = "wrong_ack"
	// WrongRoom: a message was delivered to a subscriber that never joined its
	// room.
	WrongRoom Fault = "wrong_room"
)

// AllFaults lists the faults, the worst first.
var AllFaults = []Fault{
	Lost, Doubled, Reordered, NotPublished, RefusedStored, StoredTwice, SeqShared, SilentGap, SilentEpoch, WrongAck, WrongRoom,
}

// A Finding is one broken promise. Text says it in one sentence; fields that do
// not apply are zero.
type Finding struct {
	Fault      Fault         `json:"fault"`
	Room       message.Room  `json:"room"`
	Epoch      message.Epoch `json:"epoch,omitempty"`
	Seq        message.Seq   `json:"seq,omitempty"`
	ID         string        `json:"id,omitempty"`
	Subscriber string        `json:"subscriber,omitempty"`
	Text       string        `json:"text"`
}

// Milliseconds is a duration that JSON holds in milliseconds.
type Milliseconds time.Duration

// MarshalJSON encodes milliseconds with at most three decimals.
func (m Milliseconds) MarshalJSON() ([]byte, error) {
	return json.Marshal(milliseconds(time.Duration(m)))
}

// String returns the duration with about three digits.
func (m Milliseconds) String() string { return rounded(time.Duration(m)) }

// A Subscriber reports on one subscriber in one room.
type Subscriber struct {
	Name      string       `json:"name,omitempty"`
	Room      message.Room `json:"room,omitempty"`
	Delivered int          `json:"delivered"`
	// WorstPause is the longest time without a delivery while an acked message was
	// not delivered yet.
	WorstPause Milliseconds `json:"worst_pause_ms"`
	// Pauses are the longest of each phase, if there are several phases. A pause
	// belongs to the phase in which it ends.
	Pauses []Milliseconds `json:"pauses_ms,omitempty"`
}

// A Verdict is the result of a check.
type Verdict string

// The verdicts.
const (
	Clean      Verdict = "clean"      // every promise was kept
	Wrong      Verdict = "wrong"      // there are findings
	Empty      Verdict = "empty"      // nothing was acked or nothing delivered, which proves nothing
	Incomplete Verdict = "incomplete" // events or readers are missing, so nothing is proved
)

// A Report is the result of Check.
type Report struct {
	Verdict  Verdict       `json:"verdict"`
	Faults   map[Fault]int `json:"faults"`   // by kind, zeros too
	Findings []Finding     `json:"findings"` // the first MaxFindings

	Took      Milliseconds `json:"took_ms"`
	Published int          `json:"published"`
	Acked     int          `json:"acked"`
	// Duplicates are acks which say that an earlier attempt had been stored.
	Duplicates int            `json:"duplicates"`
	Refused    map[string]int `json:"refused"` // by code
	// Unknown counts publishes with an unknown outcome, UnknownFound the messages
	// among them that were delivered.
	Unknown      int `json:"unknown"`
	UnknownFound int `json:"unknown_found"`
	Delivered    int `json:"delivered"`
	// Gaps counts the declared gaps, GapMessages the seqs in them. Epochs is the
	// largest number of epochs of a room.
	Gaps        int `json:"gaps"`
	GapMessages int `json:"gap_messages"`
	Epochs      int `json:"epochs"`
	Rooms       int `json:"rooms"`
	Dropped     int `json:"dropped"`
	// Overtaken counts messages with a lower seq than one that their publisher
	// sent before them. That may happen only if the service answered unavailable
	// in between.
	Overtaken int `json:"overtaken"`

	PublishToAck      *Latencies   `json:"publish_to_ack"`
	PublishToDelivery *Latencies   `json:"publish_to_delivery"`
	AckToDelivery     *Latencies   `json:"ack_to_delivery"`
	WorstPause        Subscriber   `json:"worst_pause"`
	Subscribers       []Subscriber `json:"subscribers"`

	// Run is set if the history is that of a Run.
	Run *RunSummary `json:"run,omitempty"`
}

func newReport() *Report {
	r := &Report{
		Faults: map[Fault]int{}, Findings: []Finding{}, Refused: map[string]int{}, Subscribers: []Subscriber{},
		PublishToAck: new(Latencies), PublishToDelivery: new(Latencies), AckToDelivery: new(Latencies),
	}
	for _, f := range AllFaults {
		r.Faults[f] = 0
	}
	return r
}

// verdict returns the verdict. Dropped events come before faults, because a
// message that seems to be lost may be in a dropped event.
func (r *Report) verdict() Verdict {
	switch {
	case r.Dropped > 0:
		return Incomplete
	case r.FaultCount() > 0:
		return Wrong
	case r.Acked == 0 || r.Delivered == 0:
		return Empty
	case r.Run != nil && r.Run.Unread > 0:
		return Incomplete
	}
	return Clean
}

// FaultCount returns the number of faults.
func (r *Report) FaultCount() (n int) {
	for _, count := range r.Faults {
		n += count
	}
	return n
}

// String returns the report as text.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", r.summary())
	fmt.Fprintf(&b, "  published   %d in %d rooms: %d acked, %d of them as duplicates; %s refused; %d unknown, of which %d turned up\n",
		r.Published, r.Rooms, r.Acked, r.Duplicates, r.refusals(), r.Unknown, r.UnknownFound)
	fmt.Fprintf(&b, "  delivered   %d to %d subscribers; %d gaps declared, %d messages in them; %d epochs\n",
		r.Delivered, len(r.Subscribers), r.Gaps, r.GapMessages, r.Epochs)
	latencyRows(&b, r.PublishToAck, r.PublishToDelivery)
	fmt.Fprintf(&b, "  worst pause %s\n", r.worstPauseText())
	if r.Run != nil {
		r.Run.writeProblems(&b)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "\n  %-14s %s", f.Fault, f.Text)
	}
	if n := len(r.Findings); n > 0 {
		fmt.Fprintln(&b)
		if rest := r.FaultCount() - n; rest > 0 {
			fmt.Fprintf(&b, "  and %d more\n", rest)
		}
	}
	return b.String()
}

// summary returns the verdict with its reason.
func (r *Report) summary() string {
	switch r.Verdict {
	case Clean:
		return "Clean: every message that was acked reached everyone it should, once and in order."
	case Empty:
		return "Empty: nothing was acked or nothing was delivered, and that proves nothing."
	case Incomplete:
		if r.Dropped > 0 {
			return fmt.Sprintf("Incomplete: the history was full and dropped %d events.", r.Dropped)
		}
		return fmt.Sprintf("Incomplete: %d rooms could not be read again at the end.", r.Run.Unread)
	}
	var parts []string
	for _, f := range AllFaults {
		if n := r.Faults[f]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, strings.ReplaceAll(string(f), "_", " ")))
		}
	}
	return "Wrong: " + strings.Join(parts, ", ") + "."
}

// refusals returns the numbers of refused publishes, by code.
func (r *Report) refusals() string {
	if len(r.Refused) == 0 {
		return "0"
	}
	var parts []string
	for _, code := range slices.Sorted(maps.Keys(r.Refused)) {
		parts = append(parts, fmt.Sprintf("%d %s", r.Refused[code], code))
	}
	return strings.Join(parts, ", ")
}

// worstPauseText returns the worst pause and its subscriber.
func (r *Report) worstPauseText() string {
	if r.WorstPause.WorstPause == 0 {
		return "none"
	}
	return fmt.Sprintf("%s, of %s in %s", r.WorstPause.WorstPause, r.WorstPause.Name, r.WorstPause.Room)
}

// rounded returns a duration with about three digits.
func rounded(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= 100*time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
