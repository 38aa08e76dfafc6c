package load

import (
	"strings"
	"testing"
)

// threeMessages publishes three messages, which are acked as 1 to 3.
const threeMessages = `
	publish a
	ack a e:1
	publish b
	ack b e:2
	publish c
	ack c e:3
`

// faultyHistories have one fault each, and say what its finding says.
var faultyHistories = map[string]struct {
	script string
	fault  Fault
	says   string
}{
	"lost at the end": {threeMessages + `s joins e:0
			s gets a e:1
			s gets b e:2
			t joins e:0
			t gets a e:1
			t gets b e:2
			t gets c e:3`, Lost, "room r: c was acked as 3, and s never got beyond 2"},
	"lost in the middle": {threeMessages + `s joins e:0
			s gets a e:1
			s gets c e:3`, Lost, "room r: b was acked as 2, and s never got it"},
	"lost, not acked but delivered to others": {`publish a
			unknown a
			s joins e:0
			t joins e:0
			s gets a e:1`, Lost, "room r: a was delivered to others as 1, and t never got beyond 0"},
	"lost by a late joiner": {threeMessages + `s joins e:1
			s gets c e:3`, Lost, "b was acked as 2, and s never got it"},
	"lost before a required end": {threeMessages + `s joins e:0
			s gets a e:1
			s ends e:2`, Lost, "b was acked as 2, and s never got beyond 1"},
	"doubled": {threeMessages + `s joins e:0
			s gets a e:1
			s gets b e:2
			s gets b e:2
			s gets c e:3`, Doubled, "room r: s got b as 2 again, after 2"},
	"doubled in the frames only": {threeMessages + `s joins e:0
			s gets a e:1
			s gets b e:2
			s gets c e:3
			s repeats e:1 3`, Doubled, "s was sent 1 again after 3"},
	"reordered": {threeMessages + `s joins e:0
			s gets a e:1
			s gets c e:3
			s gets b e:2`, Reordered, "room r: s got b as 2 after 3"},
	"from before the start": {threeMessages + `s joins e:2
			s gets c e:3
			s gets b e:2`, Reordered, "s got b as 2, from before its beginning"},
	"out of a declared gap": {threeMessages + `s joins e:0
			s gap e:1-2 trimmed
			s gets c e:3
			s gets b e:2`, Reordered, "out of a declared gap"},
	"never published": {`publish a
			ack a e:1
			s joins e:0
			s gets a e:1
			s gets x e:2`, NotPublished, "room r: x was delivered to s and was never published"},
	"published by another user": {`publish a
			ack a e:1
			s joins e:0
			s gets a e:1
			s gets a/mallory e:2`, NotPublished, "a of mallory was delivered to s and was never published"},
	"other data": {`publish a
			ack a e:1
			s joins e:0
			s gets a other e:1`, NotPublished, "a was delivered to s with data that was never published under this id"},
	"refused": {`publish a
			refuse a forbidden
			s joins e:0
			s gets a e:1`, RefusedStored, "room r: a was refused, and nevertheless delivered to s"},
	"stored twice": {threeMessages + `s joins e:0
			s gets a e:1
			s gets b e:2
			s gets c e:3
			s gets a e:4`, StoredTwice, "room r: a was delivered as 1 and as 4"},
	"acked twice": {`publish a
			ack a e:1
			publish a
			ack a e:2
			s joins e:2`, StoredTwice, "a was acked as 1 and as 2"},
	"a seq shared": {`publish a
			ack a e:1
			publish b
			s joins e:0
			t joins e:0
			s gets a e:1
			t gets b e:1`, SeqShared, "room r: b was delivered as 1 to t, and so was a"},
	"a seq acked twice": {`publish a
			ack a e:1
			publish b
			ack b e:1
			s joins e:1`, SeqShared, "b was acked as 1, and so was a"},
	"a silent gap": {`publish a
			publish z
			s joins e:0
			s gets a e:1
			s gets z e:9`, SilentGap, "room r: s missed 2 to 8 without a gap"},
	"a silent gap in the frames only": {threeMessages + `s joins e:0
			s gets a e:1
			s skips e:3 1
			s returns e:3
			s gets b e:2
			s gets c e:3`, SilentGap, "s was sent 3 right after 1"},
	"a gap that leaves something out": {threeMessages + `s joins e:0
			s gap e:2-2 trimmed
			s gets c e:3`, Lost, "a was acked as 1, and s never got it"},
	"a silent epoch": {threeMessages + `s joins e:0
			s gets a e:1
			publish d
			ack d f:1
			s gets d f:1`, SilentEpoch, "s was moved from epoch e at 1 to epoch f at 0 without a gap"},
	"a gap in an epoch that was not declared": {threeMessages + `s joins e:0
			s gets a e:1
			s gap f:1-2 trimmed`, SilentEpoch, "s was moved from epoch e at 1 to epoch f at 2 without a gap"},
	"moved by a gap that does not begin at the first message": {`publish a
			ack a f:1
			s joins e:0
			s gap f:2-2 trimmed`, SilentEpoch, "s was moved from epoch e at 0 to epoch f at 2 without a gap"},
	"an epoch that a subscriber never reached": {threeMessages + `s joins e:0
			t joins e:0
			s gap f:1-1 epoch
			publish d
			ack d f:2
			s gets d f:2
			t gets a e:1
			t gets b e:2
			t gets c e:3`, SilentEpoch, "t never reached epoch f"},
	"rejoined in another epoch, after the first message": {threeMessages + `s joins e:0
			s gets a e:1
			s returns f:1
			publish d
			ack d f:2
			s gets d f:2`, SilentEpoch, "s was moved from epoch e at 1 to epoch f at 1 without a gap"},
	"lost in an epoch that a subscriber never reached": {threeMessages + `s joins e:3
			t joins e:3
			t gap f:1-0 epoch
			publish d
			ack d f:1
			t gets d f:1`, Lost, "d was acked as 1, and s never got it"},
	"lost in the old epoch by a subscriber that never reached the new one": {threeMessages + `s joins e:2
			t joins e:3
			t gap f:1-0 epoch
			publish d
			ack d f:1
			t gets d f:1`, Lost, "c was acked as 3, and s never got beyond 2"},
	"lost in the new epoch": {threeMessages + `s joins e:0
			t joins e:0
			s gap f:1-1 epoch
			publish d
			ack d f:2
			s gets d f:2
			t gap f:1-1 epoch`, Lost, "d was acked as 2, and t never got beyond 1"},
	"acked at another seq": {threeMessages + `publish d
			ack d e:9
			s joins e:0
			s gets a e:1
			s gets b e:2
			s gets c e:3
			s gets d e:4`, WrongAck, "room r: d was acked as 9 and delivered as 4"},
	"acked at another seq in a late frame": {`publish a
			s joins e:0
			s gets a e:1
			ack a e:1
			confirm a e:2`, WrongAck, "room r: a was acked as 2 and delivered as 1"},
	"a silent epoch in the frames only": {threeMessages + `s joins e:0
			s gets a e:1
			s skips f:2 1 epoch
			s gap f:1-1 epoch`, SilentEpoch, "s was sent 2 of epoch f right after 1 of another"},
	"acked at the seq of another message": {`publish a
			ack a e:1
			publish b
			ack b e:1
			s joins e:0
			s gets b e:1`, WrongAck, "a was acked as 1, but 1 is b"},
	"acked and never stored": {threeMessages + `s joins e:0
			t joins e:0
			s gets a e:1
			s gets b e:2
			t gets a e:1
			t gets b e:2`, WrongAck, "c was acked as 3, and none of the 2 subscribers that should have got it did"},
	"acked with data that was not kept": {`publish a
			publish a other
			ack a e:1
			duplicate a other e:1
			s joins e:0
			s gets a e:1`, WrongAck, "a was acked as 1, where other data was delivered under its id"},
	"a room that a subscriber never joined": {`publish a
			ack a e:1
			s joins e:0
			s gets a e:1
			s gets a e:1 @elsewhere`, WrongRoom, "room elsewhere: s got 1 there without having joined"},
}

