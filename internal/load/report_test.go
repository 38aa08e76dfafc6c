package load

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTheReportAsText(t *testing.T) {
	clean := Check(scriptedHistory(t, threeMessages+`s joins e:0
		s gets a e:1
		s gets b e:2
		s gets c e:3`)).String()
	for _, says := range []string{"Clean:", "3 in 1 rooms: 3 acked, 0 of them as duplicates; 0 refused", "3 to 1 subscribers", "worst pause"} {
		if !strings.Contains(clean, says) {
			t.Errorf("the report does not say %q:\n%s", says, clean)
		}
	}
	wrong := Check(scriptedHistory(t, threeMessages+`publish x
		refuse x forbidden
		s joins e:0
		s gets a e:1
		s gets c e:3
		s gets c e:3`)).String()
	for _, says := range []string{"Wrong: 1 lost, 1 doubled, 1 wrong ack.", "1 forbidden refused", "room r: b was acked as 2, and s never got it"} {
		if !strings.Contains(wrong, says) {
			t.Errorf("the report does not say %q:\n%s", says, wrong)
		}
	}
}

// A report counts a thousand findings, and lists the first 50.
func TestAFloodOfFindingsIsBounded(t *testing.T) {
	lines := "publish a\nack a e:1\ns joins e:0\ns gets a e:1\n" + strings.Repeat("s gets a e:1\n", 1000)
	report := Check(scriptedHistory(t, lines))
	if report.Faults[Doubled] != 1000 || report.FaultCount() != 1000 || len(report.Findings) != MaxFindings {
		t.Errorf("%d doubled, %d findings", report.Faults[Doubled], len(report.Findings))
	}
	if !strings.Contains(report.String(), "and 950 more") {
		t.Error(report)
	}
}

// A seq that is far too large costs neither time nor memory.
func TestAGapOfAnySizeIsOneFinding(t *testing.T) {
	report := Check(scriptedHistory(t, `publish a
		s joins e:0
		s gets a e:9000000000000000000`))
	if report.Faults[SilentGap] != 1 || report.FaultCount() != 1 {
		t.Error(report)
	}
}

func TestTheReportAsJSON(t *testing.T) {
	b, err := json.Marshal(Check(scriptedHistory(t, threeMessages+`s joins e:0
		s gets a e:1
		s gets b e:2`)))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Verdict      string
		Faults       map[string]int
		Findings     []struct{ Fault, Room, ID, Subscriber, Text string }
		PublishToAck struct {
			Count int
			P99   float64 `json:"p99_ms"`
		} `json:"publish_to_ack"`
		WorstPause struct {
			Name string
			MS   float64 `json:"worst_pause_ms"`
		} `json:"worst_pause"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.Verdict != "wrong" || len(got.Faults) != len(AllFaults) || got.Faults["lost"] != 1 || got.Faults["doubled"] != 0 {
		t.Errorf("%s", b)
	}
	if f := got.Findings[0]; f.Fault != "lost" || f.Room != "r" || f.ID != "c" || f.Subscriber != "s" {
		t.Errorf("%+v", f)
	}
	if got.PublishToAck.Count != 3 || got.PublishToAck.P99 != 1 || got.WorstPause.Name != "s" || got.WorstPause.MS != 1 {
		t.Errorf("%+v", got)
	}
}

// A quantile is that of the sorted durations, or at most 1% more.
func TestQuantilesAreAccurate(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, scale := range []time.Duration{50 * time.Microsecond, 10 * time.Millisecond, time.Minute} {
		var whole, half Latencies
		var all []time.Duration
		for i := range 10_000 {
			d := time.Duration(rng.Int64N(int64(scale))).Truncate(time.Microsecond)
			all = append(all, d)
			if i%2 == 0 {
				whole.Add(d)
			} else {
				half.Add(d)
			}
		}
		whole.Merge(&half)
		slices.Sort(all)
		for _, q := range []float64{0.5, 0.9, 0.99, 0.999, 1} {
			want := all[int(q*float64(len(all)))-1]
			if got := whole.Quantile(q); got < want || float64(got) > 1.01*float64(want)+1000 {
				t.Errorf("up to %v, quantile %v: %v, want %v", scale, q, got, want)
			}
		}
		if whole.Max() != all[len(all)-1] || whole.Count() != 10_000 {
			t.Errorf("the longest of %d is %v", whole.Count(), whole.Max())
		}
	}
	var l Latencies
	if l.Quantile(0.5) != 0 {
		t.Errorf("the median of no durations: %v", l.Quantile(0.5))
	}
	l.Add(1000 * time.Hour)
	l.Add(-time.Second)
	if l.Quantile(1) != 1000*time.Hour || l.Quantile(0.5) > time.Microsecond {
		t.Errorf("durations beyond the buckets: %v, %v", l.Quantile(1), l.Quantile(0.5))
	}
}
