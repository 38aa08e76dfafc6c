package app

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

func TestTheContainersMemoryLimit(t *testing.T) {
	dir := t.TempDir()
	v2, v1 := filepath.Join(dir, "memory.max"), filepath.Join(dir, "memory.limit_in_bytes")
	files := []string{v2, v1}
	for _, c := range []struct {
		name, v2, v1 string
		want         int64
		ok           bool
	}{
		{name: "version 2", v2: "268435456\n", want: 256 << 20, ok: true},
		{name: "version 2 without a limit", v2: "max\n"},
		{name: "version 1", v1: "67108864\n", want: 64 << 20, ok: true},
		{name: "version 1 without a limit", v1: "9223372036854771712\n"},
		{name: "no control group"},
		{name: "no number", v2: "a lot\n"},
	} {
		for file, text := range map[string]string{v2: c.v2, v1: c.v1} {
			_ = os.Remove(file)
			if text == "" {
				continue
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, ok := memoryLimit(files); ok != c.ok || ok && got != c.want {
			t.Errorf("%s: %d, %v; want %d, %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

func TestTheMemoryOfTheMachine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "meminfo")
	for text, want := range map[string]int64{
		"MemTotal:       24689432 kB\nMemFree:  1 kB\n": 24689432 << 10, "MemFree: 1 kB\n": 0, "MemTotal: a lot kB\n": 0, "": 0,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, ok := machineMemory(file); ok != (want > 0) || ok && got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, ok, want)
		}
	}
	if _, ok := machineMemory(file + "-missing"); ok {
		t.Error("a machine without the file has a known memory")
	}
}

func TestTheLeastMemoryCounts(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(64 << 20))
	if got := leastMemory(); got != 64<<20 {
		t.Errorf("with GOMEMLIMIT=64MiB: %d", got)
	}
}
