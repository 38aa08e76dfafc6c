package e2e

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// An attack is one malicious action. Its answer is a few words: "401 unauthorized" of an
// HTTP response, "error forbidden" of a frame, "close 1002" of the end of a socket,
// "welcome" of an admitted socket, "still works" of a socket that the attack did not
// affect, "cut" of a connection that was closed without an answer, and words of single
// attacks.
type attack struct {
	name string
	want string
	try  func(a *attacker) string
}

const (
	// attackTimeout bounds one attack. It is longer than any wait of the service, even on
	// a busy machine.
	attackTimeout = 2 * time.Minute
	// maxConcurrentAttacks is how many attacks run at once.
	maxConcurrentAttacks = 8

	signingSecret = "the secret that signs all tokens of these tests"
	shopKey       = "the-key-of-the-shop-0123456789"
	tillKey       = "the-key-of-the-till-0123456789"
	drumKey       = "the-key-of-the-drum-0123456789"
)

// An attackTarget is a server with every protection enabled. It is safe for concurrent
// use.
type attackTarget struct {
	*testkit.Server
	rsa        *rsa.PrivateKey
	ec         *ecdsa.PrivateKey
	publicKeys string // of both, as in AUTH_KEY_FILE
	auditFile  string

	mu            sync.Mutex
	attackerCount int
}

// startAttackTarget starts the server. Attackers connect from 127.0.0.2, whose forwarded
// headers it ignores, and from 127.0.0.1 as its trusted proxy.
func startAttackTarget(t *testing.T) *attackTarget {
	t.Helper()
	s := &attackTarget{auditFile: filepath.Join(t.TempDir(), "audit.jsonl")}
	var err error
	if s.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	if s.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	for _, public := range []any{s.rsa.Public(), s.ec.Public()} {
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		s.publicKeys += string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	keys := filepath.Join(t.TempDir(), "keys.pem")
	if err := os.WriteFile(keys, []byte(s.publicKeys), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Server = testkit.StartServer(t, map[string]string{
		"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL(),
		"AUTH_JWT_SECRET": signingSecret, "AUTH_KEY_FILE": keys, "AUTH_LEEWAY": "0s", "AUTH_TIMEOUT": "2s",
		"AUTH_ISSUER": "https://id.example.com", "AUTH_AUDIENCE": "chat,chat2",
		"API_KEYS": "shop:" + shopKey + ",till:" + tillKey + ",drum:" + drumKey, "TRUSTED_PROXIES": "127.0.0.1",
		"ALLOWED_ORIGINS": "https://app.example.com,https://*.pages.example.com",
		"ALLOWED_HOSTS":   "chat.example.com,127.0.0.1", "HEARTBEAT": "5s", "AUDIT_LOG": s.auditFile, "LOG_LEVEL": "debug",
		"MAX_CONNECTIONS": "200", "MAX_CONNECTIONS_PER_USER": "8", "MAX_CONNECTIONS_PER_IP": "40",
		"MAX_HANDSHAKE_RATE": "300", "MAX_ROOMS": "100", "QUEUE_BYTES": "700000",
		// Low enough for a server to reach them on a busy machine.
		"RATE_JOIN": "30", "RATE_HISTORY": "5", "RATE_USER_PUBLISH": "50", "RATE_API": "30",
	})
	return s
}

// A jsonObject has the fields of a JSON object.
type jsonObject = map[string]any

// claims returns the claims of a valid token with some of them changed. A change to nil
// removes the claim.
func claims(user string, change jsonObject) jsonObject {
	c := jsonObject{
		"sub": user, "exp": time.Now().Add(time.Hour).Unix(), "iss": "https://id.example.com", "aud": "chat",
		"rooms": jsonObject{"own.*": "rw", "shared": "rw", "news": "r", "inbox": "w"},
	}
	maps.Copy(c, change)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func base64URL(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // the tests encode only texts and numbers
	}
	return string(b)
}

// signHS256 returns a token with this header and payload, signed with a secret.
func signHS256(header, payload, secret string) string {
	text := base64URL(header) + "." + base64URL(payload)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	return text + "." + base64URL(string(mac.Sum(nil)))
}

// tokenOf returns a user's token, valid but for the changed claims.
func tokenOf(user string, change jsonObject) string {
	return signHS256(`{"alg":"HS256"}`, mustJSON(claims(user, change)), signingSecret)
}

// An attacker tries one attack. It is safe for concurrent use.
type attacker struct {
	*attackTarget
	ctx  context.Context
	user string // the attacker's own, with rights in some rooms

	mu    sync.Mutex // Protects following.
	conns []net.Conn
}

// attackAborted is the panic of an attack that could not be tried, and says why.
type attackAborted string

// runAttack tries an attack once and returns the answer.
func (target *attackTarget) runAttack(ctx context.Context, one attack) (got string) {
	target.mu.Lock()
	target.attackerCount++
	a := &attacker{attackTarget: target, user: fmt.Sprintf("mallory-%d", target.attackerCount)}
	target.mu.Unlock()
	var cancel context.CancelFunc
	a.ctx, cancel = context.WithTimeout(ctx, attackTimeout)
	defer cancel()
	defer func() {
		a.closeAll()
		switch why := recover().(type) {
		case nil:
		case attackAborted:
			got = string(why)
		default:
			got = fmt.Sprint("panic: ", why)
		}
	}()
	return one.try(a)
}

// closeAll closes all connections of the attacker.
func (a *attacker) closeAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		_ = c.Close()
	}
	a.conns = nil
}

