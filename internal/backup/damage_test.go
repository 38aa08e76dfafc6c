package backup

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"switchyard/internal/testkit"
)

func truncateFile(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func removeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func flipByte(t *testing.T, path string, at int64) {
	t.Helper()
	b := testkit.ReadFile(t, path)
	b[min(at, int64(len(b)/2))] ^= 0x55
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// corruptRecord changes a byte in the middle of a segment's records, and compresses
// the segment correctly: only the checksums of PostgreSQL's records can show it.
func corruptRecord(t *testing.T, path string) {
	t.Helper()
	r, err := openGzip(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	_ = r.Close()
	if err != nil {
		t.Fatal(err)
	}
	at := len(b) / 5
	if bytes.Count(b[at:at+64], []byte{0}) == 64 {
		t.Fatalf("%s has no records in its middle", path)
	}
	b[at] ^= 0x55
	writeGzip(t, path, b)
}

// preserve reads a file, and returns a function that writes it again.
func preserve(t *testing.T, path string) (back func()) {
	t.Helper()
	b := testkit.ReadFile(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(path, b, info.Mode()); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// writeGzip writes a gzip file.
func writeGzip(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	_, err = z.Write(b)
	if err := errors.Join(err, z.Close(), f.Close(), os.Chmod(path, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// failWrites makes each further write to an open file fail as on a full disk: it
// replaces the file's descriptor by one of /dev/full.
func failWrites(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		link := filepath.Join("/proc/self/fd", e.Name())
		if target, err := os.Readlink(link); err != nil || target != path {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		device, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(syscall.Dup3(int(device.Fd()), fd, syscall.O_CLOEXEC), device.Close()); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("%s is not open", path)
}
