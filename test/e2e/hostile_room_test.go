package e2e

import (
	"fmt"
	"strings"
)

// permissionAttacks try each operation in rooms with each right: an attacker's token
// permits reading and writing in own.*, reading in news, writing in inbox, and nothing in
// other rooms.
func permissionAttacks() (all []attack) {
	const no = "error forbidden"
	for _, row := range []struct {
		verb, frame               string
		both, reads, writes, none string
	}{
		{"joins", `{"type":"join","ref":"x","room":%q}`, "joined", "joined", no, no},
		{"resumes in", `{"type":"join","ref":"x","room":%q,"after":0}`, "joined", "joined", no, no},
		{"reads the history of", `{"type":"history","ref":"x","room":%q}`, "history", "history", no, no},
		{"requests the presence of", `{"type":"presence","ref":"x","room":%q}`, "presence", "presence", no, no},
		{"publishes in", `{"type":"publish","ref":"x","room":%q,"data":1}`, "ack", no, "ack", no},
		{"signals in", `{"type":"signal","ref":"x","room":%q,"data":1}`, "still works", no, "still works", no},
	} {
		for room, want := range map[string]string{
			"own.a": row.both, "news": row.reads, "inbox": row.writes, "vault": row.none, "own": row.none, "_canary.x": row.none,
		} {
			all = append(all, attack{fmt.Sprintf("an attacker %s %s", row.verb, room), want, func(a *attacker) string {
				w := a.connectAsOwnUser()
				for {
					w.send(fmt.Sprintf(row.frame, room))
					if row.verb == "signals in" && want == "still works" {
						return w.stillWorks() // a signal has no answer
					}
					if got := w.answer(); got != "error unavailable" { // the machine is busy
						return got
					}
				}
			}})
		}
	}
	for _, row := range []struct{ name, room, want string }{
		{"history is read over HTTP in a room of one's own", "own.a", "200"},
		{"history is read over HTTP where only writing is allowed", "inbox", "403 forbidden"},
		{"history is read over HTTP without the right", "vault", "403 forbidden"},
		{"history is read over HTTP of a reserved room", "_canary.x", "403 forbidden"},
		{"history is read over HTTP by an escaped name", "%76ault", "403 forbidden"},
		{"history is read over HTTP by a path with ..", "own.a%2F..%2Fvault", "400 invalid"},
		{"history is read over HTTP by a twice escaped name", "%2576ault", "400 invalid"},
		{"history is read over HTTP by a name with a NUL", "own.a%00", "400 invalid"},
	} {
		all = append(all, attack{row.name, row.want, func(a *attacker) string {
			return a.roundTrip(request("GET /v1/rooms/"+row.room+"/messages", "", "Authorization: Bearer "+tokenOf(a.user, nil)))
		}})
	}
	return append(all, roomNameAttacks()...)
}

// roomNameAttacks are names that may be mistaken for another room's.
func roomNameAttacks() (all []attack) {
	for _, row := range []struct{ name, room, want string }{
		{"a name is empty", ``, "error invalid"},
		{"a name is a byte too long", strings.Repeat("x", 129), "error invalid"},
		{"a name is a star", `*`, "error invalid"},
		{"a name is the pattern", `own.*`, "error invalid"},
		{"a name goes up", `own.a/../vault`, "error invalid"},
		{"a name has a NUL", `own.a\u0000`, "error invalid"},
		{"a name has a line break", `own.a\nvault`, "error invalid"},
		{"a name looks like another", "own.\u0430", "error invalid"},
		{"a name has a space at its end", `own.a `, "error invalid"},
		{"a name is SQL", `own.a'; DROP TABLE messages; --`, "error invalid"},
		{"a name is a channel of Redis", `{b01}`, "error invalid"},
		{"a name is reserved", `_canary`, "error forbidden"},
		{"a name is written in capitals", `OWN.a`, "error forbidden"},
		{"a name begins as ours do", `own`, "error forbidden"},
		{"a name ends as ours do", `x.own.a`, "error forbidden"},
	} {
		all = append(all, attack{"a room: " + row.name, row.want, func(a *attacker) string {
			w := a.connectAsOwnUser()
			w.send(`{"type":"join","ref":"x","room":"` + row.room + `"}`)
			return w.answer()
		}})
	}
	return all
}

// messageCount joins a room, and returns how many messages it has.
func (s *rawSocket) messageCount(room string) string {
	s.send(`{"type":"join","room":"` + room + `","ref":"x"}`)
	f, end := s.readUntil(func(f *receivedFrame) bool { return f.Ref == "x" })
	if end != "" || f.Type != "joined" {
		return end + f.Type + f.Code
	}
	return fmt.Sprint(f.Seq, " messages")
}

// impersonationAttacks act as another user, ada.
func impersonationAttacks() []attack { return append(messageIDAttacks(), sessionAttacks()...) }

