package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"switchyard/bench/report"
)

// A bench has the programs, and what runs of them.
type bench struct {
	opts     options
	dir      string // of this session
	programs string
	pg       *postgres
	running  []*process
}

func newBench(ctx context.Context, o options) (*bench, error) {
	if runtime.NumCPU() < 2 {
		return nil, errors.New("two cores are needed: one for the server, one for the load")
	}
	dir, err := os.MkdirTemp("", "switchyard-bench-")
	if err != nil {
		return nil, fmt.Errorf("work folder: %w", err)
	}
	b := &bench{opts: o, dir: dir}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL runs as another user
		return nil, fmt.Errorf("work folder: %w", err)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	if o.kept != "" {
		b.programs, err = filepath.Abs(o.kept)
		return b, err
	}
	b.programs = b.dir
	return b, b.build(ctx)
}

// build makes the programs: the service as it is released.
func (b *bench) build(ctx context.Context) error {
	for _, p := range []struct{ from, target string }{
		{b.opts.root, "./cmd/server"}, {".", "./drive"}, {".", "./peer"}, {".", "./floor"},
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", b.dir, p.target)
		cmd.Dir = p.from
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", p.target, err, out)
		}
	}
	return nil
}

func (b *bench) close() {
	for _, p := range b.running {
		p.stop()
	}
	if b.pg != nil {
		b.pg.stop()
	}
	_ = os.RemoveAll(b.dir)
}

// A process is a program under test.
type process struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
}

// command is a program on the cores named, "" for all.
func (b *bench) command(ctx context.Context, cores, name string, args ...string) *exec.Cmd {
	line := append([]string{name}, args...)
	if cores != "" {
		line = append([]string{"taskset", "-c", cores}, line...)
	}
	if b.opts.realtime {
		line = append([]string{"chrt", "-r", "1"}, line...)
	}
	return exec.CommandContext(ctx, line[0], line[1:]...)
}

// start runs a program on the cores named, "" for all, and waits until addr
// takes connections.
func (b *bench) start(ctx context.Context, addr, cores string, env []string, name string, args ...string) (*process, error) {
	if !strings.HasPrefix(name, "/") {
		name = filepath.Join(b.programs, name)
	}
	cmd := b.command(context.Background(), cores, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = b.dir
	log, err := os.CreateTemp(b.dir, "log")
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }()
	b.running = append(b.running, p)
	return p, p.await(ctx, addr)
}

func (p *process) await(ctx context.Context, addr string) error {
	deadline := time.After(60 * time.Second)
	for {
		if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.done:
			said, _ := os.ReadFile(p.log.Name())
			return fmt.Errorf("%s ended:\n%s", p.cmd, said)
		case <-deadline:
			return fmt.Errorf("%s does not listen on %s", p.cmd, addr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends it, in order if it can.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	_ = p.log.Close()
}

// drive runs the load on core 1 and returns what it says. Other than errors it
// tells troubles in the run itself.
func (b *bench) drive(ctx context.Context, args ...string) (report.Run, error) {
	var run report.Run
	cmd := b.command(ctx, "1", filepath.Join(b.programs, "drive"), args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return run, fmt.Errorf("drive %s: %w: %s", strings.Join(args, " "), err, said.String())
	}
	return run, json.Unmarshal(out.Bytes(), &run)
}

// A holder is a driver that keeps its connections until it is told.
type holder struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// hold opens connections; the run is about how that went.
func (b *bench) hold(ctx context.Context, args ...string) (*holder, report.Run, error) {
	var run report.Run
	cmd := b.command(ctx, "1", filepath.Join(b.programs, "drive"), append([]string{"-scenario", "hold"}, args...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, run, fmt.Errorf("drive: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, run, fmt.Errorf("drive: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, run, fmt.Errorf("drive: %w", err)
	}
	h := &holder{cmd, in, json.NewDecoder(out)}
	if err := h.out.Decode(&run); err != nil {
		_ = cmd.Process.Kill()
		return nil, run, fmt.Errorf("drive: %w", errors.Join(err, cmd.Wait()))
	}
	return h, run, nil
}

func (h *holder) say(word string) { _, _ = io.WriteString(h.in, word+"\n") }

// report asks for what has come in so far.
func (h *holder) report() (report.Run, error) {
	var run report.Run
	h.say("report")
	return run, h.out.Decode(&run)
}

func (h *holder) quit() {
	h.say("quit")
	_ = h.cmd.Wait()
}

// keep appends a run to the raw lines of a verb.
func (b *bench) keep(verb string, r *report.Run) error {
	f, err := os.OpenFile(filepath.Join(b.opts.out, verb+".jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	fmt.Printf("%-16s %-28s %9.0f /core-s %9.0f /s  driver %3.0f %%  foreign %2.0f %% steal %2.0f %%  lost %d cut %d %v\n",
		r.Server, r.Test, r.PerCore, r.Rate+r.Connects, 100*r.DriverBusy, 100*r.Foreign, 100*r.Steal, r.Lost, r.Cut, r.Errors)
	return errors.Join(json.NewEncoder(f).Encode(r), f.Close())
}

// lines reads the raw lines of a verb.
func (b *bench) lines(verb string) ([]report.Run, error) {
	f, err := os.Open(filepath.Join(b.opts.out, verb+".jsonl"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	defer func() { _ = f.Close() }()
	var all []report.Run
	for in := json.NewDecoder(f); ; {
		var r report.Run
		if err := in.Decode(&r); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("results: %w", err)
		}
		all = append(all, r)
	}
}

// forget begins a verb's raw lines anew.
func (b *bench) forget(verb string) { _ = os.Remove(filepath.Join(b.opts.out, verb+".jsonl")) }
