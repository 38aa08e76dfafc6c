package load

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// joinedSubscription returns a subscription that has joined the room r in epoch e.
func joinedSubscription(h *History, name string, from client.Position, head message.Seq) *Subscription {
	s := h.Subscribe(name, "r", from)
	s.Handler().Joined(client.Joined{Room: "r", Epoch: "e", Head: head})
	return s
}

// testMessage returns a message of the room r in epoch e.
func testMessage(id string, seq message.Seq) message.Message {
	return message.Message{Draft: message.Draft{Room: "r", ID: id, Data: []byte(`"` + id + `"`)}, Epoch: "e", Seq: seq}
}

// Publishers and subscribers record into one history concurrently.
func TestConcurrentRecordersShareAHistory(t *testing.T) {
	const publishers, each, subscribers = 8, 200, 8
	h := NewHistory()
	var all sync.WaitGroup
	var log struct {
		sync.Mutex
		ids []string
	}
	subs := make([]*Subscription, subscribers)
	for i := range subs {
		subs[i] = joinedSubscription(h, fmt.Sprint("s", i), client.Start(), 0)
	}
	for p := range publishers {
		all.Go(func() {
			for n := range each {
				id := fmt.Sprintf("%d-%d", p, n)
				a := h.Publish("r", fmt.Sprint("p", p), "", id, []byte(`"`+id+`"`))
				log.Lock()
				log.ids = append(log.ids, id)
				seq := message.Seq(len(log.ids))
				log.Unlock()
				a.Done(client.Ack{Room: "r", Epoch: "e", Seq: seq, ID: id}, nil)
			}
		})
	}
	all.Wait()
	if h.CaughtUp() || h.Behind() != subscribers {
		t.Errorf("without a delivery %d subscribers are behind, want %d", h.Behind(), subscribers)
	}
	for _, s := range subs {
		all.Go(func() {
			for i, id := range log.ids {
				s.Handler().Message(testMessage(id, message.Seq(i+1)))
			}
		})
	}
	all.Wait()
	if !h.CaughtUp() {
		t.Errorf("after all deliveries %d subscribers are behind", h.Behind())
	}
	report := Check(h)
	if report.Verdict != Clean || report.Delivered != publishers*each*subscribers || report.Acked != publishers*each {
		t.Error(report)
	}
	if c := h.Counts(); c.Delivered != report.Delivered || c.Acked != report.Acked || c.Published != report.Published {
		t.Errorf("the counts are %+v", c)
	}
}

func TestOutcomesAreDistinguished(t *testing.T) {
	h := NewHistory()
	s := joinedSubscription(h, "s", client.Now(), 0)
	for id, err := range map[string]error{
		"refused":  &client.Error{Code: "forbidden"},
		"not sent": client.ErrTooLarge,
		"unknown":  fmt.Errorf("publish: %w", client.ErrOutcomeUnknown),
		"refused when it was resent": fmt.Errorf("publish: %w: %w", client.ErrOutcomeUnknown,
			&client.Error{Code: "forbidden"}),
	} {
		h.Publish("r", "p", "", id, []byte("1")).Done(client.Ack{}, err)
	}
	h.Publish("r", "p", "", "a", []byte(`"a"`)).Done(client.Ack{Epoch: "e", Seq: 1, Duplicate: true}, nil)
	s.Deliver(testMessage("a", 1))
	report := Check(h)
	if report.Unknown != 2 || report.Refused["forbidden"] != 1 || report.Refused["not sent"] != 1 || report.Duplicates != 1 || report.Verdict != Clean {
		t.Error(report)
	}
	if got := h.Counts(); got.Unknown != 2 || got.Refused != 2 || got.Acked != 1 {
		t.Errorf("the counts are %+v", got)
	}
}

// A subscriber may start with new messages only, with the oldest one, after a
// position, or after a position of another epoch.
func TestSubscribersStartAtTheirPosition(t *testing.T) {
	for name, tt := range map[string]struct {
		from  client.Position
		first message.Seq
		gap   client.Gap
	}{
		"now":                   {client.Now(), 3, client.Gap{}},
		"the start":             {client.Start(), 1, client.Gap{}},
		"after":                 {client.After("e", 1), 2, client.Gap{}},
		"after another epoch's": {client.After("d", 7), 3, client.Gap{Room: "r", Epoch: "e", From: 1, To: 2, Reason: "epoch"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := NewHistory()
			for i := range 3 {
				id := fmt.Sprint("m", i+1)
				h.Publish("r", "", "", id, []byte(`"`+id+`"`)).Done(client.Ack{Epoch: "e", Seq: message.Seq(i + 1)}, nil)
			}
			s := joinedSubscription(h, "s", tt.from, 2)
			if tt.gap.To > 0 {
				s.Gap(tt.gap)
			}
			for seq := tt.first; seq <= 3; seq++ {
				s.Deliver(testMessage(fmt.Sprint("m", seq), seq))
			}
			if report := Check(h); report.Verdict != Clean || !h.CaughtUp() {
				t.Errorf("caught up %v: %v", h.CaughtUp(), report)
			}
			h = historyOf(slices.DeleteFunc(slices.Collect(h.all()), func(e event) bool { return e.Kind == delivered && e.Seq == tt.first }))
			if report := Check(h); report.Faults[Lost] != 1 {
				t.Errorf("without its first message: %v", report)
			}
		})
	}
}

