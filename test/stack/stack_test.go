//go:build stack

package stack

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
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

// sharedStack is the stack that all tests of this binary share, but for those that make
// one of their own.
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

// A stack is a copy of deploy/ and monitoring/, made ready by setup, with ports
// and networks of its own.
type stack struct {
	name string
	dir  string // the copy
	// door is where users come in: an address of this machine from which the kernel
	// leads on, as it does for who comes from outside. On loopback it would be a
	// proxy of Docker's, which costs as much as what is behind it.
	ingressIP string
	ports
	image  string
	roots  *x509.CertPool
	secret []byte // of tokens
	// healthy and first are how long it took from docker compose up until all of it
	// was healthy, and until a message had gone through.
	healthyAfter, firstMessageAfter time.Duration
}

type ports struct{ http, https, grafana, prometheus, alertmanager int }

// newStack makes the files; own certificates are put there before setup, as an
// operator does.
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
	s.down() // what an earlier run left
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

// start puts a certificate of a private authority in place, runs setup, sets what
// is this machine's and brings everything up.
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
	if err := s.sendFirstMessage(); err != nil {
		return fmt.Errorf("the first message: %w\n%s", err, s.logs())
	}
	s.firstMessageAfter = time.Since(began)
	return nil
}

// sendFirstMessage sends a message through all of it: joined, published and received.
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

// hardLimit is how many files a process of this machine may open, 65,536 at most.
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

// must is for what a test rests on.
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
	// By its name alone: the files of an earlier run may be gone.
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

// container is the name that Compose gives the nth replica.
func (s *stack) container(service string, n int) string {
	return fmt.Sprintf("%s-%s-%d", s.name, service, n)
}

// activateColor makes a colour live as an operator does by hand, and returns when.
func (s *stack) activateColor(t *testing.T, color string) time.Time {
	t.Helper()
	traefik := filepath.Join(s.dir, "deploy/traefik")
	text, err := os.ReadFile(filepath.Join(traefik, color+".yml"))
	if err != nil {
		t.Fatal(err)
	}
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

// dial leads every name to Traefik's published ports.
func (s *stack) dial(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	to := map[string]int{"80": s.http, "443": s.https}[port]
	return new(net.Dialer).DialContext(ctx, network, s.ingressAddr(to))
}

// ingressAddr is a port of the door.
func (s *stack) ingressAddr(port int) string {
	return net.JoinHostPort(s.ingressIP, strconv.Itoa(port))
}

func (s *stack) tlsConfig() *tls.Config {
	return &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS12}
}

// client speaks HTTP with Traefik, following no redirect.
func (s *stack) client() *http.Client {
	return &http.Client{
		Timeout:       20 * time.Second,
		Transport:     &http.Transport{DialContext: s.dial, TLSClientConfig: s.tlsConfig(), DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get asks for a URL, with headers "Name: value".
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

// token is a credential for every room.
func (s *stack) token(user string) string {
	text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"sub": user, "exp": time.Now().Add(time.Hour).Unix(), "rooms": map[string]string{"*": "rw"},
	}).SignedString(s.secret)
	if err != nil {
		panic(err) // a key of bytes can sign
	}
	return text
}

// ownCertificate makes an authority and a certificate of it, and puts that where
// an operator puts a bought one.
func (s *stack) ownCertificate() error {
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(60 * 24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: domain}, DNSNames: []string{domain},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caKey, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	caDER, err1 := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	der, err2 := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	keyDER, err3 := x509.MarshalECPrivateKey(key)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	s.roots = x509.NewCertPool()
	s.roots.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}))
	return errors.Join(
		os.MkdirAll(s.path("secrets"), 0o700),
		os.WriteFile(s.path("secrets/tls_crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o444),
		os.WriteFile(s.path("secrets/tls_key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o400),
	)
}

// copyTree copies what git has, and what it will have: nothing that it ignores.
func copyTree(from, to string) error {
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", ".")
	list.Dir = from
	out, err := list.Output()
	if err != nil {
		return fmt.Errorf("list %s: %w", from, err)
	}
	for name := range bytes.SplitSeq(bytes.TrimRight(out, "\x00"), []byte{0}) {
		text, err := os.ReadFile(filepath.Join(from, string(name)))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and not yet so in git
		}
		info, err2 := os.Stat(filepath.Join(from, string(name)))
		path := filepath.Join(to, string(name))
		if err := errors.Join(err, err2, os.MkdirAll(filepath.Dir(path), 0o755)); err != nil {
			return err
		}
		if err := os.WriteFile(path, text, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return nil
}

func buildImage(tag string) error {
	began := time.Now()
	cmd := exec.Command("docker", "build", "--quiet", "--build-arg", "VERSION=e2e", "--tag", tag, ".")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("docker build: %w\n%s", err, out)
	}
	fmt.Printf("built %s in %.0f s\n", tag, time.Since(began).Seconds())
	return nil
}
