package broker

import (
	"errors"
	"maps"
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
	publishUntilReceived(t, n, n, "r", "in private")

	for query, want := range map[string]string{
		own[1:]:                        "certificate signed by unknown authority",
		"ca_file=" + server.CAFile:     "certificate required",
		"skip_verify=false&" + own[1:]: "certificate signed by unknown authority",
	} {
		var out testkit.Logs
		wrong := openNode(t, Config{
			URL: "rediss://" + server.TLSAddr() + "?" + query, Logger: out.Logger(),
		})
		testkit.Eventually(t, "a line that says "+want, func() bool { return strings.Contains(out.String(), want) })
		if wrong.Up() {
			t.Errorf("%s: up", query)
		}
	}
	// The certificate is for 127.0.0.1, not for another name of the server.
	var out testkit.Logs
	_, port, _ := strings.Cut(server.TLSAddr(), ":")
	wrongHost := openNode(t, Config{
		URL: "rediss://localhost:" + port + "?ca_file=" + server.CAFile + own, Logger: out.Logger(),
	})
	testkit.Eventually(t, "a line that names the host", func() bool { return strings.Contains(out.String(), "wanted to match localhost") })
	if wrongHost.Up() {
		t.Error("another host: up")
	}
	trusting := openNode(t, Config{URL: "rediss://" + server.TLSAddr() + "?skip_verify=true" + own})
	testkit.Eventually(t, "up without a check", trusting.Up)
}

func TestAUserWithAPasswordOverTLS(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedisTLS(t, "--tls-auth-clients", "no")
	server.Do(t, "ACL", "SETUSER", "app", "on", ">hunter2", "&sy:*", "+publish", "+subscribe", "+unsubscribe", "+ping")
	server.Do(t, "ACL", "SETUSER", "default", "off")
	at := "@" + server.TLSAddr() + "?ca_file=" + server.CAFile
	n := openNode(t, Config{URL: "rediss://app:hunter2" + at})
	n.mustSubscribe(t, "r")
	publishUntilReceived(t, n, n, "r", "as app")

	// A missing permission is logged once, not at each attempt.
	var out testkit.Logs
	forbidden := openNode(t, Config{
		URL: "rediss://app:hunter2" + at, Prefix: "other:", Logger: out.Logger(),
	})
	forbidden.Publish("r", []byte("x"))
	testkit.Eventually(t, "the refusal of the broadcast", func() bool {
		return forbidden.metric(t, "broker_dropped_total", "failed") == 1 && strings.Contains(out.String(), "NOPERM")
	})
	if err := forbidden.Subscribe(testkit.Within(t, testkit.Timeout), "r"); !errors.Is(err, ErrDown) {
		t.Errorf("Subscribe = %v, want ErrDown", err)
	}
	testkit.Eventually(t, "some more attempts", func() bool { return forbidden.metric(t, "broker_reconnects_total", "") >= 3 })
	if got := out.Count(`error="receive: NOPERM`); got != 1 {
		t.Errorf("%d lines report the refused subscription, want 1:\n%s", got, out.String())
	}
	if strings.Contains(out.String(), "hunter") {
		t.Errorf("the log shows the password:\n%s", out.String())
	}
}

// Pub/sub stores nothing, so a full Redis does not affect it.
func TestPubSubWorksWhenRedisIsOutOfMemory(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedis(t, "--maxmemory", "1", "--maxmemory-policy", "noeviction")
	if got := server.DoExpectingError(t, "SET", "k", "v"); !strings.Contains(got, "OOM") {
		t.Fatalf("SET into a full Redis: %s, want OOM", got)
	}
	a, b := openNode(t, Config{URL: server.URL()}), openNode(t, Config{URL: server.URL()})
	b.mustSubscribe(t, "r")
	traffic := startStream(t, a, "r")
	waitForMore(t, b, traffic.rooms, 100)
	traffic.stopAndWait(t, b)
	if got := a.metric(t, "broker_dropped_total", ""); got != 0 {
		t.Errorf("%v dropped", got)
	}
}

// Certificates are renewed beneath a running service, its own and those of the
// server, by a new authority. They are mounted as Kubernetes mounts a secret.
func TestRenewedCertificatesAreUsed(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedisTLS(t)
	present := func() map[string][]byte { return testkit.ReadFiles(t, server.CAFile, server.CertFile, server.KeyFile) }
	mount := testkit.NewMount(t, present())
	var out testkit.Logs
	n := openNode(t, Config{
		URL: "rediss://" + server.TLSAddr() + "?ca_file=" + mount.Path("ca.crt") +
			"&cert_file=" + mount.Path("redis.crt") + "&key_file=" + mount.Path("redis.key"),
		Logger: out.Logger(),
	})
	n.mustSubscribe(t, "r")
	publishUntilReceived(t, n, n, "r", "with the first")

	// A file that is being written, and a certificate that came before its key.
	half, unmatched := present(), present()
	half["ca.crt"] = half["ca.crt"][:len(half["ca.crt"])/2]
	server.Renew(t)
	unmatched["redis.crt"] = present()["redis.crt"]
	server.Renew(t) // the node can't connect with either, and keeps the first
	for _, broken := range []map[string][]byte{half, unmatched} {
		mount.Replace(broken)
		testkit.Eventually(t, "the broker to be down", func() bool { return !n.Up() })
	}
	testkit.Eventually(t, "the log to say which file", func() bool { return out.Count("certificates read before are kept") == 1 })

	mount.Replace(present())
	testkit.Eventually(t, "the broker to be up with the renewed certificates", n.Up)
	publishUntilReceived(t, n, n, "r", "with the renewed")

	// In place, without an exchange of files: the same paths as the server's.
	inPlace := openNode(t, Config{URL: "rediss://" + server.TLSAddr() + "?ca_file=" + server.CAFile +
		"&cert_file=" + server.CertFile + "&key_file=" + server.KeyFile})
	inPlace.mustSubscribe(t, "r")
	server.Renew(t)
	publishUntilReceived(t, inPlace, inPlace, "r", "with the renewed")
}

// While the files can't be used, the certificates that were read before are used.
func TestAHalfWrittenCertificateChangesNothing(t *testing.T) {
	t.Parallel()
	server := testkit.StartRedisTLS(t)
	good := testkit.ReadFiles(t, server.CAFile, server.CertFile, server.KeyFile)
	mount := testkit.NewMount(t, good)
	var out testkit.Logs
	n := openNode(t, Config{
		URL: "rediss://" + server.TLSAddr() + "?ca_file=" + mount.Path("ca.crt") +
			"&cert_file=" + mount.Path("redis.crt") + "&key_file=" + mount.Path("redis.key"),
		Logger: out.Logger(),
	})
	n.mustSubscribe(t, "r")
	for i, broken := range []string{"ca.crt", "redis.crt", "redis.key"} {
		files := maps.Clone(good)
		files[broken] = files[broken][:len(files[broken])-20]
		mount.Replace(files)
		server.Do(t, "CLIENT", "KILL", "TYPE", "pubsub")
		testkit.Eventually(t, "a new connection in spite of "+broken, func() bool {
			return n.metric(t, "broker_reconnects_total", "") > float64(i) && n.Up()
		})
		mount.Replace(good)
		server.Do(t, "CLIENT", "KILL", "TYPE", "normal") // the next connection reads the good ones
		publishUntilReceived(t, n, n, "r", "after "+broken)
	}
	if got := out.Count("certificates read before are kept"); got == 0 || got > 3 {
		t.Errorf("%d lines for three broken files:\n%s", got, out.String())
	}
}
