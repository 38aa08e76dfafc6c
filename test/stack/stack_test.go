//go:build stack

package stack

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"switchyard/internal/client"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

const (
	project      = "switchyard-e2e"
	domain       = "chat.e2e.test"
	defaultImage = "switchyard:e2e"
)

var (
	image = flag.String("image", "", "run this image instead of building one")
	keep  = flag.Bool("keep", false, "leave the stack running at the end")
)

// sharedStack is the stack of all tests of this binary, but for those that make one of
// their own.
var sharedStack *stack

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	var err error
	if sharedStack, err = newStack(project); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer sharedStack.remove()
	if *image == "" {
		err = buildImage(defaultImage)
	}
	if err == nil {
		err = sharedStack.start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if code != 0 {
		fmt.Println(sharedStack.logs())
	}
	return code
}

// A stack is a copy of deploy/ and monitoring/ on which setup was run, with ports and
// networks of its own.
type stack struct {
	name string
	dir  string // the copy
	// ingressIP is where clients connect: an address of this machine from which the
	// kernel forwards, as it does for clients from outside. On loopback Docker would put
	// a proxy between, which costs as much as the stack behind it.
	ingressIP string
	ports
	image  string
	roots  *x509.CertPool
	secret []byte // of tokens
	// The time from docker compose up until all containers were healthy, and until the
	// first message was delivered.
	healthyAfter, firstMessageAfter time.Duration
}

type ports struct{ http, https, grafana, prometheus, alertmanager int }

