package http

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// An apiKey lets a backend in. Only its hash is kept.
type apiKey struct {
	name string
	hash [sha256.Size]byte
}

func hashKeys(keys map[string]string) []apiKey {
	hashed := make([]apiKey, 0, len(keys))
	for name, key := range keys {
		hashed = append(hashed, apiKey{name, sha256.Sum256([]byte(key))})
	}
	return hashed
}

// requireKey lets in who bears an API key: Authorization: Bearer <key>.
func (s *Server) requireKey(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, ok := s.keyName(r)
		if !ok {
			w.Header().Set("WWW-Authenticate", `Bearer realm="switchyard"`)
			s.refuse(w, r, &protocol.Error{Code: protocol.CodeUnauthorized, Message: "give one of API_KEYS as Authorization: Bearer <key>"})
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), apiNameKey, name)))
	})
}

// keyName compares with every key in constant time, so that time tells nothing.
func (s *Server) keyName(r *http.Request) (string, bool) {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") {
		return "", false
	}
	hash := sha256.Sum256([]byte(given))
	name, found := "", 0
	for i := range s.keys {
		if subtle.ConstantTimeCompare(hash[:], s.keys[i].hash[:]) == 1 {
			name, found = s.keys[i].name, 1
		}
	}
	return name, found == 1
}

// publish stores one message: POST /v1/rooms/{room}/messages {data, id?}.
func (s *Server) publish(w http.ResponseWriter, r *http.Request) error {
	room, err := roomOf(r)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(s.cfg.MaxFrame)))
	if err != nil {
		return fmt.Errorf("reading the body: %w", err)
	}
	d, err := protocol.DecodeDraft(body)
	if err != nil {
		return err
	}
	d.Room = room
	name, _ := r.Context().Value(apiNameKey).(string)
	d.From = "api:" + name
	p, err := s.cfg.Hub.Publish(r.Context(), d)
	if err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	status := http.StatusCreated
	if p.Duplicate {
		status = http.StatusOK
	}
	return writeJSON(w, status, struct {
		Room      message.Room  `json:"room"`
		Epoch     message.Epoch `json:"epoch"`
		Seq       message.Seq   `json:"seq"`
		ID        string        `json:"id"`
		Duplicate bool          `json:"duplicate"`
	}{p.Room, p.Epoch, p.Seq, p.ID, p.Duplicate})
}

// history reads part of a room: GET /v1/rooms/{room}/messages?after=&before=&limit=.
func (s *Server) history(w http.ResponseWriter, r *http.Request) error {
	room, err := roomOf(r)
	if err != nil {
		return err
	}
	q := message.Range{Room: room, Before: protocol.MaxSeq}
	after, hasAfter, err := queryInt(r, "after", 0, protocol.MaxSeq)
	if err != nil {
		return err
	}
	before, hasBefore, err := queryInt(r, "before", 0, protocol.MaxSeq)
	if err != nil {
		return err
	}
	limit, _, err := queryInt(r, "limit", 1, protocol.MaxHistory)
	if err != nil {
		return err
	}
	switch {
	case hasAfter && hasBefore:
		return &message.InvalidError{Field: "before", Reason: "can't be given together with after"}
	case hasAfter:
		q.After, q.Before = message.Seq(after), 0
	case hasBefore:
		q.Before = message.Seq(before)
	}
	q.Limit = int(limit)
	page, err := s.cfg.Hub.History(r.Context(), q)
	if err != nil {
		return fmt.Errorf("%w: %w", message.ErrUnavailable, err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(protocol.HistoryBody(room, &page)) // the caller is gone: nobody to tell
	return nil
}

func roomOf(r *http.Request) (message.Room, error) {
	name, err := url.PathUnescape(chi.URLParam(r, "room"))
	if err != nil {
		return "", &message.InvalidError{Field: "room", Reason: "has a broken percent escape"}
	}
	room, err := message.ParseRoom(name)
	if err != nil {
		return "", err
	}
	if room.Reserved() {
		return "", &protocol.Error{Code: protocol.CodeForbidden, Message: "rooms that begin with _ belong to the service"}
	}
	return room, nil
}

// queryInt reads an optional number of the query, in bounds.
func queryInt(r *http.Request, name string, low, high int64) (int64, bool, error) {
	if !r.URL.Query().Has(name) {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(r.URL.Query().Get(name), 10, 64)
	if err != nil || n < low || n > high {
		return 0, false, &message.InvalidError{Field: name, Reason: fmt.Sprintf("must be a whole number from %d to %d", low, high)}
	}
	return n, true, nil
}
