package e2e

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"switchyard/internal/load"
)

// A faultRow is one kind of fault: how often it took effect, and the longest waits of
// users while it was the only fault.
type faultRow struct {
	Kind      string            `json:"kind"`
	Times     int               `json:"times"`
	Pause     load.Milliseconds `json:"worst_pause_ms"`
	Connected load.Milliseconds `json:"worst_pause_connected_ms"`
	Answer    load.Milliseconds `json:"worst_ack_ms"`
}

// A faultReport is the result of one run, or the sum of several.
type faultReport struct {
	Seeds      []uint64           `json:"seeds"`
	Took       load.Milliseconds  `json:"took_ms"`
	Acked      int                `json:"acked"`
	Duplicates int                `json:"acked_as_duplicates"`
	Delivered  int                `json:"delivered"`
	Broken     map[load.Fault]int `json:"broken"`
	Kinds      []*faultRow        `json:"kinds"`
}

func newFaultReport() *faultReport { return &faultReport{Broken: map[load.Fault]int{}} }

func (r *faultReport) setResult(seed uint64, v *load.Report, took time.Duration) {
	r.Seeds, r.Took = []uint64{seed}, load.Milliseconds(took)
	r.Acked, r.Duplicates, r.Delivered, r.Broken = v.Acked, v.Duplicates, v.Delivered, v.Faults
}

func (r *faultReport) row(kind string) *faultRow {
	for _, row := range r.Kinds {
		if row.Kind == kind {
			return row
		}
	}
	row := &faultRow{Kind: kind}
	r.Kinds = append(r.Kinds, row)
	return row
}

func (r *faultReport) addTimes(kind string, times int) { r.row(kind).Times += times }

// recordWorst keeps the longest waits of users.
func (r *faultReport) recordWorst(kind string, times int, w worstWaits) {
	row := r.row(kind)
	row.Times += times
	row.Pause = max(row.Pause, load.Milliseconds(w.pause))
	row.Connected = max(row.Connected, load.Milliseconds(w.connectedPause))
	row.Answer = max(row.Answer, load.Milliseconds(w.ackWait))
}

// add adds the result of other runs.
func (r *faultReport) add(o *faultReport) {
	r.Seeds = append(r.Seeds, o.Seeds...)
	r.Took += o.Took
	r.Acked += o.Acked
	r.Duplicates += o.Duplicates
	r.Delivered += o.Delivered
	for fault, n := range o.Broken {
		r.Broken[fault] += n
	}
	for _, row := range o.Kinds {
		r.recordWorst(row.Kind, row.Times, worstWaits{
			pause: time.Duration(row.Pause), connectedPause: time.Duration(row.Connected), ackWait: time.Duration(row.Answer),
		})
	}
}

// String returns the report for people.
func (r *faultReport) String() string {
	var b strings.Builder
	total := 0
	slices.SortFunc(r.Kinds, func(a, b *faultRow) int { return cmp.Compare(a.Kind, b.Kind) })
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "fault\ttimes\tlongest pause\twhile connected\tlongest wait for an ack")
	for _, row := range r.Kinds {
		if row.Answer == 0 { // it had only happened together with others
			fmt.Fprintf(w, "%s\t%d\t-\t-\t-\n", row.Kind, row.Times)
		} else {
			fmt.Fprintf(w, "%s\t%d\t%v\t%v\t%v\n", row.Kind, row.Times, row.Pause, row.Connected, row.Answer)
		}
		total += row.Times
	}
	_ = w.Flush() // to memory
	others := 0
	for fault, n := range r.Broken {
		if fault != load.Lost && fault != load.Doubled && fault != load.Reordered {
			others += n
		}
	}
	return fmt.Sprintf("seeds %v, %v: %d messages acked (%d as duplicates), %d delivered, %d faults: "+
		"lost %d, doubled %d, reordered %d, otherwise wrong %d\n%s", r.Seeds, r.Took, r.Acked, r.Duplicates, r.Delivered,
		total, r.Broken[load.Lost], r.Broken[load.Doubled], r.Broken[load.Reordered], others, &b)
}

// print logs the report for people and, on one line, for programs. It appends that
// line to the file of -faults.report, if there is one.
func (r *faultReport) print(t *testing.T) {
	t.Helper()
	line, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s\n%s", r, line)
	if *faultFile == "" {
		return
	}
	f, err := os.OpenFile(*faultFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(append(line, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Error(err)
	}
}
