package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"switchyard/internal/message"
)

// Bounds on patterns. They bound the memory of an identity and the time of one
// check.
const (
	maxPatterns  = 256
	maxWildcards = 8 // in one pattern
)

// rights are the rights that one pattern grants, one bit each.
type rights uint8

const (
	rightRead  rights = 1 << iota // r: join, history, presence
	rightWrite                    // w: publish, signal
)

// Permissions say which rooms a user may use, and how. The zero value allows none.
// It is immutable, so that connections may share it.
//
// A pattern is the name of a room in which each * matches any run of characters,
// including an empty one. Nothing else is special: * does not stop at dots or colons,
// and ** means the same as *. Where several patterns match a room, their rights add
// up; no pattern takes rights away. Rooms that begin with _ match no pattern.
type Permissions struct {
	// grants are the exact names, sorted, followed by the patterns with wildcards.
	grants []grant
	exact  int // the number of exact names
}

type grant struct {
	pattern string
	rights  rights
}

// ParsePermissions reads pattern:rights, separated by commas, as in
// "public.*:r,lobby:rw". A room's name may contain colons, so the last one
// separates the rights.
func ParsePermissions(text string) (Permissions, error) {
	var grants []grant
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		colon := strings.LastIndexByte(item, ':')
		if colon < 0 {
			return Permissions{}, fmt.Errorf("pattern %d has no rights: write %s:r or %s:rw", len(grants)+1, item, item)
		}
		g, err := newGrant(strings.TrimSpace(item[:colon]), strings.TrimSpace(item[colon+1:]))
		if err != nil {
			return Permissions{}, fmt.Errorf("pattern %d %w", len(grants)+1, err)
		}
		grants = append(grants, g)
	}
	if len(grants) == 0 {
		return Permissions{}, errors.New("there is no pattern; write pattern:rights, separated by commas")
	}
	return newPermissions(grants)
}

// newGrant checks one pattern and its rights. Its errors continue a sentence that
// begins with the pattern. They quote neither, because both may come from a token.
func newGrant(pattern, letters string) (grant, error) {
	if pattern == "" || len(pattern) > message.MaxRoomLength {
		return grant{}, fmt.Errorf("must be 1 to %d bytes long", message.MaxRoomLength)
	}
	if strings.Count(pattern, "*") > maxWildcards {
		return grant{}, fmt.Errorf("has more than %d *", maxWildcards)
	}
	if _, err := message.ParseRoom(strings.ReplaceAll(pattern, "*", "x")); err != nil {
		return grant{}, errors.New("must be of A-Z a-z 0-9 . _ - : and *")
	}
	if message.Room(pattern).Reserved() {
		return grant{}, errors.New("begins with _: such rooms belong to the service")
	}
	var given rights
	switch letters {
	case "r":
		given = rightRead
	case "w":
		given = rightWrite
	case "rw", "wr":
		given = rightRead | rightWrite
	default:
		return grant{}, errors.New("must give the rights r, w or rw")
	}
	return grant{pattern, given}, nil
}

// newPermissions sorts the grants, and keeps them.
func newPermissions(grants []grant) (Permissions, error) {
	if len(grants) > maxPatterns {
		return Permissions{}, fmt.Errorf("there are %d patterns, over %d", len(grants), maxPatterns)
	}
	slices.SortFunc(grants, func(a, b grant) int {
		if a.isExact() != b.isExact() {
			if a.isExact() {
				return -1
			}
			return 1
		}
		return strings.Compare(a.pattern, b.pattern)
	})
	p := Permissions{grants: grants}
	for i, g := range grants {
		if i > 0 && g.pattern == grants[i-1].pattern {
			return Permissions{}, errors.New("a pattern is there twice")
		}
		if g.isExact() {
			p.exact++
		}
	}
	return p, nil
}

func (g grant) isExact() bool { return strings.IndexByte(g.pattern, '*') < 0 }

// allow reports whether a pattern that matches the room grants the right. It runs
// for each publish, and allocates nothing.
func (p Permissions) allow(room string, right rights) bool {
	i, found := slices.BinarySearchFunc(p.grants[:p.exact], room, func(g grant, room string) int {
		return strings.Compare(g.pattern, room)
	})
	if found && p.grants[i].rights&right != 0 {
		return true
	}
	for _, g := range p.grants[p.exact:] {
		if g.rights&right != 0 && matches(g.pattern, room) {
			return true
		}
	}
	return false
}

// matches reports whether a pattern with a * matches a name. It searches once for
// the text between two *, from the end of the text before. The leftmost match
// leaves the longest remainder, so no backtracking is needed.
func matches(pattern, name string) bool {
	before, rest, _ := strings.Cut(pattern, "*")
	name, ok := strings.CutPrefix(name, before)
	for ok {
		middle, more, another := strings.Cut(rest, "*")
		if !another {
			return strings.HasSuffix(name, rest)
		}
		_, name, ok = strings.Cut(name, middle)
		rest = more
	}
	return false
}
