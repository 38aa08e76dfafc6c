package http

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"switchyard/internal/admission"
	"switchyard/internal/audit"
	"switchyard/internal/auth"
	"switchyard/internal/hub"
	"switchyard/internal/ingress"
	"switchyard/internal/message"
	"switchyard/internal/protocol"
	"switchyard/internal/ratelimit"
)

// An apiKey admits a backend. Only its hash is kept.
type apiKey struct {
	name string
	hash [sha256.Size]byte
}

// apiKeys are all keys of the service.
type apiKeys []apiKey

func hashKeys(keys map[string]string) apiKeys {
	hashed := make(apiKeys, 0, len(keys))
	for name, key := range keys {
		hashed = append(hashed, apiKey{name, sha256.Sum256([]byte(key))})
	}
	return hashed
}

// An api serves backends: the calls under /v1.
type api struct {
	hub         *hub.Hub
	respond     *responder
	auth        *authenticator
	admission   *admission.Counter
	audit       *audit.Log
	keys        apiKeys
	keyLimiter  *ratelimit.Keyed // by API key
	readLimiter *ratelimit.Keyed // by user
	userLimits  UserLimits       // nil: none
	maxFrame    int
	memory      *Memory
	answers     *httpAnswers
	now         func() time.Duration
	cors        cors
}

func newAPI(s *Server) *api {
	return &api{
		hub: s.cfg.Hub, respond: s.respond, auth: s.auth, admission: s.admission, audit: s.audit,
		keys:        hashKeys(s.cfg.APIKeys),
		keyLimiter:  ratelimit.NewKeyed(ratelimit.PerSecond(s.cfg.Rates.API)),
		readLimiter: ratelimit.NewKeyed(ratelimit.PerSecond(s.cfg.Rates.History)),
		userLimits:  s.cfg.UserLimits,
		maxFrame:    s.cfg.MaxFrame, memory: s.memory, answers: &s.answers, now: s.cfg.now, cors: cors{ingress.NewOrigins(s.cfg.AllowedOrigins)},
	}
}

// routes adds the calls to a router.
func (a *api) routes(r chi.Router) {
	const messages = "/rooms/{room}/messages"
	r.With(a.cors.expose).Options(messages, a.respond.adapt(a.cors.preflight))
	r.With(a.cors.expose, a.requireReader).Get(messages, a.respond.adapt(a.history))
	r = r.With(a.requireKey, a.bodyMemory)
	r.Post("/messages", a.respond.adapt(a.publishBatch))
	r.Get("/rooms", a.respond.adapt(a.listRooms))
	r.Post(messages, a.respond.adapt(a.publish))
	r.Post("/rooms/{room}/signals", a.respond.adapt(a.signal))
	r.Get("/rooms/{room}/presence", a.respond.adapt(a.presence))
	r.Post("/users/{user}/disconnect", a.respond.adapt(a.disconnectUser))
}

