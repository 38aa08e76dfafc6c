package http

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"

	"switchyard/internal/auth"
	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// An apiKey admits a backend. Only its hash is kept.
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

// requireKey admits requests with an API key: Authorization: Bearer <key>.
func (s *Server) requireKey(next http.Handler) http.Handler {
	return s.adapt(func(w http.ResponseWriter, r *http.Request) error {
		if err := s.checkAPIKey(r, bearer(r)); err != nil {
			return err
		}
		next.ServeHTTP(w, r)
		return nil
	})
}

// errNoAPIKey refuses a call without an API key.
var errNoAPIKey = &protocol.Error{Code: protocol.CodeUnauthorized, Message: "give one of API_KEYS as Authorization: Bearer <key>"}

// checkAPIKey stores the name of the request's key in its caller. It returns an
// error if there is no valid key, or if the key made too many calls.
func (s *Server) checkAPIKey(r *http.Request, credential string) error {
	name, ok := s.keyName(credential)
	if !ok {
		return errNoAPIKey
	}
	callerOf(r).key = name
	if wait := s.apiKeyLimiter.Take(name, s.cfg.now(), 1); wait > 0 {
		return errAPIKeyRate(name, wait)
	}
	return nil
}

// requireReader admits requests with an API key, or with a token that may read the
// room.
func (s *Server) requireReader(next http.Handler) http.Handler {
	return s.adapt(func(w http.ResponseWriter, r *http.Request) error {
		credential := bearer(r)
		if err := s.checkAPIKey(r, credential); !errors.Is(err, errNoAPIKey) || credential == "" {
			if err == nil {
				next.ServeHTTP(w, r)
			}
			return err
		}
		identity, err := s.verify(r.Context(), credential)
		if e := protocol.ErrorFor(err); err != nil && e.Code == protocol.CodeUnauthorized {
			return &protocol.Error{Code: e.Code, Message: "give one of API_KEYS, or a token that may read: " + e.Message}
		} else if err != nil {
			return err
		}
		callerOf(r).user = identity.User
		if wait := s.readLimiter.Take(identity.User, s.cfg.now(), 1); wait > 0 {
			return rateLimited("too many calls a second of this user; see RATE_HISTORY", wait)
		}
		if s.banned(identity.User) {
			return errBanned
		}
		room, err := roomOf(r)
		if err != nil {
			return err
		}
		if !identity.May(room, auth.Read) {
			return forbidden(auth.Read)
		}
		next.ServeHTTP(w, r)
		return nil
	})
}

// bearer returns the bearer credential of a request. It returns "" for none, and
// for several, because it can't know which one a proxy on the way has checked.
func bearer(r *http.Request) string {
	lines := r.Header.Values("Authorization")
	if len(lines) != 1 {
		return ""
	}
	scheme, given, _ := strings.Cut(lines[0], " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(given)
}

// keyName returns the name of a key. It compares the key with every configured one
// in constant time, so that the time reveals nothing.
func (s *Server) keyName(given string) (string, bool) {
	if given == "" {
		return "", false
	}
	hash := sha256.Sum256([]byte(given))
	name, found := "", 0
	for i := range s.apiKeys {
		if subtle.ConstantTimeCompare(hash[:], s.apiKeys[i].hash[:]) == 1 {
			name, found = s.apiKeys[i].name, 1
		}
	}
	return name, found == 1
}

// maxBatchBody bounds the body of a batch, in bytes. Each message in it has the
// bound of a single one.
const maxBatchBody = 1 << 20

// readBody reads a request's JSON. It ignores Content-Type, because many callers do
// not set it: curl -d says that the body is a form.
func readBody(w http.ResponseWriter, r *http.Request, limit int) ([]byte, error) {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, errEncoding
	}
	if r.ContentLength > int64(limit) && r.Header.Get("Expect") != "" {
		// The client waits for 100 Continue, so it gets the refusal before it sends
		// the body. Other bodies are read to the bound: an answer to a client that
		// still writes would be lost with the connection.
		return nil, &http.MaxBytesError{Limit: int64(limit)}
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(limit)))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, fmt.Errorf("reading the body: %w", err)
	case err != nil:
		// The body was cut, or slower than requestTimeout.
		return nil, &protocol.Error{Code: protocol.CodeMalformed, Message: "the body did not come whole"}
	}
	return b, nil
}

// publisher returns the sender's name for messages of this request: that of its API
// key.
func publisher(r *http.Request) string { return "api:" + callerOf(r).key }

