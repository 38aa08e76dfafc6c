package app

import (
	"os"
	"path/filepath"
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