func TestASubscriberThatLeftIsNotAwaited(t *testing.T) {
	h := NewHistory()
	s := joinedSubscription(h, "s", client.Start(), 0)
	h.Publish("r", "", "", "a", []byte(`"a"`)).Done(client.Ack{Epoch: "e", Seq: 1}, nil)
	if h.CaughtUp() {
		t.Error("the history counts as caught up although s misses message 1")
	}
	s.Left()
	if !h.CaughtUp() {
		t.Error("the history counts as behind although no subscriber is left")
	}
}

// Events that find the history full are dropped and counted, and the check is
// incomplete.
func TestAFullHistoryIsIncomplete(t *testing.T) {
	h := newHistory(10)
	s := joinedSubscription(h, "s", client.Start(), 0)
	if !h.hasCapacityFor(9) || h.hasCapacityFor(10) {
		t.Error("the capacity beside the join is not 9")
	}
	for seq := message.Seq(1); seq <= 12; seq++ {
		s.Deliver(testMessage(fmt.Sprint("m", seq), seq))
	}
	if c := h.Counts(); c.Delivered != 12 || c.Dropped != 3 || h.total != 10 {
		t.Errorf("the counts are %+v, and %d events are kept", c, h.total)
	}
	if report := Check(h); report.Verdict != Incomplete || !strings.Contains(report.String(), "dropped 3 events") {
		t.Error(report)
	}
}

// A history that is written and read again has the same events and report.
func TestAHistoryFileRoundTrips(t *testing.T) {
	h := scriptedHistory(t, threeMessages+`
		publish d other
		refuse d conflict other
		publish e
		unknown e
		duplicate c e:3
		confirm c e:4
		s joins e:0
		s gets a e:1
		s skips e:3 1
		s skips f:3 1 epoch
		s returns e:3
		s gap e:2-2 trimmed
		s repeats e:1 2
		s gap f:1-1 epoch
		s gets x/u f:2
		s ends f:2
		t joins e:3
		t leaves`)
	var file bytes.Buffer
	if err := h.Write(&file); err != nil {
		t.Fatal(err)
	}
	text := file.String()
	again, err := ReadHistory(&file)
	if err != nil {
		t.Fatal(err)
	}
	if want, got := slices.Collect(h.all()), slices.Collect(again.all()); !slices.Equal(got, want) {
		t.Errorf("the events are\n%+v\nof\n%s", got, text)
	}
	if want, got := Check(h).String(), Check(again).String(); got != want {
		t.Errorf("the report is\n%s\nnot\n%s", got, want)
	}
	if !again.began.Equal(h.began) {
		t.Errorf("the history began %v, not %v", again.began, h.began)
	}
}

// The error for an invalid file says what is wrong, and in which line.
func TestInvalidHistoryFilesAreRejected(t *testing.T) {
	head := `{"format":"switchyard history 1","began":"2026-01-02T15:04:05Z"}` + "\n"
	for name, tt := range map[string]struct{ file, says string }{
		"empty":            {"", "it is empty"},
		"another format":   {`{"format":"other"}`, `line 1 of the history: format must be "switchyard history 1"`},
		"no JSON":          {head + "publish a", "line 2"},
		"no event":         {head + `{"room":"r"}`, "line 2 of the history: event is missing"},
		"an unknown event": {head + `{"room":"r","event":"vanish"}`, `"vanish" is not a kind of event`},
		"no room":          {head + `{"event":"ack","id":"a"}`, "room is missing"},
		"no id":            {head + `{"event":"ack","room":"r"}`, "id is missing"},
		"no id delivered":  {head + `{"event":"deliver","room":"r","sub":"s"}`, "id is missing"},
		"no subscriber":    {head + `{"event":"join","room":"r"}`, "sub is missing"},
		"a bad hash":       {head + `{"event":"publish","room":"r","id":"a","data":"zz"}`, "hexadecimal"},
		"a gap from 0":     {head + `{"event":"gap","room":"r","sub":"s","seq":0,"to":3}`, "seq 1 or above"},
		"an endless line":  {head + strings.Repeat(" ", maxLine+1), "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadHistory(strings.NewReader(tt.file))
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("the error %v does not say %q", err, tt.says)
			}
		})
	}
	full := errors.New("disk full")
	if err := NewHistory().Write(brokenWriter{full}); !errors.Is(err, full) {
		t.Errorf("a write to a full disk: %v", err)
	}
}