// newStack makes the files of a stack and starts nothing. The caller may add
// certificates before setup, as an operator does.
func newStack(name string) (*stack, error) {
	for _, need := range [][]string{{"docker", "info"}, {"docker", "compose", "version"}} {
		if out, err := exec.Command(need[0], need[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("make e2e needs a running Docker engine and Compose v2: %s: %w\n%s", strings.Join(need, " "), err, out)
		}
	}
	dir, err := os.MkdirTemp("", name+"-")
	if err != nil {
		return nil, fmt.Errorf("a folder for the stack: %w", err)
	}
	gateway, err := exec.Command("docker", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").Output()
	if err != nil {
		return nil, fmt.Errorf("find an address for Docker's ports: %w", err)
	}
	s := &stack{
		name: name, dir: dir, image: *image, ingressIP: strings.TrimSpace(string(gateway)),
		ports: ports{testkit.FreePort(), testkit.FreePort(), testkit.FreePort(), testkit.FreePort(), testkit.FreePort()},
	}
	s.down() // containers of an earlier run
	for _, part := range []string{"deploy", "monitoring"} {
		if err := copyTree(filepath.Join(root, part), filepath.Join(dir, part)); err != nil {
			return s, err
		}
	}
	if s.image == "" {
		s.image = defaultImage
	}
	return s, nil
}

// dropSilentGrafana removes the job grafana where the image under that name only stands in
// for Grafana and has no /metrics: its target would be down, and no deploy would begin.
func (s *stack) dropSilentGrafana() error {
	res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", s.grafana))
	if err != nil {
		return fmt.Errorf("the metrics of Grafana: %w", err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		return nil
	}
	path := s.path("../../monitoring/prometheus/prometheus.yml")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, bytes.Replace(text, []byte("targets: [grafana:3000]"), []byte("targets: []"), 1), 0o644); err != nil {
		return err
	}
	out, err := s.compose("kill", "-s", "HUP", "prometheus")
	if err != nil {
		return fmt.Errorf("reload Prometheus: %w\n%s", err, out)
	}
	return nil
}

// start adds a certificate of a private authority, runs setup, and starts all
// services.
func (s *stack) start() error {
	if err := s.ownCertificate(); err != nil {
		return err
	}
	if err := s.setup(); err != nil {
		return err
	}
	began := time.Now()
	out, err := s.compose("up", "-d", "--wait", "--wait-timeout", "240")
	if err != nil {
		return fmt.Errorf("%w\n%s\n%s", err, out, s.logs())
	}
	s.healthyAfter = time.Since(began)
	if err := s.dropSilentGrafana(); err != nil {
		return err
	}
	if err := s.sendFirstMessage(); err != nil {
		return fmt.Errorf("the first message: %w\n%s", err, s.logs())
	}
	s.firstMessageAfter = time.Since(began)
	return nil
}

// sendFirstMessage joins a room, publishes a message and receives it.
func (s *stack) sendFirstMessage() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := client.New(s.options("ada", nil))
	if err != nil {
		return err
	}
	defer c.Close()
	got := make(chan message.Message, 1)
	if _, err := c.Join(ctx, "hall", client.Start(), client.Handler{Message: func(m message.Message) { got <- m }}); err != nil {
		return err
	}
	ack, err := c.Publish(ctx, "hall", json.RawMessage(`"hello"`), "")
	if err != nil {
		return err
	}
	select {
	case m := <-got:
		if m.Seq != ack.Seq || string(m.Data) != `"hello"` {
			return fmt.Errorf("got %+v for %+v", m, ack)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// setup runs the setup script, and then sets what depends on this machine.
func (s *stack) setup() error {
	out, err := s.run(filepath.Join(s.dir, "deploy/compose/setup"), domain, "ops@e2e.test")
	if err != nil {
		return fmt.Errorf("setup: %w\n%s", err, out)
	}
	secret, err := os.ReadFile(s.path("secrets/app_jwt_secret"))
	if err != nil {
		return fmt.Errorf("the secret of tokens: %w", err)
	}
	s.secret = secret
	nofile := hardLimit()
	cpus := strconv.Itoa(min(2, runtime.NumCPU()))
	subnet := 16 + os.Getpid()%200
	fmt.Printf("%d files may be open in a container (65536 as shipped)\n", nofile)
	at := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	if *deployTests { // see deploy_kit_test.go
		if err := s.setEnv(map[string]string{"TRUSTED_IPS": "10.0.0.0/8,172.16.0.0/12", "DRAIN_WINDOW": drainWindow.String(), "HEALTH_INTERVAL": "10s"}); err != nil {
			return err
		}
	}
	return s.setEnv(map[string]string{
		"IMAGE_BLUE": s.image, "IMAGE_GREEN": s.image, "NOFILE": strconv.Itoa(nofile),
		"NODE_CPUS": cpus, "POSTGRES_CPUS": cpus, "TRAEFIK_CPUS": cpus,
		"HTTP_PORT": s.ingressAddr(s.http), "HTTPS_PORT": s.ingressAddr(s.https), "GRAFANA_PORT": at(s.grafana),
		"PROMETHEUS_PORT": at(s.prometheus), "ALERTMANAGER_PORT": at(s.alertmanager),
		"EDGE_SUBNET": fmt.Sprintf("10.213.%d.0/24", subnet), "MONITORING_SUBNET": fmt.Sprintf("10.214.%d.0/24", subnet),
	})
}

// hardLimit returns how many files a process of this machine may open, 65,536 at most.
func hardLimit() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 65536
	}
	return int(min(limit.Max, 65536))
}

// setEnv changes lines of .env.
func (s *stack) setEnv(values map[string]string) error {
	text, err := os.ReadFile(s.path(".env"))
	if err != nil {
		return fmt.Errorf("read .env: %w", err)
	}
	for name, value := range values {
		line := regexp.MustCompile(`(?m)^` + name + `=.*$`)
		if !line.Match(text) {
			return fmt.Errorf(".env has no %s", name)
		}
		text = line.ReplaceAllLiteral(text, []byte(name+"="+value))
	}
	return os.WriteFile(s.path(".env"), text, 0o640)
}

func (s *stack) path(name string) string { return filepath.Join(s.dir, "deploy/compose", name) }

// compose runs docker compose on the stack's file.
func (s *stack) compose(args ...string) (string, error) {
	return s.run("docker", append([]string{"compose", "-p", s.name, "-f", "docker-compose.prod.yml"}, args...)...)
}

func (s *stack) run(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = s.path("")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w", filepath.Base(program), strings.Join(args, " "), err)
	}
	return string(out), err
}

// must fails the test if err is not nil, and otherwise returns the trimmed output.
func must(t *testing.T, out string, err error) string {
	t.Helper()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(out)
}

func (s *stack) logs() string {
	out, _ := s.compose("ps", "-a")
	logs, _ := s.compose("logs", "--no-color", "--tail", "25")
	return out + logs
}

func (s *stack) down() {
	// By the name alone: the files of an earlier run may be gone.
	_, _ = s.run("docker", "compose", "-p", s.name, "down", "-v", "--remove-orphans", "--timeout", "5")
}

func (s *stack) remove() {
	if *keep {
		fmt.Println("left running: docker compose -p", s.name, "in", s.path(""))
		return
	}
	s.down()
	_ = os.RemoveAll(s.dir)
}

// container returns the name that Compose gives to the nth replica.
func (s *stack) container(service string, n int) string {
	return fmt.Sprintf("%s-%s-%d", s.name, service, n)
}

// activateColor makes a color live, as an operator does by hand, and returns when.
func (s *stack) activateColor(t *testing.T, color string) time.Time {
	t.Helper()
	traefik := filepath.Join(s.dir, "deploy/traefik")
	text := testkit.ReadFile(t, filepath.Join(traefik, color+".yml"))
	staged := filepath.Join(traefik, "staging/active.yml")
	if err := os.WriteFile(staged, text, 0o644); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	if err := os.Rename(staged, filepath.Join(traefik, "dynamic/active.yml")); err != nil {
		t.Fatal(err)
	}
	return at
}

// dial connects to Traefik's published ports, whatever the name.
func (s *stack) dial(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	to := map[string]int{"80": s.http, "443": s.https}[port]
	return new(net.Dialer).DialContext(ctx, network, s.ingressAddr(to))
}

// ingressAddr returns the address of a published port.
func (s *stack) ingressAddr(port int) string {
	return net.JoinHostPort(s.ingressIP, strconv.Itoa(port))
}

func (s *stack) tlsConfig() *tls.Config {
	return &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS12}
}

// client returns an HTTP client for Traefik, which follows no redirects.
func (s *stack) client() *http.Client {
	return &http.Client{
		Timeout:       20 * time.Second,
		Transport:     &http.Transport{DialContext: s.dial, TLSClientConfig: s.tlsConfig(), DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get requests a URL, with headers such as "Name: value".
func (s *stack) get(t *testing.T, url string, header ...string) (*http.Response, string) {
	t.Helper()
	return request(t, s.client(), http.MethodGet, url, "", header...)
}

func request(t *testing.T, c *http.Client, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		t.Fatal(err)
	}
	return res, string(text)
}

// token returns a user's token with rights in every room.
func (s *stack) token(user string) string {
	text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"sub": user, "exp": time.Now().Add(time.Hour).Unix(), "rooms": map[string]string{"*": "rw"},
	}).SignedString(s.secret)
	if err != nil {
		panic(err) // signing with a key of bytes does not fail
	}
	return text
}
