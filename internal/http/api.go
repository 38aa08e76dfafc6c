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

// checkAPIKey notes whose key a call comes with, unless there is none, or it has
// called too often.
func (s *Server) checkAPIKey(r *http.Request, credential string) error {
	name, ok := s.keyName(credential)
	if !ok {
		return errNoAPIKey
	}
	callerOf(r).key = name
	if wait := s.apiKeyLimiter.take(name, s.cfg.now(), 1); wait > 0 {
		return errAPIKeyRate(name, wait)
	}
	return nil
}

// requireReader lets in who bears an API key, or a token that may read the
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
		if wait := s.readLimiter.take(identity.User, s.cfg.now(), 1); wait > 0 {
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

// bearer returns the credential of a request; "" for none, or for several, of
// which nobody knows which one a proxy on the way has checked.
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

// keyName compares with every key in constant time, so that time tells nothing.
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

// maxBatchBody bounds the body of a batch, in bytes; each message of it has the
// bound of any other.
const maxBatchBody = 1 << 20

// readBody reads a request's JSON. Its Content-Type is not looked at: what callers
// send is JSON whatever it says, and curl -d says it is a form.
func readBody(w http.ResponseWriter, r *http.Request, limit int) ([]byte, error) {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, errEncoding
	}
	if r.ContentLength > int64(limit) && r.Header.Get("Expect") != "" {
		// Who asks before sending is told before sending. Others are read to the
		// bound: an answer while they write would be lost with the connection.
		return nil, &http.MaxBytesError{Limit: int64(limit)}
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(limit)))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, fmt.Errorf("reading the body: %w", err)
	case err != nil:
		// Cut, or slower than the bound on requests: the caller's doing.
		return nil, &protocol.Error{Code: protocol.CodeMalformed, Message: "the body did not come whole"}
	}
	return b, nil
}

// publisher names the caller's key as the sender of messages.
func publisher(r *http.Request) string { return "api:" + callerOf(r).key }

// A receipt answers one publication.
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

// publishBatch stores several messages, all or none: POST /v1/messages
// [{room, data, id?}, ...]. The receipts come in their order.
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

// signal hands on an event that is not stored: POST /v1/rooms/{room}/signals
// {data}.
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
	_, _ = w.Write(protocol.HistoryBody(room, &page)) // the caller is gone: nobody to tell
	return nil
}

// pathParam returns what stands in the path for a name, decoded once. The router
// looks at the path as it was sent only where net/http kept that: where it did
// not, the parts are decoded already, and %2541 is %41, not A.
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

// queryOne reads an optional value of the query. A query that can't be read, or
// says a thing twice, is refused: leaving it out would answer something else
// than was asked.
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

// queryInt reads an optional number of the query, in bounds.
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