// Each kind of fault is found in a history that has it, and its finding names the
// room, seq, id and subscriber.
func TestEachFaultIsFoundAndNamed(t *testing.T) {
	for name, tt := range faultyHistories {
		t.Run(name, func(t *testing.T) {
			report := Check(scriptedHistory(t, tt.script))
			if report.Verdict != Wrong || report.Faults[tt.fault] == 0 {
				t.Errorf("no %s was found:\n%v", tt.fault, report)
			}
			for _, f := range report.Findings {
				if f.Fault == tt.fault && strings.Contains(f.Text, tt.says) {
					return
				}
			}
			t.Errorf("no finding of %s says %q:\n%v", tt.fault, tt.says, report)
		})
	}
}

func TestReportCounts(t *testing.T) {
	report := Check(scriptedHistory(t, `
		publish a
		publish b
		unknown b
		publish c
		unknown c
		ack a e:1
		publish d
		publish e
		ack e e:2
		ack d e:4
		duplicate d e:4
		s joins e:0
		s gets a e:1
		s gets e e:2
		s gets b e:3
		s gets d e:4
		t joins e:0
		t gap e:1-3 trimmed
		t gap f:1-5 epoch`))
	if report.Verdict != Clean {
		t.Error(report)
	}
	if report.Unknown != 2 || report.UnknownFound != 1 {
		t.Errorf("%d unknown, %d of them found", report.Unknown, report.UnknownFound)
	}
	if report.Published != 5 || report.Acked != 4 || report.Duplicates != 1 || report.Delivered != 4 {
		t.Errorf("%d published, %d acked, %d duplicates, %d delivered", report.Published, report.Acked, report.Duplicates, report.Delivered)
	}
	if report.Gaps != 2 || report.GapMessages != 8 || report.Epochs != 2 {
		t.Errorf("%d gaps, %d messages, %d epochs", report.Gaps, report.GapMessages, report.Epochs)
	}
	if len(report.Subscribers) != 2 || report.Subscribers[0].Delivered != 4 || report.Subscribers[1].Delivered != 0 {
		t.Errorf("%+v", report.Subscribers)
	}
}

