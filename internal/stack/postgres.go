package stack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// primaryFile returns the path of the file that names the primary. Both PostgreSQL
// servers read it when they start.
func primaryFile(s *Stack) string { return filepath.Join(s.StateDir(), "postgres", "primary") }

// Primary returns the service that primaryFile names. Without the file it is
// PostgresService.
func (s *Stack) Primary() (string, error) {
	text, err := os.ReadFile(primaryFile(s))
	if errors.Is(err, fs.ErrNotExist) {
		return PostgresService, nil
	}
	if err != nil {
		return "", fmt.Errorf("find the primary: %w", err)
	}
	name := strings.TrimSpace(string(text))
	if name != PostgresService && name != PostgresReplicaService {
		return "", fmt.Errorf("%s names %q, which is neither %s nor %s", primaryFile(s), name, PostgresService, PostgresReplicaService)
	}
	return name, nil
}

// SetPrimary writes primaryFile.
func (s *Stack) SetPrimary(service string) error {
	return WriteFile(primaryFile(s), []byte(service+"\n"), 0o644)
}
