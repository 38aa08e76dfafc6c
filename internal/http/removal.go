package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// Removals keep users out, on all nodes.
type Removals interface {
	// Bar keeps a user out for a time and has every node close what it has of
	// the user, by a notice that comes to [Server.Notify]: this one before it
	// returns. An error that wraps message.ErrAway says that the others will
	// learn of it later.
	Bar(ctx context.Context, user string, d time.Duration) error
	// Barred says for how long a user is kept out, and whether at all. It does
	// not block.
	Barred(user string) (time.Duration, bool)
}

const (
	// leastBar is how long a user is kept out where nothing is asked for: a
	// node that gets no notice still finds the bar.
	leastBar = 5 * time.Second
	// barTimeout bounds telling the other nodes.
	barTimeout = 3 * time.Second
	// removalBody bounds the body of the call, in bytes.
	removalBody = 1 << 10
)

// longestBar is what Removals take: 30 days, longer than any sane token.
const longestBar = 720 * time.Hour

// barred says whether a user is kept out.
func (s *Server) barred(user string) bool {
	if user == "" {
		return false
	}
	_, barred := s.cfg.Removals.Barred(user)
	return barred
}

// disconnectUser closes what a user has open on every node, and keeps the user
// out for a while: POST /v1/users/{user}/disconnect {for?}. A token stays good,
// so that who is not to come back is kept out until it has ended.
func (s *Server) disconnectUser(w http.ResponseWriter, r *http.Request) error {
	user, err := pathParam(r, "user")
	if err != nil || user == "" || len(user) > message.MaxUser || !utf8.ValidString(user) {
		return &message.InvalidError{Field: "user", Reason: "must be 1 to 128 bytes of UTF-8"}
	}
	d, err := readBar(w, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), barTimeout)
	defer cancel()
	closed := s.connectionsOf(user)
	err = s.cfg.Removals.Bar(ctx, user, d)
	status := http.StatusOK
	switch {
	case errors.Is(err, message.ErrAway):
		status = http.StatusAccepted
	case err != nil:
		return err
	}
	c := callerOf(r)
	s.audit.note(&auditLine{
		Event: auditRemoved, Who: publisher(r), From: c.addr.String(), What: user, RequestID: c.id,
		Why: fmt.Sprintf("kept out for %v, %d connections closed here", d, closed),
	})
	return writeJSON(w, status, struct {
		User   string `json:"user"`
		Closed int    `json:"closed"`
		For    string `json:"for"`
	}{user, closed, d.String()})
}

// readBar reads how long a user is to be kept out.
func readBar(w http.ResponseWriter, r *http.Request) (time.Duration, error) {
	b, err := body(w, r, removalBody)
	if err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return leastBar, nil
	}
	var asked struct {
		For *string `json:"for"`
	}
	if err := json.Unmarshal(b, &asked); err != nil {
		return 0, &protocol.Error{Code: protocol.CodeMalformed, Message: `the body is {"for": "10m"}, or nothing`}
	}
	if asked.For == nil {
		return leastBar, nil
	}
	d, err := time.ParseDuration(*asked.For)
	if err != nil || d < leastBar || d > longestBar {
		return 0, &message.InvalidError{Field: "for", Reason: "must be a duration from 5s to 720h, such as 10m"}
	}
	return d, nil
}

// connectionsOf returns how many connections a user has here.
func (s *Server) connectionsOf(user string) int { return len(s.socketsOf(user)) }

func (s *Server) socketsOf(user string) []*socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.roster.users[user]; a != nil {
		return append([]*socket(nil), a.sockets...)
	}
	return nil
}

// remove closes what a user has open here.
func (s *Server) remove(user string) {
	for _, k := range s.socketsOf(user) {
		k.conn.CloseWith(protocol.CloseRemoved)
	}
}
