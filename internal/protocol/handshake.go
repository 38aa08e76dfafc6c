package protocol

import (
	"net/http"
	"strings"
)

// These may be in a client's handshake besides Subprotocol. A browser can set
// no headers, so each secret may come in an entry of Sec-WebSocket-Protocol;
// other clients use a header. The service echoes neither, and reads neither
// from the URL, which proxies log.
const (
	bearerPrefix  = "bearer."
	sessionPrefix = "session."
	// SessionHeader carries the session of a client that can set headers.
	SessionHeader = "Switchyard-Session"
)

// MaxSessionLength is the longest session secret in bytes.
const MaxSessionLength = 128

// A Handshake is what a client's handshake carries. Absent fields are empty.
type Handshake struct {
	// Token and Session are secrets: never log them.
	Token, Session string
	// RejoinRooms asks the service to rejoin the session's rooms.
	RejoinRooms bool
}

// MaxQueryNames is how many names a query may have.
const MaxQueryNames = 32

// ReadHandshake reads what a handshake carries. An error names the field and
// its bound, and repeats nothing that the client sent.
func ReadHandshake(r *http.Request) (h Handshake, err error) {
	subprotocolValues := func(prefix string) (found []string) {
		for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
			for p := range strings.SplitSeq(line, ",") {
				if value, ok := strings.CutPrefix(strings.TrimSpace(p), prefix); ok {
					found = append(found, value)
				}
			}
		}
		return found
	}
	tokens := subprotocolValues(bearerPrefix)
	for _, line := range r.Header.Values("Authorization") {
		// RFC 9110 §11.1: the scheme is case-insensitive.
		if scheme, token, _ := strings.Cut(line, " "); strings.EqualFold(scheme, "bearer") {
			tokens = append(tokens, strings.TrimSpace(token))
		}
	}
	if h.Token, err = atMostOne("token", tokens); err != nil {
		return Handshake{}, err
	}
	if len(tokens) > 0 && (h.Token == "" || len(h.Token) > MaxTokenLength) {
		return Handshake{}, invalidError("token", "must be of 1 to 8192 bytes")
	}
	sessions := append(subprotocolValues(sessionPrefix), r.Header.Values(SessionHeader)...)
	if h.Session, err = atMostOne("session", sessions); err != nil {
		return Handshake{}, err
	}
	if len(sessions) > 0 && !CheckSession(h.Session) {
		return Handshake{}, invalidError("session", "must be 1 to 128 of A-Z a-z 0-9 . _ -")
	}
	if strings.Count(r.URL.RawQuery, "&") >= MaxQueryNames {
		return Handshake{}, invalidError("query", "must have at most 32 names")
	}
	h.RejoinRooms = r.URL.Query().Get("rooms") == "1"
	return h, nil
}

// atMostOne returns the only value, or "" if there is none. It refuses two: a
// proxy on the way may have checked either.
func atMostOne(field string, values []string) (string, error) {
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	}
	return "", invalidError(field, "must be given once")
}

// CheckSession reports whether s is a well-formed session secret: 1 to
// MaxSessionLength bytes that are allowed both in a subprotocol entry and in a
// header.
func CheckSession(s string) bool {
	if s == "" || len(s) > MaxSessionLength {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}
