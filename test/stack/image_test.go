//go:build stack

package stack

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// The image is small, has labels and an unprivileged user, and a second build makes the
// same program.
func TestTheImage(t *testing.T) {
	size, err := strconv.Atoi(sharedStack.dockerInspect(t, sharedStack.image, "{{.Size}}"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the image has %.1f MB", float64(size)/1e6)
	if size >= 25e6 {
		t.Errorf("%d bytes, want less than 25 MB", size)
	}
	facts := sharedStack.dockerInspect(t, sharedStack.image, `{{.Config.User}} {{.Config.Healthcheck.Test}} {{index .Config.Labels "org.opencontainers.image.title"}}`)
	if facts != "nonroot [CMD /server healthcheck] switchyard" && facts != "65532 [CMD /server healthcheck] switchyard" {
		t.Error(facts)
	}
	first := sharedStack.extractServer(t, sharedStack.image)
	if *image == "" {
		out, err := sharedStack.run("docker", "build", "--quiet", "--no-cache", "--build-arg", "VERSION=e2e", "--tag", defaultImage+"-again", mustAbs(t, root))
		must(t, out, err)
		defer func() { _, _ = sharedStack.run("docker", "rmi", defaultImage+"-again") }()
		second := sharedStack.extractServer(t, defaultImage+"-again")
		if fileHash(t, first) != fileHash(t, second) {
			t.Errorf("two builds made %s and %s", fileHash(t, first), fileHash(t, second))
		}
		t.Logf("two builds made the same program, sha256 %s", fileHash(t, first))
	}
	modules := outputOf(sharedStack.run("go", "version", "-m", first))
	if strings.Count(modules, "\tdep\t") < 10 || !strings.Contains(modules, "CGO_ENABLED=0") {
		t.Errorf("the program does not list its modules:\n%s", modules)
	}
}

// The image's program is ready within 300 ms of its start, on an empty SQLite file.
func TestServerStartsQuickly(t *testing.T) {
	program := sharedStack.extractServer(t, sharedStack.image)
	var times []time.Duration
	for range 9 {
		times = append(times, measureStart(t, program))
	}
	slices.Sort(times)
	t.Logf("exec to ready: median %v, worst %v of %d", times[4], times[8], len(times))
	if times[4] > 300*time.Millisecond {
		t.Errorf("%v from exec to ready, 300 ms are allowed", times[4])
	}
}

func measureStart(t *testing.T, program string) time.Duration {
	t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", testkit.FreePort())
	cmd := exec.Command(program)
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"LISTEN_ADDR=" + address, "ADMIN_ADDR=127.0.0.1:0", "DATABASE_URL=sqlite:log.db"}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ; time.Since(began) < 30*time.Second; <-tick.C {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Close = true
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		_ = res.Body.Close()
		if res.StatusCode == http.StatusOK {
			return time.Since(began)
		}
	}
	t.Fatal("the server did not become ready")
	return 0
}

// extractServer copies the server's program out of an image.
func (s *stack) extractServer(t *testing.T, image string) string {
	t.Helper()
	out, err := s.run("docker", "create", image)
	id := must(t, out, err)
	defer func() { _, _ = s.run("docker", "rm", id) }()
	path := filepath.Join(t.TempDir(), "server")
	out, err = s.run("docker", "cp", id+":/server", path)
	must(t, out, err)
	return path
}

func fileHash(t *testing.T, path string) string {
	t.Helper()
	b := testkit.ReadFile(t, path)
	return fmt.Sprintf("%x", sha256.Sum256(b))
}
