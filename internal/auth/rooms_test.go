package auth

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"switchyard/internal/message"
)

func TestPatternsThatMatch(t *testing.T) {
	tests := []struct{ pattern, room string }{
		{"lobby", "lobby"},
		{"*", "a"},
		{"*", "orders.7:open_now-x"},
		{"orders.*", "orders.7"},
		{"orders.*", "orders."},
		{"orders.*", "orders.7.items"},
		{"orders.*", "orders.a:b"},
		{"*.7", "orders.7"},
		{"*.7", ".7"},
		{"user:*:inbox", "user:ada:inbox"},
		{"user:*:inbox", "user::inbox"},
		{"user:*:inbox", "user:a:inbox:inbox"},
		{"a*b*c", "abc"},
		{"a*b*c", "aXbYbZc"},
		{"a*b*c", "abbcbc"},
		{"**", "a"},
		{"a**", "a"},
		{"a**b", "axb"},
		{"*a*", "a"},
		{"*ab*ab*", "abab"},
		{"ORDERS", "ORDERS"},
	}
	for _, tt := range tests {
		if !may(t, tt.pattern+":r", tt.room, Join) {
			t.Errorf("%s does not match %s", tt.pattern, tt.room)
		}
	}
}

func TestPatternsThatDoNotMatch(t *testing.T) {
	tests := []struct{ pattern, room string }{
		{"lobby", "Lobby"},
		{"lobby", "lobby2"},
		{"lobby", "my-lobby"},
		{"orders.*", "orders"},
		{"orders.*", "ordersX7"}, // a dot is not special
		{"orders.*", "xorders.7"},
		{"*.7", "orders.77"},
		{"user:*:inbox", "user:inbox"}, // the two colons are separate
		{"user:*:inbox", "user:ada:inboxes"},
		{"a*b*c", "acb"},
		{"ab*ba", "aba"}, // a character matches only once
		{"*ab*ab*", "aab"},
		{"a*a", "a"},
		{"*", "_canary.n1"},
		{"*", "_"},
		{"*canary*", "_canary.n1"},
		{"*", ""},
	}
	for _, tt := range tests {
		if may(t, tt.pattern+":rw", tt.room, Join) {
			t.Errorf("%s matches %q", tt.pattern, tt.room)
		}
	}
}

func may(t *testing.T, patterns, room string, action Action) bool {
	t.Helper()
	rooms, err := ParsePermissions(patterns)
	if err != nil {
		t.Fatal(err)
	}
	identity := Identity{Permissions: rooms}
	return identity.May(message.Room(room), action)
}

// A regular expression means the same, more slowly.
func TestPatternsMeanWhatARegularExpressionDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`[ab.:]{0,3}(\*[ab.:]{0,3}){1,5}`).Draw(t, "pattern")
		room := rapid.StringMatching(`[ab.:]{1,14}`).Draw(t, "room")
		want := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*") + "$").MatchString(room)
		if got := matches(pattern, room); got != want {
			t.Fatalf("%s on %s: %v, want %v", pattern, room, got, want)
		}
	})
}

func TestRightsByAction(t *testing.T) {
	for letters, allowed := range map[string]map[Action]bool{
		"r":  {Join: true, Read: true},
		"w":  {Publish: true, Signal: true},
		"rw": {Join: true, Read: true, Publish: true, Signal: true},
		"wr": {Join: true, Read: true, Publish: true, Signal: true},
	} {
		for action := range Action(8) {
			if got := may(t, "a:"+letters, "a", action); got != allowed[action] {
				t.Errorf("%s: %v %v, want %v", letters, action, got, allowed[action])
			}
		}
	}
	if may(t, "*:rw", "a", 255) || may(t, "*:rw", "a", 0) {
		t.Error("an invalid action is allowed")
	}
	if new(Identity).May("a", Join) {
		t.Error("the zero Identity may join")
	}
}

func TestActionsHaveNames(t *testing.T) {
	if got := fmt.Sprint(Join, Read, Publish, Signal, Action(0), Action(9)); got != "join read publish signal unknown unknown" {
		t.Error(got)
	}
}

// The rights of several matching patterns add up, in any order. None takes rights
// away.
func TestRightsAddUp(t *testing.T) {
	for _, patterns := range []string{"orders.*:r,orders.7:w", "orders.7:w,orders.*:r", "*:r,*.7:w", "*.7:w,o*:r,orders.7:r"} {
		if !may(t, patterns, "orders.7", Join) || !may(t, patterns, "orders.7", Publish) || may(t, patterns, "orders.8", Publish) {
			t.Errorf("%s: rights did not add up", patterns)
		}
	}
}

func TestManyPatterns(t *testing.T) {
	var items []string
	for i := range maxPatterns {
		star := ""
		if i%2 == 0 {
			star = "*"
		}
		items = append(items, fmt.Sprintf("room-%d.%s:r", i, star))
	}
	list := strings.Join(items, ", ")
	for i := range maxPatterns {
		exact := fmt.Sprintf("room-%d.", i)
		if !may(t, list, exact, Join) || may(t, list, exact+"x", Join) != (i%2 == 0) {
			t.Errorf("room %d", i)
		}
	}
}

func TestListsOfPatterns(t *testing.T) {
	if !may(t, " public.* : r , lobby:rw,, orders:*:rw ,", "orders:7", Publish) {
		t.Error("the rights do not begin at the last colon")
	}
	tests := []struct{ list, says string }{
		{"", "there is no pattern"},
		{" , ", "there is no pattern"},
		{"lobby", "lobby:rw"},
		{"lobby:", "r, w or rw"},
		{"lobby:x", "r, w or rw"},
		{"a:r,lobby:rwx", "pattern 2"},
		{":r", "1 to 128 bytes"},
		{strings.Repeat("x", 129) + ":r", "1 to 128 bytes"},
		{"a b:r", "must be of"},
		{"a/b:r", "must be of"},
		{"a?:r", "must be of"},
		{"ä:r", "must be of"},
		{"_x:r", "begins with _"},
		{"_*:rw", "begins with _"},
		{"********* :r", "more than 8 *"},
		{"a:r,b:r,a:w", "twice"},
		{"a*:r,b:r,a*:r", "twice"},
		{strings.Repeat("a:r,", maxPatterns+1), "over 256"},
	}
	for _, tt := range tests {
		if _, err := ParsePermissions(tt.list); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%.40q: %v, want one that says %q", tt.list, err, tt.says)
		}
	}
}

// May is called for each publish.
func TestMayAllocatesNothing(t *testing.T) {
	rooms, err := ParsePermissions("news:r,orders.*:rw,user:*:inbox:r,a*b*c*d:w")
	if err != nil {
		t.Fatal(err)
	}
	identity := &Identity{Permissions: rooms}
	if n := testing.AllocsPerRun(100, func() {
		for _, room := range []message.Room{"news", "orders.7", "user:ada:inbox", "abcd", "nothing.at.all", "_canary"} {
			identity.May(room, Publish)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