// requireKey admits requests with an API key: Authorization: Bearer <key>.
func (a *api) requireKey(next http.Handler) http.Handler {
	return a.respond.adapt(func(w http.ResponseWriter, r *http.Request) error {
		if err := a.checkAPIKey(r, bearer(r)); err != nil {
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
func (a *api) checkAPIKey(r *http.Request, credential string) error {
	name, ok := a.keys.name(credential)
	if !ok {
		return errNoAPIKey
	}
	callerOf(r).key = name
	if wait := a.keyLimiter.Take(name, a.now(), 1); wait > 0 {
		return errAPIKeyRate(name, wait)
	}
	return nil
}

// requireReader admits requests with an API key, or with a token that may read the
// room.
func (a *api) requireReader(next http.Handler) http.Handler {
	return a.respond.adapt(func(w http.ResponseWriter, r *http.Request) error {
		credential := bearer(r)
		if err := a.checkAPIKey(r, credential); !errors.Is(err, errNoAPIKey) || credential == "" {
			if err == nil {
				next.ServeHTTP(w, r)
			}
			return err
		}
		identity, err := a.auth.verify(r.Context(), callerOf(r).Network, credential)
		if e := protocol.ErrorFor(err); err != nil && e.Code == protocol.CodeUnauthorized {
			return &protocol.Error{Code: e.Code, Message: "give one of API_KEYS, or a token that may read: " + e.Message}
		} else if err != nil {
			return err
		}
		callerOf(r).user = identity.User
		if wait := a.readLimiter.Take(identity.User, a.now(), 1); wait > 0 {
			return rateLimited("too many calls a second of this user; see RATE_HISTORY", wait)
		}
		callerOf(r).reader = readerOf(identity.User, callerOf(r).Network)
		if a.userLimits != nil {
			if wait := a.userLimits.AllowRead(callerOf(r).reader); wait > 0 {
				return rateLimited("too many reads a second, or too many bytes, of this user on all its connections; see RATE_USER_HISTORY", wait)
			}
		}
		if a.auth.banned(identity.User) {
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

// name returns the name of a key. It compares the key with every configured one
// in constant time, so that the time reveals nothing.
func (k apiKeys) name(given string) (string, bool) {
	if given == "" {
		return "", false
	}
	hash := sha256.Sum256([]byte(given))
	name, found := "", 0
	for i := range k {
		if subtle.ConstantTimeCompare(hash[:], k[i].hash[:]) == 1 {
			name, found = k[i].name, 1
		}
	}
	return name, found == 1
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

// publish stores one message: POST /v1/rooms/{room}/messages {data, id?}. The header
// Idempotency-Key may have the id instead.
func (a *api) publish(w http.ResponseWriter, r *http.Request) error {
	room, err := roomOf(r)
	if err != nil {
		return err
	}
	b, err := readBody(w, r, a.maxFrame)
	if err != nil {
		return err
	}
	d, err := protocol.DecodeDraft(b)
	if err != nil {
		return err
	}
	if d.ID, err = publishID(r, d.ID); err != nil {
		return err
	}
	d.Room, d.From = room, publisher(r)
	p, err := a.hub.Publish(r.Context(), d)
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
func (a *api) publishBatch(w http.ResponseWriter, r *http.Request) error {
	b, err := readBody(w, r, maxBatchBody)
	if err != nil {
		return err
	}
	drafts, err := protocol.DecodeBatch(b, a.maxFrame)
	if err != nil {
		return err
	}
	for i := range drafts {
		// The header can't stand for the ids of several messages. To ignore it would
		// store those without an id again when the call is repeated.
		if drafts[i].ID == "" && len(r.Header.Values(idempotencyKey)) > 0 {
			return &message.InvalidError{Field: idempotencyKey, Reason: "can't be used with a batch; give each message its id"}
		}
		drafts[i].From = publisher(r)
	}
	stored, err := a.hub.PublishBatch(r.Context(), drafts)
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
func (a *api) signal(w http.ResponseWriter, r *http.Request) error {
	room, err := roomOf(r)
	if err != nil {
		return err
	}
	b, err := readBody(w, r, a.maxFrame)
	if err != nil {
		return err
	}
	data, err := protocol.DecodeSignal(b)
	if err != nil {
		return err
	}
	a.hub.Signal(room, publisher(r), data)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// history reads part of a room: GET /v1/rooms/{room}/messages?after=&before=&limit=.
func (a *api) history(w http.ResponseWriter, r *http.Request) error {
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
	reader := callerOf(r).reader
	end, err := a.answers.begin(reader)
	if err != nil {
		return err
	}
	defer end()
	page, done, err := a.hub.History(r.Context(), callerOf(r).readerKey(), q)
	if err != nil {
		return err
	}
	defer done()
	defer a.answers.send(w)()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	body := protocol.HistoryBody(room, &page)
	if reader != "" && a.userLimits != nil {
		a.userLimits.ChargeRead(reader, len(body))
	}
	_, _ = w.Write(body) // an error means that the caller is gone
	return nil
}
