package audit

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// An Event is what a line reports. The names are a closed set, and public.
type Event string

// The events of the audit log.
const (
	TokenRefused  Event = "token_refused"
	KeyRefused    Event = "key_refused"
	OriginRefused Event = "origin_refused"
	HostRefused   Event = "host_refused"
	RightRefused  Event = "right_refused"
	LimitReached  Event = "limit_reached"
	UserBanned    Event = "user_removed" // a public name from before it was called a ban
	DrainBegun    Event = "drain_begun"
	DrainCanceled Event = "drain_taken_back" // a public name from before it was called a cancel
)

var events = []Event{TokenRefused, KeyRefused, OriginRefused, HostRefused, RightRefused, LimitReached, UserBanned, DrainBegun, DrainCanceled}

const (
	// maxField bounds each text of a line, in bytes.
	maxField = 256
	// timeLayout is RFC 3339 in UTC with microseconds.
	timeLayout = "2006-01-02T15:04:05.000000Z"
)

// A Line is one line of the audit log. It contains no secret and no message.
type Line struct {
	Time  string `json:"time"`
	Audit string `json:"audit"` // always "v1"; distinguishes it from lines of the log
	Node  string `json:"node"`
	Event Event  `json:"event"`
	// Actor is the user, or api:<name> for an API key; empty if unknown.
	Actor string `json:"who,omitempty"`
	// From is the client's address.
	From string `json:"from,omitempty"`
	// Subject is the request, the banned user, or the scope of a drain.
	Subject string `json:"what,omitempty"`
	// Given is the refused origin or host.
	Given     string `json:"given,omitempty"`
	Reason    string `json:"why,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	// Count is the number of similar lines that this line summarizes.
	Count int `json:"count,omitempty"`
}

// key returns the line without what differs between similar lines.
func (l *Line) key() Line {
	k := *l
	k.RequestID = ""
	return k
}

// shorten truncates the texts of the line to maxField bytes each.
func (l *Line) shorten() {
	for _, text := range []*string{&l.Actor, &l.From, &l.Subject, &l.Given, &l.Reason} {
		*text = truncate(*text, maxField)
	}
}

// encode returns the line as one line of JSON. It escapes characters that do not
// print, so that no name can end the line, color a terminal or reverse
// its text.
func (l *Line) encode() []byte {
	b, err := json.Marshal(l)
	if err != nil {
		panic(err) // strings and a number always encode
	}
	var out strings.Builder
	for _, r := range string(b) {
		switch {
		case r >= 0x20 && r < 0x7f || r >= 0x80 && unicode.IsPrint(r):
			out.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	out.WriteByte('\n')
	return []byte(out.String())
}

// truncate returns at most n bytes of s, without cutting a character.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
