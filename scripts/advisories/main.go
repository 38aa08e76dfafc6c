// Command advisories names known weaknesses that govulncheck cannot find.
//
//	advisories modules [-db URL] [-mod FILE]
//	advisories images [-list FILE] [-images FILE] [IMAGE...]
//
// modules looks up the modules whose import path has moved: their advisories are filed
// under the new path. images compares the images of deploy/images.yml, or those that are
// named, with the list of advisories in deploy/advisories.yml.
//
// It exits with 0 if there is none, 3 for a finding, 4 if the database of modules can't be
// reached, and 1 for any other error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

// The exit codes, which are those of scripts/vuln.
const (
	exitNone        = 0
	exitError       = 1
	exitFinding     = 3
	exitUnreachable = 4
)

func main() { os.Exit(run(os.Stdout, os.Stderr, time.Now(), os.Args[1:])) }

// run runs the command at a time and returns its exit code.
func run(stdout, stderr io.Writer, now time.Time, args []string) int {
	found, err := dispatch(stdout, stderr, now, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitNone
	case errors.Is(err, errUnreachable):
		fmt.Fprintln(stderr, "advisories:", err)
		return exitUnreachable
	case err != nil:
		fmt.Fprintln(stderr, "advisories:", err)
		return exitError
	case found:
		return exitFinding
	}
	return exitNone
}

// dispatch runs a verb and reports whether it found a weakness.
func dispatch(stdout, stderr io.Writer, now time.Time, args []string) (found bool, err error) {
	if len(args) == 0 {
		return false, errors.New("say modules or images")
	}
	flags := flag.NewFlagSet("advisories "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	switch args[0] {
	case "modules":
		db := flags.String("db", "https://vuln.go.dev", "the vulnerability database: an https, http or file URL")
		mod := flags.String("mod", "go.mod", "the file with the modules")
		if err := flags.Parse(args[1:]); err != nil {
			return false, err
		}
		return checkModules(context.Background(), stdout, *db, *mod, movedModules)
	case "images":
		list := flags.String("list", "deploy/advisories.yml", "the list of advisories")
		images := flags.String("images", "deploy/images.yml", "the images, unless some are named")
		if err := flags.Parse(args[1:]); err != nil {
			return false, err
		}
		return checkImages(stdout, stderr, now, *list, *images, flags.Args())
	}
	return false, fmt.Errorf("%s: say modules or images", args[0])
}
