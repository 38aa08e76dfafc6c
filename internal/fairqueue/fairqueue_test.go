package fairqueue

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The queue does what a list does in which each turn takes the first item of the reader that
// was served longest ago.
func TestReadersTakeTurns(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		type item struct{ reader, number int }
		var q Queue[item]
		var readers []int // in the order of their turns
		items := map[int][]item{}
		number := 0
		readerOf := func() int { return rapid.IntRange(1, 4).Draw(rt, "reader") }
		drop := func(i item) {
			if items[i.reader] = items[i.reader][1:]; len(items[i.reader]) > 0 {
				readers = append(readers, i.reader)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"push": func(*rapid.T) {
				reader := readerOf()
				number++
				if len(items[reader]) == 0 {
					readers = append(readers, reader)
				}
				items[reader] = append(items[reader], item{reader, number})
				q.Push(reader, item{reader, number})
			},
			"pop": func(rt *rapid.T) {
				if q.IsEmpty() {
					rt.Skip("nothing waits")
				}
				want := items[readers[0]][0]
				readers = readers[1:]
				drop(want)
				if next, got := q.Next(), q.Pop(); next != want || got != want {
					rt.Fatalf("next %v, popped %v, want %v", next, got, want)
				}
			},
			"remove": func(rt *rapid.T) {
				gone := item{readerOf(), rapid.IntRange(1, number+1).Draw(rt, "number")}
				i := slices.Index(items[gone.reader], gone)
				if got := q.Remove(gone.reader, gone); got != (i >= 0) {
					rt.Fatalf("%v is removed: %v, want %v", gone, got, i >= 0)
				}
				if i < 0 {
					return
				}
				if items[gone.reader] = slices.Delete(items[gone.reader], i, i+1); len(items[gone.reader]) == 0 {
					readers = slices.DeleteFunc(readers, func(r int) bool { return r == gone.reader })
				}
			},
			"": func(rt *rapid.T) {
				if q.IsEmpty() != (len(readers) == 0) || len(q.waiting) != len(readers) {
					rt.Fatalf("empty %v, %d readers are known, want %d", q.IsEmpty(), len(q.waiting), len(readers))
				}
			},
		})
	})
}
