package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"switchyard/internal/backup"
	"switchyard/internal/stack"
)

// repositoryFlags select a stack and the folder of its backups.
type repositoryFlags struct {
	dir, file, project string
	backups            string
	keep               int
}

func (f *repositoryFlags) add(c *cobra.Command) {
	flags := c.PersistentFlags()
	flags.StringVar(&f.dir, "dir", "", "folder of the compose file (default this one, or deploy/compose)")
	flags.StringVar(&f.file, "file", stack.DefaultFile, "name of the compose file")
	flags.StringVar(&f.project, "project", "switchyard", "name of the Compose project")
	flags.StringVar(&f.backups, "backups", "", "folder of the backups (default the one that the compose file mounts: BACKUP_DIR)")
}

// open returns the repository of the stack's backups.
func (f *repositoryFlags) open(ctx context.Context, stderr io.Writer) (*backup.Repository, error) {
	found, err := stack.Open(f.dir, f.file, f.project)
	if err != nil {
		return nil, err
	}
	compose := backup.Compose{Stack: found}
	dir := f.backups
	if dir == "" {
		dir, err = compose.BackupDir(ctx)
	} else {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("BACKUP_DIR: %w", err)
	}
	return &backup.Repository{Dir: dir, Runner: compose, ServiceManager: compose, Keep: f.keep, Version: version, Logger: progressLogger(stderr)}, nil
}

// progressLogger logs the progress of a command for people: without times, and with
// the level only where it is not INFO.
func progressLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey && a.Value.String() == "INFO") {
			return slog.Attr{}
		}
		return a
	}}))
}

// printFailure prints an error in one line, and returns errFailed.
func printFailure(c *cobra.Command, err error) error {
	if c.Context().Err() != nil {
		err = fmt.Errorf("interrupted: %w", err)
	}
	fmt.Fprintf(c.ErrOrStderr(), "%s: %s\n", c.CommandPath(), strings.ReplaceAll(err.Error(), "\n", "; "))
	return errFailed
}