// startAttacks starts attacks, up to atOnce at a time. It returns a function that waits
// for their ends and checks their answers, in subtests of this kind.
func (target *attackTarget) startAttacks(t *testing.T, atOnce int, attacks []attack) (check func(kind string)) {
	got, took := make([]string, len(attacks)), make([]time.Duration, len(attacks))
	var all sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	all.Go(func() {
		for i, one := range attacks {
			slots <- struct{}{}
			all.Go(func() {
				began := time.Now()
				got[i] = target.runAttack(t.Context(), one)
				took[i] = time.Since(began)
				<-slots
			})
		}
	})
	return func(kind string) {
		all.Wait()
		t.Run(kind, func(t *testing.T) {
			for i, one := range attacks {
				t.Run(one.name, func(t *testing.T) {
					if got[i] != one.want {
						t.Errorf("answered with %q, want %q, after %v", got[i], one.want, took[i])
					} else if took[i] > time.Second {
						t.Logf("after %v", took[i])
					}
				})
			}
		})
	}
}

// dial opens a connection from 127.0.0.2, an untrusted address.
func (a *attacker) dial() net.Conn { return a.dialFrom("127.0.0.2") }

func (a *attacker) dialFrom(address string) net.Conn {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	c, err := d.DialContext(a.ctx, "tcp", a.Addr)
	if err != nil {
		panic(attackAborted("no connection: " + err.Error()))
	}
	deadline, _ := a.ctx.Deadline()
	_ = c.SetDeadline(deadline)
	a.track(c)
	return c
}

func (a *attacker) track(c net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns = append(a.conns, c)
}

// roundTrip sends bytes, and reads an HTTP response.
func (a *attacker) roundTrip(request string) string {
	c := a.dial()
	_, _ = io.WriteString(c, request) // reading fails, too, when the connection is closed
	return readStatus(bufio.NewReader(c))
}

// pause lets some time pass.
func (a *attacker) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-a.ctx.Done():
		panic(attackAborted("no answer in time"))
	}
}

// readStatus reads a response, and returns its status with the code of its problem
// document.
func readStatus(br *bufio.Reader) string {
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		return connectionEnd(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	if err != nil {
		return connectionEnd(err)
	}
	var problem struct{ Code string }
	_ = json.Unmarshal(body, &problem) // net/http's own responses are not JSON
	return strings.TrimSpace(fmt.Sprint(res.StatusCode, " ", problem.Code))
}

// connectionEnd returns the answer for a connection that ended without one.
func connectionEnd(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "silence"
	}
	return "cut"
}

// request returns a whole HTTP request with these lines in its head.
func request(line, body string, lines ...string) string {
	if body != "" {
		lines = append(lines, fmt.Sprint("Content-Length: ", len(body)))
	}
	lines = append([]string{line + " HTTP/1.1", "Host: chat.example.com", "Connection: close"}, lines...)
	return strings.Join(lines, "\r\n") + "\r\n\r\n" + body
}