// A receipt is the answer to one publication.
type receipt struct {
	Room      message.Room  `json:"room"`
	Epoch     message.Epoch `json:"epoch"`
	Seq       message.Seq   `json:"seq"`
	ID        string        `json:"id"`
	Duplicate bool          `json:"duplicate"`
}

func receiptOf(p *message.Publication) receipt {
	return receipt{p.Room, p.Epoch, p.Seq, p.ID, p.Duplicate}
}

// publish stores one message: POST /v1/rooms/{room}/messages {data, id?}.
func (s *Server) publish(w http.ResponseWriter, r *http.Request) error {
	room, err := roomOf(r)
	if err != nil {
		return err
	}
	b, err := readBody(w, r, s.cfg.MaxFrame)
	if err != nil {
		return err
	}
	d, err := protocol.DecodeDraft(b)
	if err != nil {
		return err
	}
	d.Room, d.From = room, publisher(r)
	p, err := s.cfg.Hub.Publish(r.Context(), d)
	if err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	status := http.StatusCreated
	if p.Duplicate {
		status = http.StatusOK
	}
	return writeJSON(w, status, receiptOf(p))
}

// publishBatch stores several messages in one transaction, all or none: POST
// /v1/messages [{room, data, id?}, ...]. The receipts have the order of the
// messages.
func (s *Server) publishBatch(w http.ResponseWriter, r *http.Request) error {
	b, err := readBody(w, r, maxBatchBody)
	if err != nil {
		return err
	}
	drafts, err := protocol.DecodeBatch(b, s.cfg.MaxFrame)
	if err != nil {
		return err
	}
	for i := range drafts {
		drafts[i].From = publisher(r)
	}
	stored, err := s.cfg.Hub.PublishBatch(r.Context(), drafts)
	if err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	receipts := make([]receipt, len(stored))
	status := http.StatusOK
	for i, p := range stored {
		if receipts[i] = receiptOf(p); !p.Duplicate {
			status = http.StatusCreated
		}
	}
	return writeJSON(w, status, receipts)
}

// signal sends an event that is not stored: POST /v1/rooms/{room}/signals {data}.
func (s *Server) signal(w http.ResponseWriter, r *http.Request) error {
	room, err := roomOf(r)
	if err != nil {
		return err
	}
	b, err := readBody(w, r, s.cfg.MaxFrame)
	if err != nil {
		return err
	}
	data, err := protocol.DecodeSignal(b)
	if err != nil {
		return err
	}
	s.cfg.Hub.Signal(room, publisher(r), data)
	w.WriteHeader(http.StatusAccepted)
	return nil
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
	before, hasBefore, err := queryInt(r, "before", 1, protocol.MaxSeq)
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
	_, _ = w.Write(protocol.HistoryBody(room, &page)) // an error means that the caller is gone
	return nil
}

// pathParam returns a parameter of the path, decoded once. The router matches the
// raw path only if net/http kept it in RawPath. Otherwise the parameter is decoded
// already: a second decoding would turn %2541 into A, not %41.
func pathParam(r *http.Request, name string) (string, error) {
	value := chi.URLParam(r, name)
	if r.URL.RawPath == "" {
		return value, nil
	}
	return url.PathUnescape(value)
}

func roomOf(r *http.Request) (message.Room, error) {
	name, err := pathParam(r, "room")
	if err != nil {
		return "", &message.InvalidError{Field: "room", Reason: "has a broken percent escape"}
	}
	room, err := message.ParseRoom(name)
	if err != nil {
		return "", err
	}
	if room.Reserved() {
		return "", protocol.ErrReserved
	}
	return room, nil
}

// queryOne returns an optional query parameter. It refuses a malformed query and a
// repeated name: ignoring them would answer a different question.
func queryOne(r *http.Request, name string) (value string, given bool, err error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", false, &message.InvalidError{Field: "query", Reason: "must be name=value, joined by &, with whole percent escapes"}
	}
	switch values := query[name]; len(values) {
	case 0:
		return "", false, nil
	case 1:
		return values[0], true, nil
	}
	return "", false, &message.InvalidError{Field: name, Reason: "can't be given twice"}
}

// queryInt returns an optional query parameter that is an integer within bounds.
func queryInt(r *http.Request, name string, low, high int64) (int64, bool, error) {
	value, given, err := queryOne(r, name)
	if err != nil || !given {
		return 0, false, err
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < low || n > high {
		return 0, false, &message.InvalidError{Field: name, Reason: fmt.Sprintf("must be a whole number from %d to %d", low, high)}
	}
	return n, true, nil
}
