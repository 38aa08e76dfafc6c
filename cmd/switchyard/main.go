// Command switchyard is the operator's: it proves that a service keeps its
// promises, and measures how fast it is.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "dev"

// What the command exits with.
const (
	exitOK     = 0
	exitFailed = 1 // it was done, and the answer is no
	exitUsage  = 2 // it could not be done: wrong usage, nobody there
)

// errWrong makes the command exit with 1; what there is to say has been said.
var errWrong = errors.New("the answer is no")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run does what the arguments ask for and returns the exit code. When ctx ends,
// what is under way is brought to an orderly end.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:     "switchyard",
		Short:   "operate a Switchyard service",
		Version: version,
		// Errors are told here, in one line and once.
		SilenceErrors: true, SilenceUsage: true,
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(verifyCommand(), loadCommand())
	command, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errWrong):
		return exitFailed
	}
	fmt.Fprintf(stderr, "%s: %v\n", command.CommandPath(), err)
	return exitUsage
}
