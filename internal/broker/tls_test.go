package broker

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

func TestTLS(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedisTLS(t)
	own := "&cert_file=" + server.CertFile + "&key_file=" + server.KeyFile
	n := openNode(t, Config{URL: "rediss://" + server.TLSAddr() + "?ca_file=" + server.CAFile + own})
	n.mustSubscribe(t, "r")
	carries(t, n, n, "r", "in private")

	for query, says := range map[string]string{
		own[1:]:                        "certificate signed by unknown authority",
		"ca_file=" + server.CAFile:     "certificate required",
		"skip_verify=false&" + own[1:]: "certificate signed by unknown authority",
	} {
		var out logs
		wrong := openNode(t, Config{
			URL: "rediss://" + server.TLSAddr() + "?" + query, Logger: slog.New(slog.NewTextHandler(&out, nil)),
		})
		eventually(t, "a line that says "+says, func() bool { return strings.Contains(out.String(), says) })
		if wrong.Up() {
			t.Errorf("%s: up", query)
		}
	}
	// The certificate is for 127.0.0.1: by another name it is another server.
	var out logs
	_, port, _ := strings.Cut(server.TLSAddr(), ":")
	strange := openNode(t, Config{
		URL: "rediss://localhost:" + port + "?ca_file=" + server.CAFile + own, Logger: slog.New(slog.NewTextHandler(&out, nil)),
	})
	eventually(t, "a line that names the host", func() bool { return strings.Contains(out.String(), "wanted to match localhost") })
	if strange.Up() {
		t.Error("another host: up")
	}
	trusting := openNode(t, Config{URL: "rediss://" + server.TLSAddr() + "?skip_verify=true" + own})
	eventually(t, "up without a check", trusting.Up)
}

func TestAUserWithAPasswordOverTLS(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedisTLS(t, "--tls-auth-clients", "no")
	server.Do(t, "ACL", "SETUSER", "app", "on", ">hunter2", "&sy:*", "+publish", "+subscribe", "+unsubscribe", "+ping")
	server.Do(t, "ACL", "SETUSER", "default", "off")
	at := "@" + server.TLSAddr() + "?ca_file=" + server.CAFile
	n := openNode(t, Config{URL: "rediss://app:hunter2" + at})
	n.mustSubscribe(t, "r")
	carries(t, n, n, "r", "as app")

	// What the user may not do is told, and not tried over and over.
	var out logs
	strange := openNode(t, Config{
		URL: "rediss://app:hunter2" + at, Prefix: "other:", Logger: slog.New(slog.NewTextHandler(&out, nil)),
	})
	strange.Publish("r", []byte("x"))
	eventually(t, "the refusal of the publication", func() bool {
		return strange.metric(t, "broker_dropped_total", "failed") == 1 && strings.Contains(out.String(), "NOPERM")
	})
	if err := strange.Subscribe(within(t, patience), "r"); !errors.Is(err, ErrDown) {
		t.Errorf("Subscribe = %v, want ErrDown", err)
	}
	eventually(t, "some more attempts", func() bool { return strange.metric(t, "broker_reconnects_total", "") >= 3 })
	if got := strings.Count(out.String(), `err="receive: NOPERM`); got != 1 {
		t.Errorf("%d lines tell of the refused subscription, want 1:\n%s", got, out.String())
	}
	if strings.Contains(out.String(), "hunter") {
		t.Errorf("the log shows the password:\n%s", out.String())
	}
}

// Pub/sub stores nothing: a full Redis carries on.
func TestARedisThatIsOutOfMemory(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t, "--maxmemory", "1", "--maxmemory-policy", "noeviction")
	if got := server.Refusal(t, "SET", "k", "v"); !strings.Contains(got, "OOM") {
		t.Fatalf("SET into a full Redis: %s, want OOM", got)
	}
	a, b := openNode(t, Config{URL: server.URL()}), openNode(t, Config{URL: server.URL()})
	b.mustSubscribe(t, "r")
	traffic := startStream(t, a, "r")
	flowing(t, b, traffic.rooms, 100)
	traffic.end(t, b)
	if got := a.metric(t, "broker_dropped_total", ""); got != 0 {
		t.Errorf("%v dropped", got)
	}
}
