package broker

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestInvalidURLsAreRefused(t *testing.T) {
	noCert := filepath.Join(t.TempDir(), "empty.crt")
	if err := os.WriteFile(noCert, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"":                                   "scheme",
		"localhost:6379":                     "scheme",
		"http://localhost":                   "scheme",
		"redis+://h":                         "scheme",
		"redis+ring://h":                     "scheme",
		"http+cluster://h":                   "scheme",
		"redis://":                           "host is missing",
		"redis://h:port":                     "host:port",
		"redis://h:99999":                    "1 to 65535",
		"redis://h:0":                        "1 to 65535",
		"redis://::1:6379":                   "host:port",
		"redis://h:6379/notanumber":          "database",
		"redis://h:6379/-1":                  "database",
		"redis://h:6379/0#x":                 "not a URL",
		"redis://a:1,b:2":                    "several hosts",
		"redis://:hunter2@h:port":            "host:port",
		"redis://h:1/hunter2@h:6379":         "database",       // a stray / in the password
		"redis://u:hunter2?x@h:6379":         "host:port",      // a stray ? in it
		"redis://h?hunter2=1":                "unknown option", // the same, in disguise
		"redis://h?ca_file=/x":               "need rediss",
		"redis://h?sentinel_password=x":      "unknown option",
		"rediss://h?ca_file=/no/such.crt":    "/no/such.crt",
		"rediss://h?ca_file=" + noCert:       "no certificate",
		"rediss://h?cert_file=/no/such.crt":  "cert_file and key_file",
		"rediss://h?skip_verify=perhaps":     "skip_verify",
		"redis+sentinel://a:1,b:2":           "master is missing",
		"redis+sentinel://a:1,/m":            "host is missing",
		"redis+sentinel://a:1,b:2/m/x":       "database",
		"redis+sentinel://a/m?what=hunter2":  "unknown option",
		"redis+cluster://a:1,b:2/1":          "database 0 only",
		"rediss+cluster://a:1?ca_file=/none": "/none",
		"redis://h?a=%zz":                    "cannot be parsed",
	} {
		_, err := OpenRedis(Config{URL: url})
		if err == nil {
			t.Errorf("%q was accepted", url)
			continue
		}
		got := err.Error()
		if !strings.HasPrefix(got, "REDIS_URL: ") || !strings.Contains(got, want) || !strings.Contains(got, "redis+cluster://") || strings.Contains(got, "\n") {
			t.Errorf("%q: %v; want one line that names REDIS_URL, says %q and shows the forms", url, err, want)
		}
		if strings.Contains(got, "hunter2") {
			t.Errorf("%q: the error shows the password: %v", url, err)
		}
	}
}

func TestAURLIsRead(t *testing.T) {
	p, err := parseURL("rediss+sentinel://app:p%40ss%2F@a:1,[::1],c/main/3?sentinel_username=s&sentinel_password=q&skip_verify=true")
	if err != nil {
		t.Fatal(err)
	}
	if p.topology != topologySentinel || p.master != "main" || !slices.Equal(p.addrs, []string{"a:1", "[::1]:26379", "c:26379"}) {
		t.Errorf("%+v", p)
	}
	if p.server.Username != "app" || p.server.Password != "p@ss/" || p.server.DB != 3 || !p.tls.config().InsecureSkipVerify {
		t.Errorf("server: %+v", p.server)
	}
	if p.sentinel.Username != "s" || p.sentinel.Password != "q" || p.sentinel.DB != 0 || p.sentinel.Dialer == nil {
		t.Errorf("sentinel: %+v", p.sentinel)
	}
	for url, want := range map[string]redisConfig{
		"redis://h":                 {topology: topologySingle, addrs: []string{"h:6379"}},
		"redis://:x@[::1]:7/2":      {topology: topologySingle, addrs: []string{"[::1]:7"}},
		"redis+cluster://a:7,b,c:8": {topology: topologyCluster, addrs: []string{"a:7", "b:6379", "c:8"}},
	} {
		p, err := parseURL(url)
		if err != nil || p.topology != want.topology || !slices.Equal(p.addrs, want.addrs) || p.tls != nil {
			t.Errorf("%s: %+v, %v", url, p, err)
		}
	}
}

func FuzzRedisURL(f *testing.F) {
	for _, seed := range []string{
		"redis://u:p@h:1/0", "rediss://h?skip_verify=true", "redis+sentinel://a:1,b:2/m/0?sentinel_password=x",
		"redis+cluster://a:1,b:2", "redis://[::1", "redis://@/?#",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, url string) {
		p, err := parseURL(url)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "REDIS_URL: ") {
				t.Errorf("%q: %v", url, err)
			}
			return
		}
		if len(p.addrs) == 0 || slices.Contains(p.addrs, "") || (p.topology == topologySentinel) == (p.master == "") {
			t.Errorf("%q was read as %+v", url, p)
		}
	})
}
