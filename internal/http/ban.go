package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"switchyard/internal/audit"
	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// Bans keep users away from all nodes. Implementations are safe for concurrent use.
type Bans interface {
	// Ban bans a user for a duration, and makes every node close the user's
	// connections by an event for [Server.CloseUser]. This node gets its
	// event before Ban returns. An error that wraps
	// message.ErrSharedStateUnavailable means that the other nodes will learn of
	// the ban later.
	Ban(ctx context.Context, user string, d time.Duration) error
	// Banned returns for how much longer a user is banned, and whether at all. It
	// does not block.
	Banned(user string) (time.Duration, bool)
}

// CloseUser closes the connections of a banned user. It does not block.
func (s *Server) CloseUser(user string) { s.admission.CloseUser(user) }

const (
	// minBan is the shortest ban, and the default. A node that misses the event
	// still finds a ban of this length.
	minBan = 5 * time.Second
	// banTimeout bounds the notification of the other nodes.
	banTimeout = 3 * time.Second
	// maxBanBody bounds the body of the call, in bytes.
	maxBanBody = 1 << 10
)

// maxBan is the longest ban: 30 days, longer than any reasonable token.
const maxBan = 720 * time.Hour

// disconnectUser closes a user's connections on every node and bans the user: POST
// /v1/users/{user}/disconnect {for?}. The user's tokens stay valid, so the ban must
// last until they have expired.
func (a *api) disconnectUser(w http.ResponseWriter, r *http.Request) error {
	user, err := pathParam(r, "user")
	if err != nil || user == "" || len(user) > message.MaxUserLength || !utf8.ValidString(user) {
		return &message.InvalidError{Field: "user", Reason: "must be 1 to 128 bytes of UTF-8"}
	}
	d, err := readBan(w, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), banTimeout)
	defer cancel()
	closed := a.admission.CountOf(user)
	err = a.auth.bans.Ban(ctx, user, d)
	status := http.StatusOK
	switch {
	case errors.Is(err, message.ErrSharedStateUnavailable):
		status = http.StatusAccepted
	case err != nil:
		return err
	}
	c := callerOf(r)
	a.audit.Record(&audit.Line{
		Event: audit.UserBanned, Actor: publisher(r), From: c.Addr.String(), Subject: user, RequestID: c.id,
		Reason: fmt.Sprintf("banned for %v, %d connections closed here", d, closed),
	})
	return writeJSON(w, status, struct {
		User   string `json:"user"`
		Closed int    `json:"closed"`
		For    string `json:"for"`
	}{user, closed, d.String()})
}

// readBan reads the duration of the ban from the body.
func readBan(w http.ResponseWriter, r *http.Request) (time.Duration, error) {
	b, err := readBody(w, r, maxBanBody)
	if err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return minBan, nil
	}
	var body struct {
		For *string `json:"for"`
	}
	if err := json.Unmarshal(b, &body); err != nil {
		return 0, &protocol.Error{Code: protocol.CodeMalformed, Message: `the body is {"for": "10m"}, or nothing`}
	}
	if body.For == nil {
		return minBan, nil
	}
	d, err := time.ParseDuration(*body.For)
	if err != nil || d < minBan || d > maxBan {
		return 0, &message.InvalidError{Field: "for", Reason: "must be a duration from 5s to 720h, such as 10m"}
	}
	return d, nil
}
