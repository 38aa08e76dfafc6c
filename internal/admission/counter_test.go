package admission

import (
	"errors"
	"net/netip"
	"testing"

	"switchyard/internal/protocol"
	"switchyard/internal/testkit"
)

var errPlanted = errors.New("planted")

// A recordedConn records how it was closed.
type recordedConn struct{ code protocol.CloseCode }

func (c *recordedConn) CloseWith(code protocol.CloseCode) bool {
	c.code = code
	return true
}

// At most 256 connections are being rejected at once, as docs/limits.md says.
func TestRejectionsAreBounded(t *testing.T) {
	c := NewCounter(Limits{Connections: 1, Rejecting: MaxRejecting})
	slots := []*Slot{c.Admit(netip.Prefix{})}
	for range 256 {
		slots = append(slots, c.Admit(netip.Prefix{}))
	}
	for i, slot := range slots {
		if slot == nil || (slot.CloseCode() == 0) != (i == 0) {
			t.Fatalf("connection %d: %+v, want the first to be admitted and the others rejected", i, slot)
		}
	}
	if slot := c.Admit(netip.Prefix{}); slot != nil {
		t.Error("257 connections are being rejected")
	}
	if err := slots[0].RejectOrError(protocol.CloseUnauthorized, "unauthorized", errPlanted); !errors.Is(err, errPlanted) {
		t.Errorf("an admitted connection was rejected beyond the bound: %v", err)
	}
	for _, slot := range slots {
		slot.Release(nil)
	}
	if c.Count() != 0 || c.rejecting != 0 {
		t.Errorf("%d counted, %d as rejected", c.Count(), c.rejecting)
	}
}

// A connection that is rejected after it was admitted gives its place by address and by
// user to another.
func TestARejectedConnectionTakesNoPlace(t *testing.T) {
	c := NewCounter(Limits{Connections: 9, Rejecting: 9, PerUser: 1, PerAddress: 1})
	network := netip.MustParsePrefix("198.51.100.1/32")
	first := c.Admit(network)
	if !first.AssignUser("ann") {
		t.Fatal("the first connection of a user is refused")
	}
	if second := c.Admit(network); second.Result() != "too_many_address" || second.CloseCode() != protocol.CloseTooManyConnections {
		t.Errorf("the second of an address: %+v", second)
	}
	if other := c.Admit(netip.Prefix{}); other.AssignUser("ann") {
		t.Error("a user has more connections than the limit")
	}
	if err := first.RejectOrError(protocol.CloseUnauthorized, "unauthorized", errPlanted); err != nil || first.CloseCode() != protocol.CloseUnauthorized {
		t.Errorf("%v, %+v", err, first)
	}
	if next := c.Admit(network); next.Result() != "ok" || !next.AssignUser("ann") {
		t.Errorf("the next connection: %+v", next)
	}
}

func TestABanClosesTheConnectionsOfAUser(t *testing.T) {
	c := NewCounter(Limits{Connections: 9})
	var conns [3]recordedConn
	for i, user := range []string{"ann", "ben", "ann"} {
		slot := c.Admit(netip.Prefix{})
		slot.AssignUser(user)
		slot.Register(&conns[i])
		if i == 2 {
			slot.Release(&conns[i])
		}
	}
	if got := c.CountOf("ann"); got != 1 {
		t.Errorf("ann has %d connections, want 1", got)
	}
	c.CloseUser("ann")
	if conns[0].code != protocol.CloseRemoved || conns[1].code != 0 || conns[2].code != 0 {
		t.Errorf("closed %+v, want the first alone", conns)
	}
}

func TestEmptiedReportsTheLastRelease(t *testing.T) {
	c := NewCounter(Limits{Connections: 9})
	testkit.Receive(t, "nobody", c.Emptied())
	one, two := c.Admit(netip.Prefix{}), c.Admit(netip.Prefix{})
	emptied := c.Emptied()
	one.Release(nil)
	select {
	case <-emptied:
		t.Error("a connection is left")
	default:
	}
	two.Release(nil)
	testkit.Receive(t, "the last release", emptied)
}
