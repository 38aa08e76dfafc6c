package store

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// The password of the role is replaced in the server and in the file of DATABASE_URL
// while a node runs, and later the role itself.
func TestARotatedPasswordIsUsed(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgres(t)
	pg.RequirePasswords()
	pg.Exec("CREATE ROLE app LOGIN PASSWORD 'first'", "GRANT CREATE ON SCHEMA public TO app",
		"CREATE ROLE app2 LOGIN PASSWORD 'third' IN ROLE app")
	urlFor := func(user string) string { return strings.Replace(pg.URL(), "postgres@", user+"@", 1) }
	f := &fixture{t: t, url: urlFor("app:first"), pg: pg}
	f.migrate()
	var file atomic.Value
	file.Store(f.url)
	logs := new(testkit.Logs)
	n := f.startNode(func(c *Config) {
		c.Logger = logs.Logger()
		c.ReadURL = func() (string, error) {
			if url := file.Load().(string); url != "" {
				return url, nil
			}
			return "", errors.New("DATABASE_URL_FILE: the file is empty")
		}
	})
	n.mustPublish("room", "0", "x")
	works := func(id string) {
		t.Helper()
		pg.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switchyard'")
		testkit.EventuallyNil(t, "the log works with "+id, func() error {
			_, feed := n.Commits(t.Context(), "")
			_, read := n.Read(t.Context(), message.Range{Room: "room", Limit: 1, MaxBytes: 10})
			return errors.Join(n.publish("room", "ann", id, "x").Err, feed, read)
		})
	}
	pg.Exec("ALTER ROLE app PASSWORD 'second'")
	file.Store(urlFor("app:second"))
	works("the second password")
	file.Store("")
	works("the password read before")
	file.Store(urlFor("app2:third"))
	works("another role")
	if got := pg.Query("SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name = 'switchyard'"); got != "app2" {
		t.Errorf("connections are of %s", got)
	}
	if got := logs.Count("are kept as they were read before"); got != 1 {
		t.Errorf("%d lines about the empty file, want 1:\n%s", got, logs.String())
	}
	file.Store(strings.Replace(urlFor("app2:third"), "/postgres?", "/another?", 1))
	works("the database that it was opened with")
	if got := logs.Count("names another server or database now"); got != 1 {
		t.Errorf("%d lines about another database, want 1", got)
	}
	if strings.Contains(logs.String(), "third") {
		t.Error("the log shows a password")
	}
}

// A database that sleeps takes some seconds to answer the first connection.
func TestTheConnectTimeoutOfTheURLCounts(t *testing.T) {
	t.Parallel()
	for option, want := range map[string]time.Duration{
		"": connectTimeout, "connect_timeout=0": connectTimeout, "connect_timeout=1": time.Second,
		"connect_timeout=10": 10 * time.Second, "connect_timeout=31": maxConnectTimeout,
	} {
		c, err := pgx.ParseConfig("postgres://app@h/d?" + option)
		if err != nil {
			t.Fatal(err)
		}
		configureSession(c, nil, false, new(atomic.Bool))
		if c.ConnectTimeout != want {
			t.Errorf("%q: %v, want %v", option, c.ConnectTimeout, want)
		}
	}
	pg := testkit.Postgres(t)
	addr := fmt.Sprintf("127.0.0.1:%d", pg.Port())
	proxy := testkit.NewProxy(t, addr)
	proxy.Stall()
	f := &fixture{t: t, url: strings.Replace(pg.URL(), addr, proxy.Addr(), 1) + "&connect_timeout=30", pg: pg}
	migrated := make(chan error, 1)
	go func() { migrated <- Migrate(t.Context(), f.url) }()
	select {
	case err := <-migrated:
		t.Fatalf("gave up: %v", err)
	case <-time.After(connectTimeout + 100*time.Millisecond):
		proxy.Resume()
	}
	if err := testkit.Receive(t, "the migration", migrated); err != nil {
		t.Fatal(err)
	}
	// An idle worker may need as long to connect again, and never longer than a publish waits.
	n := f.startNode()
	for _, w := range workersOf(n.logUnderTest) {
		if w.pingTimeout != 30*time.Second {
			t.Errorf("a ping may take %v", w.pingTimeout)
		}
	}
	n.mustPublish("room", "1", "x")
}

// Of several hosts, each has a port of its own: 5432 where the URL names none.
func TestAHostWithoutAPortHasTheDefaultPort(t *testing.T) {
	t.Parallel()
	pg := testkit.Postgres(t)
	url := strings.Replace(pg.URL(), "@127.0.0.1:", "@127.0.0.2,127.0.0.1:", 1) // where nothing listens
	c, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(hosts(c)), fmt.Sprintf("[127.0.0.2:5432 127.0.0.1:%d]", pg.Port()); got != want {
		t.Errorf("%s names %s, want %s", url, got, want)
	}
	f := &fixture{t: t, url: url, pg: pg}
	f.migrate()
	f.startNode().mustPublish("room", "1", "x")
}
