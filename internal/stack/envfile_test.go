package stack

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"switchyard/internal/testkit"
)

// fullDisk is the size over which no file can grow in onAFullDisk. The log of the go
// command, which the tests write meanwhile, is smaller.
const fullDisk = 1 << 18

// onAFullDisk calls write while no file can grow over fullDisk bytes.
func onAFullDisk(t *testing.T, write func() error) error {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ) // the write itself then fails
	defer signal.Reset(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: fullDisk, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	err := write()
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	return err
}

func TestAFullDiskIsReportedAndKeepsTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, ".env")
	if err := os.WriteFile(path, []byte("IMAGE_BLUE=v1\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	err := onAFullDisk(t, func() error {
		return writeColorEnv(dir, ColorSpec{Color: Blue, Image: Image{Ref: "v2"}, Deployment: strings.Repeat("d", fullDisk), Replicas: 2})
	})
	if !errors.Is(err, syscall.EFBIG) || !strings.Contains(err.Error(), ".env") {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Error("the temporary file is left:", left, err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "IMAGE_BLUE=v1\n" {
		t.Errorf("%q, %v", text, err)
	}
}

// A file that is replaced gets the mode that it should have: a restored secret must
// not stay readable for all.
func TestAReplacedFileGetsItsMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	for _, mode := range []os.FileMode{0o644, 0o600, 0o666} {
		if err := WriteFile(path, []byte(mode.String()), mode); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if info, e := os.Stat(path); errors.Join(err, e) != nil || info.Mode() != mode || string(text) != mode.String() {
			t.Errorf("%q, %v, want %v; %v", text, info, mode, errors.Join(err, e))
		}
	}
}

// Only the color's lines of .env change, and the file keeps its mode.
func TestOnlyTheColorsLinesOfEnvChange(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, ".env")
	text := "# IMAGE_GREEN=old\nDOMAIN=x.test\nIMAGE_BLUE=v1\nexport IMAGE_GREEN = 'v0'\nREPLICAS_GREEN=0\n\nLAST=\"a=b\""
	// The umask of whoever runs the tests may take the group's right away.
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o640), os.Chmod(path, 0o640)); err != nil {
		t.Fatal(err)
	}
	if err := writeColorEnv(dir, ColorSpec{Color: Green, Image: Image{Ref: "v2"}, Deployment: "d2", Replicas: 3}); err != nil {
		t.Fatal(err)
	}
	got := testkit.ReadFile(t, path)
	want := "# IMAGE_GREEN=old\nDOMAIN=x.test\nIMAGE_BLUE=v1\nIMAGE_GREEN=v2\nREPLICAS_GREEN=3\n\nLAST=\"a=b\"\nDEPLOYMENT_GREEN=d2\n"
	if string(got) != want {
		t.Errorf("%q", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Error(info.Mode(), err)
	}
	env, err := readEnv(path)
	if err != nil || env["LAST"] != "a=b" || env["IMAGE_GREEN"] != "v2" {
		t.Error(env, err)
	}
	// A stopped color keeps its image, so that an operator can start it by hand.
	if err := writeColorEnv(dir, ColorSpec{Color: Green}); err != nil {
		t.Fatal(err)
	}
	if env, err = readEnv(path); err != nil || env["IMAGE_GREEN"] != "v2" || env["REPLICAS_GREEN"] != "0" {
		t.Error(env, err)
	}
}
