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
)

// repositoryFlags say which stack, and how many backups of it stay.
type repositoryFlags struct {
	dir, file, project string
	backups            string
	keep               int
}

func (f *repositoryFlags) add(c *cobra.Command) {
	flags := c.PersistentFlags()
	flags.StringVar(&f.dir, "dir", "", "folder of the compose file; default: this one, or deploy/compose below it")
	flags.StringVar(&f.file, "file", backup.DefaultFile, "the compose file in it")
	flags.StringVar(&f.project, "project", "switchyard", "what Compose calls the stack")
	flags.StringVar(&f.backups, "backups", "", "folder of the backups; default: what the compose file mounts for it (BACKUP_DIR)")
}

// open returns the vault of the stack.
func (f *repositoryFlags) open(ctx context.Context, stderr io.Writer) (*backup.Repository, error) {
	stack, err := backup.OpenCompose(f.dir, f.file, f.project)
	if err != nil {
		return nil, err
	}
	dir := f.backups
	if dir == "" {
		dir, err = stack.BackupDir(ctx)
	} else {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("BACKUP_DIR: %w", err)
	}
	return &backup.Repository{Dir: dir, Runner: stack, ServiceManager: stack, Keep: f.keep, Version: version, Logger: progressLogger(stderr)}, nil
}

// progressLogger tells a person how far a command is: no time, no level but
// what is no progress.
func progressLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey && a.Value.String() == "INFO") {
			return slog.Attr{}
		}
		return a
	}}))
}

// printFailure tells why the answer is no, and makes the command exit with 1.
func printFailure(c *cobra.Command, err error) error {
	if c.Context().Err() != nil {
		err = fmt.Errorf("interrupted: %w", err)
	}
	fmt.Fprintf(c.ErrOrStderr(), "%s: %s\n", c.CommandPath(), strings.ReplaceAll(err.Error(), "\n", "; "))
	return errFailed
}
