//go:build stack

package stack

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// getLocal requests a page that is published to this machine alone, and decodes its JSON
// unless into is nil.
func getLocal(t *testing.T, port int, path string, into any) {
	t.Helper()
	res, body := request(t, &http.Client{Timeout: 10 * time.Second}, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), "")
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s\n%.500s", path, res.Status, body)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(body), into); err != nil {
			t.Fatalf("%s: %v\n%.500s", path, err, body)
		}
	}
}

// Every target of Prometheus is up, and each replica of both colors is one.
func TestEveryTargetIsUp(t *testing.T) {
	var nodes, targets int
	eventuallyWithin(t, 90*time.Second, "every target up", func() error {
		var answer struct {
			Data struct {
				ActiveTargets []struct {
					Labels                       map[string]string
					ScrapeURL, Health, LastError string
				}
			}
		}
		getLocal(t, sharedStack.prometheus, "/api/v1/targets?state=active", &answer)
		urls := map[string]bool{}
		targets = len(answer.Data.ActiveTargets)
		for _, target := range answer.Data.ActiveTargets {
			if target.Health != "up" {
				return fmt.Errorf("%s is %s: %s", target.ScrapeURL, target.Health, target.LastError)
			}
			if strings.HasSuffix(target.ScrapeURL, ":8000/metrics") {
				urls[target.ScrapeURL] = true
			}
		}
		if nodes = len(urls); nodes != 6 || targets < 12 {
			return fmt.Errorf("%d nodes in %d targets", nodes, targets)
		}
		return nil
	})
	t.Logf("%d targets are up, %d of them nodes", targets, nodes)
}

func TestMonitoringPagesAreLocalOnly(t *testing.T) {
	getLocal(t, sharedStack.grafana, "/api/health", nil)
	getLocal(t, sharedStack.alertmanager, "/-/ready", nil)
	assertRulesEvaluate(t, 90*time.Second, 4)
}

// assertRulesEvaluate waits until Prometheus has evaluated every rule, of which there are
// at least so many, without an error.
func assertRulesEvaluate(t *testing.T, limit time.Duration, least int) {
	t.Helper()
	var answer struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Health, Name, LastError string }
			}
		}
	}
	eventuallyWithin(t, limit, "every rule evaluated", func() error {
		getLocal(t, sharedStack.prometheus, "/api/v1/rules", &answer)
		n := 0
		for _, group := range answer.Data.Groups {
			for _, rule := range group.Rules {
				if n++; rule.Health != "ok" {
					return fmt.Errorf("%s is %s: %s", rule.Name, rule.Health, rule.LastError)
				}
			}
		}
		if n < least {
			return fmt.Errorf("%d rules", n)
		}
		return nil
	})
}

// No container has capabilities or writes to its image, and only their owners can read
// the secrets that setup made.
func TestContainersAreHardened(t *testing.T) {
	ids := strings.Fields(outputOf(sharedStack.compose("ps", "-q")))
	if len(ids) != 17 {
		t.Errorf("%d containers", len(ids))
	}
	for _, id := range ids {
		line := sharedStack.dockerInspect(t, id, "{{.Name}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}} {{.HostConfig.RestartPolicy.Name}}")
		part := strings.Fields(line)
		if part[1] != "true" || part[2] != "[ALL]" || part[3] != "[no-new-privileges:true]" || part[4] == "0" || part[5] == "0" || part[6] == "0" || part[7] != "unless-stopped" {
			t.Error(line)
		}
	}
	for _, name := range []string{"app_jwt_secret", "postgres_password", "redis_auth", "tls_key"} {
		info, err := os.Stat(sharedStack.path("secrets/" + name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o400 {
			t.Errorf("%s: %v", name, info.Mode())
		}
	}
}

// Compose reads every file without a warning.
func TestComposeConfigIsClean(t *testing.T) {
	for _, file := range []string{"docker-compose.prod.yml", "docker-compose.dev.yml"} {
		out, err := sharedStack.run("docker", "compose", "-f", file, "--profile", "*", "config", "--quiet")
		if err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

// A second run of setup changes nothing.
func TestSetupIsRepeatable(t *testing.T) {
	before := outputOf(sharedStack.run("sh", "-c", "cat .env; sha256sum secrets/* ../traefik/dynamic/*"))
	out, err := sharedStack.run("./setup", "other.test")
	must(t, out, err)
	if after := outputOf(sharedStack.run("sh", "-c", "cat .env; sha256sum secrets/* ../traefik/dynamic/*")); after != before {
		t.Errorf("setup changed\n%s\nto\n%s", before, after)
	}
	if strings.Contains(out, "made") {
		t.Error(out)
	}
}
