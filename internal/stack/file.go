package stack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// WriteFile replaces a file, atomically and durably, and sets its mode: a concurrent
// reader gets the old text or the new one, and after a crash the file has one of them.
// A temporary file lies beside it meanwhile.
func WriteFile(path string, text []byte, mode fs.FileMode) error {
	return replaceFile(path, text, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(mode))
}

// rewriteFile does the same to a file that keeps its mode. The temporary file lies in
// a folder that must be on the same filesystem.
func rewriteFile(path, tempDir string, text []byte) error {
	return replaceFile(path, text, renameio.WithTempDir(tempDir), renameio.WithPermissions(0o644), renameio.WithExistingPermissions())
}

// replaceFile does not use renameio.WriteFile, which never changes the mode of a file.
func replaceFile(path string, text []byte, options ...renameio.Option) error {
	f, err := renameio.NewPendingFile(path, options...)
	if err == nil {
		defer f.Cleanup() //nolint:errcheck // a failed write has its own error
		if _, err = f.Write(text); err == nil {
			err = f.CloseAtomicallyReplace()
		}
	}
	if err != nil {
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
