package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"switchyard/internal/testkit"
)

// The user of Redis is replaced by another one with another password, as a secrets
// manager does it: the new one is made, REDIS_URL_FILE is written again, and the old one
// is deleted, which ends its connections. The service goes on without a restart.
func TestTheRedisUserIsReplaced(t *testing.T) {
	t.Parallel()
	redis := testkit.StartRedis(t)
	path := filepath.Join(t.TempDir(), "redis_url")
	use := func(user string) {
		redis.Do(t, "ACL", "SETUSER", user, "on", ">of-"+user, "~sy:*", "&sy:*", "+@all")
		if err := os.WriteFile(path, []byte("redis://"+user+":of-"+user+"@"+redis.Addr()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	use("app1")
	s := testkit.StartServer(t, map[string]string{"REDIS_URL_FILE": path, "API_KEYS": apiKey})
	up := func() bool { return metric(t, s, "broker_up") == 1 && metric(t, s, "session_up") == 1 }
	pollPage(t, "Redis to be up", up)
	use("app2")
	redis.Do(t, "ACL", "DELUSER", "app1")
	pollPage(t, "Redis to be up for the new user", func() bool {
		return metric(t, s, "broker_reconnects_total") > 0 && metric(t, s, "session_reconnects_total") > 0 && up()
	})
	if res, body := post(t, s, "/v1/users/ada/disconnect", `{"for":"10m"}`); res.StatusCode > 202 {
		t.Errorf("a ban: %d %s", res.StatusCode, body)
	}
}
