package load

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzHistory reads any file: it is refused, or checked without a panic. A history
// that is written and read again gets the same report.
func FuzzHistory(f *testing.F) {
	head := `{"format":"switchyard history 1","began":"2026-01-02T15:04:05Z"}` + "\n"
	f.Add([]byte(head))
	f.Add([]byte(head + `{"t":1,"event":"join","room":"r","sub":"s","epoch":"e"}
{"t":2,"event":"publish","room":"r","by":"p","id":"a","data":"00ff"}
{"t":3,"event":"ack","room":"r","id":"a","data":"00ff","epoch":"e","seq":1}
{"t":4,"event":"deliver","room":"r","sub":"s","id":"a","data":"00ff","epoch":"e","seq":1}
{"t":5,"event":"gap","room":"r","sub":"s","epoch":"f","seq":1,"to":9007199254740991,"reason":"epoch"}
{"t":6,"event":"skip","room":"r","sub":"s","epoch":"f","seq":9,"to":3}
{"t":7,"event":"confirm","room":"r","id":"a","epoch":"e","seq":2}
{"t":8,"event":"end","room":"r","sub":"s","epoch":"f","seq":9223372036854775807}`))
	f.Add([]byte(head + strings.Repeat(`{"event":"deliver","room":"r","sub":"s","id":"a","epoch":"e","seq":-1}`+"\n", 3)))
	f.Add([]byte(head + `{"event":"gap","room":"r","sub":"s","epoch":"e","seq":1,"to":-5}`))
	f.Fuzz(func(t *testing.T, file []byte) {
		h, err := ReadHistory(bytes.NewReader(file))
		if err != nil {
			return
		}
		report := Check(h)
		if report.Verdict == Clean && (report.FaultCount() > 0 || report.Delivered == 0) {
			t.Errorf("clean although it has faults or no deliveries: %v", report)
		}
		var again bytes.Buffer
		if err := h.Write(&again); err != nil {
			t.Fatal(err)
		}
		same, err := ReadHistory(&again)
		if err != nil {
			t.Fatalf("a written history can't be read: %v\n%s", err, again.Bytes())
		}
		if got := Check(same); got.String() != report.String() {
			t.Errorf("the report is\n%v\nand then\n%v", report, got)
		}
	})
}
