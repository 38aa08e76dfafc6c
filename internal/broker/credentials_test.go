package broker

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/testkit"
)

// A urlFile is the file of REDIS_URL.
type urlFile struct {
	mu   sync.Mutex
	text string
	err  error
}

func (f *urlFile) write(text string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.text, f.err = text, err
}

func (f *urlFile) read() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text, f.err
}

// The password of the Redis user is rotated, and then the user is replaced by another
// one: the file of REDIS_URL is written again, and new connections log in by it. While
// the file can't be used, those read before are kept.
func TestARotatedPasswordIsUsedByNewConnections(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t)
	allow := func(user, password string) {
		server.Do(t, "ACL", "SETUSER", user, "reset", "on", ">"+password, "~*", "&*", "+@all")
	}
	allow("app", "first")
	url := func(user, password string) string { return "redis://" + user + ":" + password + "@" + server.Addr() }
	file, logs := &urlFile{text: url("app", "first")}, &testkit.Logs{}
	cfg := Config{URL: file.text, Reread: file.read, Prefix: testkit.RedisPrefix(), Logger: logs.Logger()}
	n := openNode(t, cfg)
	n.mustSubscribe(t, "lobby")
	opts, _, err := Options(cfg)
	if err != nil {
		t.Fatal(err)
	}
	commands := redis.NewUniversalClient(opts)
	defer commands.Close()
	works := func(what string) {
		t.Helper()
		server.Do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		server.Do(t, "CLIENT", "KILL", "TYPE", "pubsub")
		publishUntilReceived(t, n, n, "lobby", what)
		testkit.EventuallyNil(t, what+": a command", func() error { return commands.Ping(testkit.Within(t, testkit.Timeout)).Err() })
	}
	works("first")
	allow("app", "second")
	file.write(url("app", "second"), nil)
	works("second")
	allow("other", "third")
	file.write(url("other", "third"), nil)
	server.Do(t, "ACL", "DELUSER", "app")
	works("third")
	for _, half := range []struct {
		text string
		err  error
	}{
		{"", errors.New("the file is empty")}, {"redis://other:th", nil}, {"redis://other:hush@127.0.0.1:1", nil}, {url("other", "hush") + "/7", nil},
	} {
		file.write(half.text, half.err)
		works("while the file has " + half.text)
	}
	if got := logs.Count("the file of REDIS_URL cannot be used"); got != 2 { // by the broker, and by the client for commands
		t.Errorf("%d warnings about the file, want one of each:\n%s", got, logs)
	}
	if strings.Contains(logs.String(), "hush") || strings.Contains(logs.String(), "third") {
		t.Errorf("the log has a password:\n%s", logs)
	}
	allow("other", "fourth")
	file.write(url("other", "fourth"), nil)
	works("fourth")
}

// Sentinels have users of their own.
func TestSentinelsPasswordsAreReadAgain(t *testing.T) {
	c, err := parseURL("redis+sentinel://a:b@h/m?sentinel_username=c&sentinel_password=d")
	if err != nil {
		t.Fatal(err)
	}
	c.follow(Config{Reread: func() (string, error) {
		return "redis+sentinel://a2:b2@h/m?sentinel_username=c2&sentinel_password=d2", nil
	}}.withDefaults())
	for want, provider := range map[string]*redis.Options{"a2 b2": &c.server, "c2 d2": &c.sentinel} {
		user, password, err := provider.CredentialsProviderContext(t.Context())
		if got := user + " " + password; err != nil || got != want {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
}
