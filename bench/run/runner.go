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

// A runner builds the programs, starts them, and stops those that it has started.
type runner struct {
	opts     options
	dir      string // of this session, removed at its end
	programs string
	pg       *postgres
	running  []*process
}

func newRunner(ctx context.Context, o options) (*runner, error) {
	if runtime.NumCPU() < 2 {
		return nil, errors.New("two cores are needed: one for the server, one for the load")
	}
	dir, err := os.MkdirTemp("", "switchyard-bench-")
	if err != nil {
		return nil, fmt.Errorf("work folder: %w", err)
	}
	r := &runner{opts: o, dir: dir}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL runs as another user
		return nil, fmt.Errorf("work folder: %w", err)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	if o.programs != "" {
		r.programs, err = filepath.Abs(o.programs)
		return r, err
	}
	r.programs = r.dir
	return r, r.build(ctx)
}

// build builds the programs, the service as it is released.
func (r *runner) build(ctx context.Context) error {
	for _, p := range []struct{ from, target string }{
		{r.opts.root, "./cmd/server"}, {".", "./drive"}, {".", "./peer"}, {".", "./floor"},
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", r.dir, p.target)
		cmd.Dir = p.from
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", p.target, err, out)
		}
	}
	return nil
}

func (r *runner) close() {
	for _, p := range r.running {
		p.stop()
	}
	if r.pg != nil {
		r.pg.stop()
	}
	_ = os.RemoveAll(r.dir)
}

// A process is a program under test.
type process struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
}

// command returns a program that runs on these cores, "" for all.
func (r *runner) command(ctx context.Context, cores, name string, args ...string) *exec.Cmd {
	line := append([]string{name}, args...)
	if cores != "" {
		line = append([]string{"taskset", "-c", cores}, line...)
	}
	if r.opts.realtime {
		line = append([]string{"chrt", "-r", "1"}, line...)
	}
	return exec.CommandContext(ctx, line[0], line[1:]...)
}

// start runs a program on these cores, "" for all, and waits until addr accepts
// connections.
func (r *runner) start(ctx context.Context, addr, cores string, env []string, name string, args ...string) (*process, error) {
	if !strings.HasPrefix(name, "/") {
		name = filepath.Join(r.programs, name)
	}
	cmd := r.command(context.Background(), cores, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = r.dir
	log, err := os.CreateTemp(r.dir, "log")
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }()
	r.running = append(r.running, p)
	return p, p.waitListening(ctx, addr)
}

func (p *process) waitListening(ctx context.Context, addr string) error {
	deadline := time.After(60 * time.Second)
	for {
		if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.done:
			output, _ := os.ReadFile(p.log.Name())
			return fmt.Errorf("%s ended:\n%s", p.cmd, output)
		case <-deadline:
			return fmt.Errorf("%s does not listen on %s", p.cmd, addr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the process by an interrupt, and kills it after ten seconds.
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

// runDriver runs the driver on core 1 and returns its result. Failures of single
// connections are in the result, and no error.
func (r *runner) runDriver(ctx context.Context, args ...string) (report.Run, error) {
	var run report.Run
	cmd := r.command(ctx, "1", filepath.Join(r.programs, "drive"), args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return run, fmt.Errorf("drive %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return run, json.Unmarshal(out.Bytes(), &run)
}

// A heldConnections is a driver that keeps its connections open until quit.
type heldConnections struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// holdConnections opens connections, and returns the result of opening them.
func (r *runner) holdConnections(ctx context.Context, args ...string) (*heldConnections, report.Run, error) {
	var run report.Run
	cmd := r.command(ctx, "1", filepath.Join(r.programs, "drive"), append([]string{"-scenario", "hold"}, args...)...)
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
	h := &heldConnections{cmd, in, json.NewDecoder(out)}
	if err := h.out.Decode(&run); err != nil {
		_ = cmd.Process.Kill()
		return nil, run, fmt.Errorf("drive: %w", errors.Join(err, cmd.Wait()))
	}
	return h, run, nil
}

func (h *heldConnections) command(word string) { _, _ = io.WriteString(h.in, word+"\n") }

// report returns the driver's result so far.
func (h *heldConnections) report() (report.Run, error) {
	var run report.Run
	h.command("report")
	return run, h.out.Decode(&run)
}

func (h *heldConnections) quit() {
	h.command("quit")
	_ = h.cmd.Wait()
}

// appendResult appends a run to the raw lines of a command.
func (r *runner) appendResult(command string, result *report.Run) error {
	f, err := os.OpenFile(filepath.Join(r.opts.out, command+".jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	fmt.Printf("%-16s %-28s %9.0f /core-s %9.0f /s  driver %3.0f %%  foreign %2.0f %% steal %2.0f %%  lost %d cut %d %v\n",
		result.Server, result.Test, result.PerCore, result.Rate+result.Connects, 100*result.DriverBusy, 100*result.OtherLoad, 100*result.Steal, result.Lost, result.ClosedByServer, result.Errors)
	return errors.Join(json.NewEncoder(f).Encode(result), f.Close())
}

// readResults reads the raw lines of a command.
func (r *runner) readResults(command string) ([]report.Run, error) {
	f, err := os.Open(filepath.Join(r.opts.out, command+".jsonl"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	defer func() { _ = f.Close() }()
	var all []report.Run
	for in := json.NewDecoder(f); ; {
		var result report.Run
		if err := in.Decode(&result); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("results: %w", err)
		}
		all = append(all, result)
	}
}

// removeResults deletes the raw lines of a command.
func (r *runner) removeResults(command string) {
	_ = os.Remove(filepath.Join(r.opts.out, command+".jsonl"))
}