// messageIDAttacks reuse the ids of messages.
func messageIDAttacks() []attack {
	publish := func(id, data string) string {
		return `{"type":"publish","ref":"x","room":"shared","id":"` + id + `","data":` + data + `}`
	}
	return []attack{
		{"an id of another user's message is used again, for other data", "2 messages, of ada and mallory", func(a *attacker) string {
			w, id := a.connectWithToken(tokenOf("ada", nil)), "id-"+a.user
			mine := a.connectAsOwnUser()
			mine.send(`{"type":"join","ref":"x","room":"shared"}`)
			if got := mine.answer(); got != "joined" {
				return got
			}
			w.send(publish(id, `"hers"`))
			if got := w.answer(); got != "ack" {
				return got
			}
			mine.send(publish(id, `"mine"`))
			from := map[string]string{}
			_, end := mine.readUntil(func(f *receivedFrame) bool {
				if f.Type == "message" && f.ID == id {
					from[string(f.Data)] = f.From
				}
				return len(from) == 2
			})
			if from[`"hers"`] != "ada" || from[`"mine"`] != a.user {
				return fmt.Sprint(end, from)
			}
			return "2 messages, of ada and mallory"
		}},
		{"an id of another user's message is used again, to learn of it", "ack, not a duplicate", func(a *attacker) string {
			w, id := a.connectWithToken(tokenOf("ada", nil)), "id-"+a.user
			w.send(publish(id, `1`))
			if got := w.answer(); got != "ack" {
				return got
			}
			mine := a.connectAsOwnUser()
			mine.send(publish(id, `1`))
			f, end := mine.readUntil(func(f *receivedFrame) bool { return f.Ref == "x" })
			if end != "" || f.Type != "ack" || f.Duplicate {
				return fmt.Sprint(end, f)
			}
			return "ack, not a duplicate"
		}},
		{"an id of the attacker's is used again, for other data", "ack, error conflict", func(a *attacker) string {
			w := a.connectAsOwnUser()
			w.send(publish("twice", "1"))
			first := w.answer()
			w.send(publish("twice", "2"))
			return first + ", " + w.answer()
		}},
	}
}

// sessionAttacks connect or publish as another user.
func sessionAttacks() []attack {
	return []attack{
		{"a stolen session is offered with the thief's token", "not resumed, and ada's socket still works", func(a *attacker) string {
			token := tokenOf("ada", nil)
			w, refused := a.open(upgradeRequest("Authorization: Bearer " + token))
			if refused != "" {
				return refused
			}
			welcome, _ := w.readUntil(func(f *receivedFrame) bool { return f.Type == "welcome" })
			thief, refused := a.open(strings.Replace(
				upgradeRequest("Switchyard-Session: "+welcome.Session, "Authorization: Bearer "+tokenOf(a.user, nil)), "/ws", "/ws?rooms=1", 1))
			if refused != "" {
				return refused
			}
			got, end := thief.readUntil(func(f *receivedFrame) bool { return f.Type == "welcome" })
			if end != "" || got.Resumed || got.Session == welcome.Session {
				return fmt.Sprint("resumed ", end, got)
			}
			if still := w.stillWorks(); still != "still works" {
				return still
			}
			return "not resumed, and ada's socket still works"
		}},
		{"a session is guessed", "not resumed", func(a *attacker) string {
			w, refused := a.open(upgradeRequest("Switchyard-Session: 1", "Authorization: Bearer "+tokenOf(a.user, nil)))
			if refused != "" {
				return refused
			}
			if got, end := w.readUntil(func(f *receivedFrame) bool { return f.Type == "welcome" }); end != "" || got.Resumed || got.Session == "1" {
				return fmt.Sprint(end, got)
			}
			return "not resumed"
		}},
		{"a message names another sender", "from mallory", func(a *attacker) string {
			w := a.connectAsOwnUser()
			w.send(`{"type":"join","ref":"x","room":"own.from"}`)
			if got := w.answer(); got != "joined" {
				return got
			}
			w.send(`{"type":"publish","room":"own.from","data":1,"id":"` + a.user + `","from":"ada","user":"ada","seq":1,"at":"2001-01-01T00:00:00Z"}`)
			f, end := w.readUntil(func(f *receivedFrame) bool { return f.Type == "message" && f.ID == a.user })
			if end != "" || f.From != a.user {
				return fmt.Sprint(end, f)
			}
			return "from mallory"
		}},
		{"a banned user connects again", "200, close 4003, close 4003, 403 forbidden", func(a *attacker) string {
			w := a.connectAsOwnUser()
			removed := a.roundTrip(request("POST /v1/users/"+a.user+"/disconnect", `{"for":"5m"}`, "Authorization: Bearer "+shopKey))
			if removed == "202" { // the shared state was slow to answer; the ban takes effect all the same
				removed = "200"
			}
			_, end := w.readUntil(func(*receivedFrame) bool { return false })
			return removed + ", " + end + ", " + a.tryToken(tokenOf(a.user, nil))
		}},
	}
}
