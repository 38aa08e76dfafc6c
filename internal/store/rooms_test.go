package store

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
)

func TestRoomsAreListedInPages(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		var lines []string
		for _, room := range []string{"a", "a.b", "a-b", "aa", "a:b", "B", "Z", "b", "zz", "_canary.x", "_canary.y", "_other", "-", "0", "a_b", "az"} {
			lines = append(lines, room+" id x")
		}
		n.mustAppendBatch(lines...)
		last := n.mustPublish("a", "2", "x")
		list := func(prefix string, after message.Room, limit int) string {
			t.Helper()
			rooms, more, err := n.ListRooms(t.Context(), prefix, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, r := range rooms {
				if r.First != 1 || r.Head < 1 || time.Since(r.LastAt) > time.Minute {
					t.Errorf("%+v", r)
				}
				if r.Room == "a" && (r.Head != 2 || !r.LastAt.Equal(last.At)) {
					t.Errorf("%+v after %+v", r, last)
				}
				names = append(names, string(r.Room))
			}
			if more {
				names = append(names, "…")
			}
			return strings.Join(names, " ")
		}
		for _, c := range []struct {
			prefix string
			after  message.Room
			limit  int
			want   string
		}{
			{"", "", 100, "- 0 B Z a a-b a.b a:b a_b aa az b zz"},
			{"", "", 4, "- 0 B Z …"},
			{"", "Z", 3, "a a-b a.b …"},
			{"", "B", 3, "Z a a-b …"}, // skips the service's own rooms
			{"", "_canary.x", 2, "a a-b …"},
			{"", "`", 2, "a a-b …"},
			{"", "b", 1, "zz"},
			{"", "zz", 1, ""},
			{"a", "", 100, "a a-b a.b a:b a_b aa az"},
			{"a", "a:b", 1, "a_b …"},
			{"a", "b", 9, ""},
			{"a", "B", 2, "a a-b …"},
			{"a.", "", 9, "a.b"},
			{"A", "", 9, ""},
			{"_", "", 9, "_canary.x _canary.y _other"},
			{"_canary.", "_canary.x", 9, "_canary.y"},
			{"_canary.", "", 1, "_canary.x …"},
		} {
			if got := list(c.prefix, c.after, c.limit); got != c.want {
				t.Errorf("prefix %q after %q limit %d: got %q, want %q", c.prefix, c.after, c.limit, got, c.want)
			}
		}
	})
}

// createRooms creates n rooms, each with a head of 1 and without its message.
// Their names end in numbers from 10000.
func (f *fixture) createRooms(prefix string, n int) {
	f.t.Helper()
	at := "1e6"
	if f.pg != nil {
		at = "now()"
	}
	f.exec(fmt.Sprintf(`WITH RECURSIVE n (i) AS (SELECT 10000 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO rooms (name, head, last_at) SELECT '%s' || i, 1, %s FROM n`, 10000+n-1, prefix, at))
}

func TestListsOfRoomsAreBounded(t *testing.T) {
	forEachDialect(t, func(t *testing.T, f *fixture) {
		n := f.startNode()
		for _, c := range []struct {
			prefix string
			after  message.Room
			limit  int
			field  string
		}{
			{"", "", 0, "limit"}, {"", "", 1001, "limit"}, {"", "", -1, "limit"},
			{"a b", "", 1, "prefix"}, {"%", "", 1, "prefix"}, {strings.Repeat("x", 129), "", 1, "prefix"},
			{"", "a\x00", 1, "after"}, {"", "\xff", 1, "after"},
		} {
			var invalid *message.InvalidError
			if _, _, err := n.ListRooms(t.Context(), c.prefix, c.after, c.limit); !errors.As(err, &invalid) || invalid.Field != c.field {
				t.Errorf("%+v: %v", c, err)
			}
		}
		f.createRooms("room-", 1001)
		if rooms, more, err := n.ListRooms(t.Context(), "", "", 1000); err != nil || !more || len(rooms) != 1000 || rooms[999].Room != "room-10999" {
			t.Errorf("%d rooms, more %v, %v", len(rooms), more, err)
		}
	})
}
