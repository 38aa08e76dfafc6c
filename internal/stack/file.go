package stack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// WriteFile replaces a file, atomically and durably: a concurrent reader gets the
// old text or the new one, and after a crash the file has one of them. A temporary
// file lies beside it meanwhile.
func WriteFile(path string, text []byte, mode fs.FileMode) error {
	return replaceFile(path, filepath.Dir(path), text, renameio.WithStaticPermissions(mode))
}

// rewriteFile does the same to a file that keeps its mode. The temporary file lies in
// a folder that must be on the same filesystem.
func rewriteFile(path, tempDir string, text []byte) error {
	return replaceFile(path, tempDir, text, renameio.WithExistingPermissions())
}

func replaceFile(path, tempDir string, text []byte, mode renameio.Option) error {
	if err := renameio.WriteFile(path, text, 0o644, renameio.WithTempDir(tempDir), mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncFolder(filepath.Dir(path))
}

// SyncFolder makes the renames in a folder durable, which renameio does not.
func SyncFolder(path string) error {
	dir, err := os.Open(path)
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
