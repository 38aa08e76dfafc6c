package client

import "testing"

// OnFrame gets what handlers do not get: duplicates, messages after skipped ones,
// acks, and the number of the connection.
func TestOnFrameSeesEachFrameAsItCame(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		var got, seen eventLog
		c := s.newClient(Options{OnFrame: func(f Frame) {
			if f.Room != "r" {
				t.Errorf("a frame of room %q", f.Room)
			}
			seen.add("%d %s %s/%d-%d%s", f.Connection, f.Type, f.Epoch, f.Seq, f.To, f.ID)
		}})
		got.join(c, "r", Now())
		p := s.accept()
		p.acceptJoin(1)
		p.message(2, "a", "null")
		p.message(2, "a", "null")
		p.message(4, "c", "null")
		p.acceptJoin(4)
		p.send(`{"type":"gap","room":"r","epoch":"e","from":3,"to":3,"reason":"trimmed"}`)
		p.send(`{"type":"heartbeat","at":"2026-01-02T15:04:05Z"}`)
		p.closeWith(0)
		p = s.accept()
		p.acceptJoin(4)
		answer := publish(c, "r", "x")
		f := p.expect("publish")
		p.ack(f, 5)
		<-answer
		c.Leave("r")
		p.expect("leave")
		p.send(`{"type":"left","room":"r","epoch":"e","seq":5,"first":1}`)
		seen.want(t, "1 joined e/1-0", "1 message e/2-0a", "1 message e/2-0a", "1 message e/4-0c",
			"1 joined e/4-0", "1 gap e/0-3", "2 joined e/4-0", "2 ack e/5-0x", "2 left e/5-0")
		got.want(t, "joined 1", "e/2", "joined 4", "gap e 3-3 trimmed", "joined 4")
	})
}
