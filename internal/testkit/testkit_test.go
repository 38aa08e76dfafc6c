package testkit

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// victimEnv makes this test binary start a child, print its pid, and wait to be
// killed.
const victimEnv = "SWITCHYARD_TESTKIT_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		p, err := Start(Program{Path: "/bin/sleep", Args: []string{"300"}, Dir: "/"})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(p.Pid())
		select {}
	}
	Main(m)
}

func start(t *testing.T, script string) *Process {
	t.Helper()
	p, err := Start(Program{Path: "/bin/sh", Args: []string{"-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop(syscall.SIGKILL, 5*time.Second) })
	return p
}

func TestAProcessIsWaitedForAndStopped(t *testing.T) {
	t.Parallel()
	t.Run("exit code and output", func(t *testing.T) {
		p := start(t, "echo hello; echo there >&2; exit 3")
		var exit *exec.ExitError
		if err := p.Wait(Within(t, 10*time.Second)); !errors.As(err, &exit) || exit.ExitCode() != 3 {
			t.Fatalf("Wait = %v, want exit code 3", err)
		}
		if got := p.Output(); got != "hello\nthere\n" {
			t.Fatalf("Output = %q", got)
		}
	})
	t.Run("ended by SIGTERM", func(t *testing.T) {
		p := start(t, `trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done`)
		if err := p.WaitOutput(Within(t, 10*time.Second), "up"); err != nil {
			t.Fatal(err)
		}
		if err := p.Stop(syscall.SIGTERM, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		if got := p.Output(); got != "up\nbye\n" {
			t.Fatalf("Output = %q", got)
		}
	})
	t.Run("ignores SIGTERM, with a child", func(t *testing.T) {
		p := start(t, `trap '' TERM; sleep 300 & echo child $!; wait; wait; sleep 300`)
		if err := p.WaitOutput(Within(t, 10*time.Second), "child "); err != nil {
			t.Fatal(err)
		}
		child, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(p.Output(), "child ")))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Stop(syscall.SIGTERM, 100*time.Millisecond); err == nil {
			t.Fatal("Stop returned no error for a process that ignored SIGTERM")
		}
		waitForExit(t, child)
	})
}

func TestWaitOutputReportsWhatWasPrintedInstead(t *testing.T) {
	p := start(t, "echo no such thing")
	err := p.WaitOutput(Within(t, 10*time.Second), "ready")
	if err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Fatalf("WaitOutput = %v", err)
	}
}

func TestOutputIsBoundedAndKeepsTheEnd(t *testing.T) {
	t.Parallel()
	p := start(t, "yes 0123456789 | head -c 1000000; echo; echo the end")
	if err := p.Wait(Within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if got := p.Output(); len(got) != tailBytes || !strings.HasSuffix(got, "the end\n") {
		t.Fatalf("kept %d bytes that end in %q", len(got), got[len(got)-20:])
	}
}

func TestChildDiesWithAKilledTestBinary(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	victim := exec.Command(self)
	victim.Env = append(os.Environ(), victimEnv+"=1")
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(line)
	}
	if !alive(child) {
		t.Fatal("the child has not started")
	}
	_ = victim.Process.Kill()
	_ = victim.Wait()
	waitForExit(t, child)
}

func TestMissingProgramNamesItsPackage(t *testing.T) {
	_, err := FindProgram("no-such-program", "some-package")
	if err == nil || !strings.Contains(err.Error(), "apt-get install -y some-package") {
		t.Fatalf("FindProgram = %v", err)
	}
}

func TestDirectoriesOfKilledRunsAreRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	old, err := os.MkdirTemp("", rootPrefix)
	if err != nil {
		t.Fatal(err)
	}
	used, err := os.MkdirTemp("", rootPrefix)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := lockFile(used + "/" + lockName)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	past := time.Now().Add(-time.Hour)
	for _, dir := range []string{old, used} {
		if err := os.Chtimes(dir, past, past); err != nil {
			t.Fatal(err)
		}
	}
	removeStaleDirs()
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("the directory of a killed run is still there: %v", err)
	}
	if _, err := os.Stat(used); err != nil {
		t.Errorf("the directory of a run that continues is gone: %v", err)
	}
}

func TestPostgresGivesEachCallerItsOwnDatabase(t *testing.T) {
	t.Parallel()
	a, b := Postgres(t), Postgres(t)
	a.Exec("CREATE TABLE t (n int)", "INSERT INTO t VALUES (1), (2)")
	if got := a.Query("SELECT n, n * 2 FROM t ORDER BY n"); got != "1|2\n2|4" {
		t.Errorf("Query = %q", got)
	}
	if got := b.Query("SELECT count(*) FROM pg_tables WHERE tablename = 't'"); got != "0" {
		t.Error("the table of one test is in another test's database")
	}
	if got := a.Query("SHOW fsync"); got != "on" {
		t.Errorf("fsync = %s", got)
	}
	if got := a.Query("SELECT 'a' < 'B', 'a' < 'B' COLLATE \"C\""); got != "t|f" {
		t.Errorf("the database sorts as with the locale C: %s", got)
	}
}

func TestPostgresSurvivesBeingKilled(t *testing.T) {
	t.Parallel()
	pg := StartPostgres(t, "checkpoint_timeout=30min")
	pg.Exec("CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)")
	pg.Kill()
	if _, err := pg.server.psql("postgres", "SELECT 1"); err == nil {
		t.Fatal("a killed server answers")
	}
	pg.Start()
	if !strings.Contains(pg.server.process.Output(), "automatic recovery in progress") {
		t.Errorf("the server did not recover from a crash:\n%s", pg.server.process.Output())
	}
	pg.Crash()
	if out := pg.server.process.Output(); !strings.Contains(out, "received immediate shutdown request") {
		t.Errorf("the shutdown was not an immediate one:\n%s", out)
	}
	pg.Start()
	pg.Exec("INSERT INTO t VALUES (2)")
	pg.Stop()
	pg.Start()
	if got := pg.Query("SELECT sum(n) FROM t"); got != "3" {
		t.Errorf("sum = %s, want 3", got)
	}
}

// A supervisor starts a server again that could not start, and then it can.
func TestAServerThatCouldNotStartIsStartedAgain(t *testing.T) {
	t.Parallel()
	pg := StartPostgres(t)
	s := StartServer(t, map[string]string{"DATABASE_URL": pg.URL()})
	s.Signal(sigStop)
	Eventually(t, "the server to be stopped", func() bool { return s.State() == "T" })
	s.Kill()
	if s.State() != "" || !s.Ended() {
		t.Errorf("state %q after SIGKILL", s.State())
	}
	pg.Stop()
	if pg.Running() {
		t.Error("a stopped PostgreSQL runs")
	}
	s.Launch()
	Eventually(t, "the server to give up", s.Ended)
	pg.Start()
	s.Launch()
	if err := s.WaitReady(Within(t, 60*time.Second)); err != nil {
		t.Fatal(err)
	}
}

func waitForExit(t *testing.T, pid int) {
	t.Helper()
	Eventually(t, fmt.Sprintf("the end of process %d", pid), func() bool { return !alive(pid) })
}
