package load

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"switchyard/internal/message"
)

// scriptedHistory returns a history with one event for each line, a millisecond
// apart. Positions are epoch:seq, gaps epoch:from-to. The room is r, or the name
// after an @.
//
//	publish a            publish a other         publish a by p    ack a e:1
//	refuse a conflict    unknown a               duplicate a e:1
//	s joins e:0          s returns e:7           s leaves          s ends e:3
//	s gets a e:1         s gets a other e:1      s gap e:1-3 trimmed
//	s skips e:7 5        s skips f:7 5 epoch  s repeats e:5 7      confirm a e:1
func scriptedHistory(t *testing.T, lines string) *History {
	t.Helper()
	h := NewHistory()
	for i, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		line, room, found := strings.Cut(line, "@")
		if !found {
			room = "r"
		}
		e, err := parseEvent(strings.Fields(line))
		if err != nil {
			t.Fatalf("line %d, %q: %v", i+1, line, err)
		}
		e.At, e.Room = time.Duration(i+1)*time.Millisecond, message.Room(room)
		h.add(e)
	}
	return h
}

func parseEvent(words []string) (e event, err error) {
	data := "data"
	switch words[0] {
	case "publish":
		e = event{Kind: published, ID: words[1]}
		if len(words) == 4 {
			e.Publisher, words = words[3], words[:2]
		}
		data = strings.Join(words[2:], "") + "data"
	case "ack", "duplicate":
		e = event{Kind: acked, ID: words[1], Duplicate: words[0] == "duplicate"}
		err = e.parsePosition(words[len(words)-1])
		data = strings.Join(words[2:len(words)-1], "") + "data"
	case "confirm":
		e = event{Kind: lateAck, ID: words[1]}
		return e, e.parsePosition(words[2])
	case "refuse":
		e = event{Kind: refused, ID: words[1], Reason: words[2]}
		data = strings.Join(words[3:], "") + "data"
	case "unknown":
		e = event{Kind: unknown, ID: words[1]}
	default:
		return parseSubscriberEvent(words)
	}
	e.Hash = hashOf([]byte(data))
	return e, err
}

func parseSubscriberEvent(words []string) (e event, err error) {
	e.Sub = words[0]
	index := 2
	switch words[1] {
	case "joins":
		e.Kind = joined
	case "returns":
		e.Kind = rejoined
	case "leaves":
		e.Kind = left
		return e, nil
	case "ends":
		e.Kind = ended
	case "gets":
		index = len(words) - 1
		e.Kind, e.ID, e.Hash = delivered, words[2], hashOf([]byte(strings.Join(words[3:index], "")+"data"))
		e.ID, e.User, _ = strings.Cut(e.ID, "/")
	case "gap":
		e.Kind, e.Reason = gapDeclared, words[3]
	case "skips":
		e.Kind = skipped
	case "repeats":
		e.Kind = repeated
	default:
		return e, fmt.Errorf("%q is not a verb", words[1])
	}
	if e.Kind == skipped || e.Kind == repeated {
		_, err = fmt.Sscan(words[3], &e.To)
		e.Reason = strings.Join(words[4:], "")
	}
	if err == nil {
		err = e.parsePosition(words[index])
	}
	return e, err
}

func (e *event) parsePosition(s string) error {
	epoch, seqs, _ := strings.Cut(s, ":")
	e.Epoch = message.Epoch(epoch)
	from, to, isRange := strings.Cut(seqs, "-")
	if isRange {
		if _, err := fmt.Sscan(to, &e.To); err != nil {
			return err
		}
	}
	_, err := fmt.Sscan(from, &e.Seq)
	return err
}
