package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// tokenSecret signs the tokens of connections with a user.
const tokenSecret = "only-the-benchmarks-sign-with-this-secret"

// A candidate is a server that is measured.
type candidate struct {
	name     string
	protocol string
	start    func(context.Context, *runner, *test) (*target, error)
}

// A target is a running candidate.
type target struct {
	process     *process
	addr        string
	admin       string
	backingPids []int
	extraPids   []int // further nodes
}

// args returns the driver's arguments for the target.
func (t *target) args() []string {
	pids := t.extraPids
	if len(pids) == 0 {
		pids = []int{t.process.pid()}
	}
	return []string{"-addr", t.addr, "-pid", joinInts(pids), "-beside", joinInts(t.backingPids)}
}

// joinInts returns numbers separated by commas.
func joinInts(n []int) string { return strings.Trim(strings.ReplaceAll(fmt.Sprint(n), " ", ","), "[]") }

var candidates = []candidate{
	{"floor", "raw", func(ctx context.Context, r *runner, t *test) (*target, error) {
		addr := freeAddr()
		args := []string{"-addr", addr}
		if t.coalesce {
			args = append(args, "-together")
		}
		p, err := r.start(ctx, addr, "0", nil, "floor", args...)
		return &target{process: p, addr: addr}, err
	}},
	{"centrifuge", "centrifuge", func(ctx context.Context, r *runner, _ *test) (*target, error) {
		addr := freeAddr()
		p, err := r.start(ctx, addr, "0", []string{"GOMAXPROCS=1"}, "peer", "-addr", addr)
		return &target{process: p, addr: addr}, err
	}},
	{serviceName, "switchyard", func(ctx context.Context, r *runner, t *test) (*target, error) {
		url, err := r.database(ctx)
		if err != nil {
			return nil, err
		}
		return r.startService(ctx, url, t.cores(), t.withTokens)
	}},
}

// serviceName is the name of our service in the results.
const serviceName = "switchyard"

// startService starts the service on a database. Limits that a single address or a
// single publisher would exceed are off; all other settings are the defaults.
func (r *runner) startService(ctx context.Context, url, cores string, withTokens bool, extraEnv ...string) (*target, error) {
	t := &target{addr: freeAddr(), admin: freeAddr()}
	env := []string{
		"DATABASE_URL=" + url, "LISTEN_ADDR=" + t.addr, "ADMIN_ADDR=" + t.admin,
		"MAX_CONNECTIONS=20000", "MAX_HANDSHAKE_RATE=100000", "MAX_CONNECTIONS_PER_IP=0",
		"RATE_PUBLISH=0", "RATE_BYTES=0", "RATE_USER_PUBLISH=0", "RATE_USER_BYTES=0", "RATE_JOIN=0", "RATE_HISTORY=0",
		"LOG_LEVEL=warn", "AUDIT_LOG=off",
	}
	if withTokens {
		env = append(env, "AUTH_JWT_SECRET="+tokenSecret)
	}
	if cores == "0" {
		env = append(env, "GOMAXPROCS=1")
	}
	var err error
	if t.process, err = r.start(ctx, t.addr, cores, append(env, extraEnv...), "server"); err != nil {
		return nil, err
	}
	if r.pg != nil {
		t.backingPids = append(t.backingPids, r.pg.pid())
	}
	return t, nil
}

func freePort() int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err) // a machine without a free port runs no benchmark
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func freeAddr() string { return "127.0.0.1:" + strconv.Itoa(freePort()) }