// Messages of one publisher are overtaken if their seqs are not in the order of
// the publishes; those of different publishers have no order.
func TestOvertakenMessagesAreCounted(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		want   int
	}{
		"in order": {`publish a by p
			publish b by p
			ack b e:2
			ack a e:1`, 0},
		"overtaken": {`publish a by p
			publish b by p
			ack a e:2
			ack b e:1`, 1},
		"by another publisher": {`publish a by p
			publish b by q
			ack a e:2
			ack b e:1`, 0},
		"in another epoch": {`publish a by p
			publish b by p
			ack a e:2
			ack b f:1`, 0},
		"without a publisher": {`publish a
			publish b
			ack a e:2
			ack b e:1`, 0},
		"with an unknown outcome": {`publish a by p
			publish b by p
			unknown a
			ack b e:1`, 0},
	} {
		if got := Check(scriptedHistory(t, tt.script)).Overtaken; got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

func TestAnEmptyHistoryIsNotClean(t *testing.T) {
	if report := Check(NewHistory()); report.Verdict != Empty {
		t.Errorf("an empty history: %s", report.Verdict)
	}
	if report := Check(scriptedHistory(t, threeMessages)); report.Verdict != Empty {
		t.Errorf("without a delivery: %s", report.Verdict)
	}
	h := newHistory(2)
	for e := range scriptedHistory(t, threeMessages+"s joins e:3").all() {
		h.add(e)
	}
	if report := Check(h); report.Verdict != Incomplete || report.Dropped != 5 {
		t.Errorf("a full history: %s, %d dropped", report.Verdict, report.Dropped)
	}
}