// Each phase has pauses of its own.
func TestPausesOfEachPhase(t *testing.T) {
	h := scriptedHistory(t, `
		s joins e:0
		t joins e:0
		publish a
		ack a e:1
		s gets a e:1

		t gets a e:1
		publish b
		ack b e:2


		s gets b e:2
		t gets b e:2`)
	h.phaseStarts = []time.Duration{8 * time.Millisecond}
	report := Check(h)
	want := map[string][]Milliseconds{
		"s": {Milliseconds(time.Millisecond), Milliseconds(3 * time.Millisecond)},
		"t": {Milliseconds(3 * time.Millisecond), Milliseconds(4 * time.Millisecond)},
	}
	for _, s := range report.Subscribers {
		if !slices.Equal(s.Pauses, want[s.Name]) {
			t.Errorf("%s: %v, want %v", s.Name, s.Pauses, want[s.Name])
		}
	}
	if got := report.WorstPause; got.Name != "t" || got.WorstPause != want["t"][1] {
		t.Errorf("the worst pause is %+v", got)
	}
	h.phaseStarts = nil
	if s := Check(h).Subscribers[0]; s.Pauses != nil {
		t.Errorf("a history with one phase has pauses by phase: %v", s.Pauses)
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

// A pause counts only while an acked message was not delivered yet.
func TestPausesAndLatencies(t *testing.T) {
	report := Check(scriptedHistory(t, `
		publish a
		ack a e:1
		s joins e:0
		s gets a e:1



		publish b

		ack b e:2


		s gets b e:2
		t joins e:0
		t gap e:1-2 trimmed
		publish c
		unknown c



		s gets c e:3
		t gets c e:3`))
	if got := time.Duration(report.WorstPause.WorstPause); got != 3*time.Millisecond || report.WorstPause.Name != "s" {
		t.Errorf("the worst pause is %v of %s, want 3ms of s", got, report.WorstPause.Name)
	}
	if n, longest := report.PublishToAck.Count(), report.PublishToAck.Max(); n != 2 || longest != 2*time.Millisecond {
		t.Errorf("to the ack: %d, at most %v", n, longest)
	}
	if n, longest := report.PublishToDelivery.Count(), report.PublishToDelivery.Max(); n != 3 || longest != 6*time.Millisecond {
		t.Errorf("to delivery, without messages from before the join: %d, at most %v", n, longest)
	}
	if n, longest := report.AckToDelivery.Count(), report.AckToDelivery.Max(); n != 1 || longest != 3*time.Millisecond {
		t.Errorf("from the ack to delivery: %d, at most %v", n, longest)
	}
}

// BenchmarkRecord records deliveries.
func BenchmarkRecord(b *testing.B) {
	h := newHistory(b.N + 1)
	s := joinedSubscription(h, "s", client.Start(), 0)
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = client.NewID()
	}
	data := bytes.Repeat([]byte("x"), 128)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Deliver(message.Message{Draft: message.Draft{Room: "r", ID: ids[i%1000], Data: data}, Epoch: "e", Seq: message.Seq(i + 1)})
	}
}

// BenchmarkCheck checks a million events: 10 subscribers in each of 100 rooms.
func BenchmarkCheck(b *testing.B) {
	h := NewHistory()
	subs := map[string]*Subscription{}
	for n := range 1000 {
		name := fmt.Sprint("s", n)
		subs[name] = h.Subscribe(name, message.Room(fmt.Sprint("r", n%100)), client.Start())
		subs[name].Joined(client.Joined{Epoch: "e"})
	}
	for n := range 100_000 {
		room, id, seq := message.Room(fmt.Sprint("r", n%100)), fmt.Sprint("m", n), message.Seq(n/100+1)
		h.Publish(room, "", "", id, nil).Done(client.Ack{Epoch: "e", Seq: seq}, nil)
		for k := range 10 {
			subs[fmt.Sprint("s", n%100+100*k)].Deliver(message.Message{Draft: message.Draft{Room: room, ID: id}, Epoch: "e", Seq: seq})
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if report := Check(h); report.Verdict != Clean {
			b.Fatal(report)
		}
	}
}
