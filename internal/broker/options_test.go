package broker

import (
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"switchyard/internal/testkit"
)

// A client for commands reaches the same Redis as the broker by the same URL.
func TestOptionsReachTheSameRedis(t *testing.T) {
	t.Parallel()
	sentinel := testkit.StartRedisSentinel(t, "--requirepass", "hunter2")
	secure := testkit.StartRedisTLS(t)
	for name, url := range map[string]string{
		"single":   testkit.Redis(t).URL() + "/1",
		"sentinel": sentinel.URL(),
		"cluster":  testkit.StartRedisCluster(t).URL(),
		"tls": "rediss://" + secure.TLSAddr() + "?ca_file=" + secure.CAFile +
			"&cert_file=" + secure.CertFile + "&key_file=" + secure.KeyFile,
	} {
		opts, _, err := Options(Config{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		client := redis.NewUniversalClient(opts)
		testkit.Eventually(t, name+" to answer", func() bool {
			return client.Set(testkit.Within(t, testkit.Timeout), "options", "1", 0).Err() == nil
		})
		if name != "sentinel" {
			_ = client.Close()
			continue
		}
		old := sentinel.KillMaster()
		sentinel.WaitMaster(old)
		testkit.Eventually(t, "the new master to answer", func() bool {
			return client.Set(testkit.Within(t, testkit.Timeout), "options", "2", 0).Err() == nil
		})
		_ = client.Close()
	}
	if _, _, err := Options(Config{URL: "redis://:hunter2@"}); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a URL without a host: %v", err)
	}
	opts, _, err := Options(Config{URL: "redis+sentinel://127.0.0.1:1/m"})
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewUniversalClient(opts)
	defer client.Close()
	if err := client.Ping(testkit.Within(t, testkit.Timeout)).Err(); err == nil {
		t.Error("a ping succeeded without any sentinel")
	}
}
