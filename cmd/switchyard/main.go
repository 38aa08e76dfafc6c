// Command switchyard is the operator's: it deploys versions and takes them back,
// proves that a service keeps its promises, and measures how fast it is.
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

	"switchyard/internal/deploy"
)

// version is set by the build.
var version = "dev"

// What the command exits with.
const (
	exitOK     = 0
	exitFailed = 1 // it was done, and the answer is no
	exitUsage  = 2 // it could not be done: wrong usage, nobody there

	exitUnfinished = 3 // it stands still half way; the same command goes on
	exitLocked     = 4 // another command is at it
	exitStuck      = 5 // a person has to look
)

// errFailed makes the command exit with 1; what there is to say has been said.
var errFailed = errors.New("the answer is no")

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
		SilenceErrors: true, SilenceUsage: true, DisableSuggestions: true,
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(verifyCommand(), loadCommand(),
		deployCommand(), rollbackCommand(), switchCommand(), statusCommand(), historyCommand(),
		scaleCommand(), drainCommand(), undrainCommand(), smokeCommand(), preflightCommand())
	root.AddCommand(backupCommand(), restoreCommand(), promoteCommand(), checkCommand(), topCommand(),
		queriesCommand(), connectionsCommand(), errorsCommand(), memoryCommand(), reportCommand())
	command, err := root.ExecuteContextC(ctx)
	if err != nil && !errors.Is(err, errFailed) {
		fmt.Fprintf(stderr, "%s: %v\n", command.CommandPath(), err)
	}
	return exitCode(err)
}

// exitCode is what an error means to a pipeline.
func exitCode(err error) int {
	var (
		rolledBack *deploy.RolledBackError
		unfinished *deploy.UnfinishedError
		locked     *deploy.LockedError
		stuck      *deploy.StuckError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errFailed), errors.As(err, &rolledBack):
		return exitFailed
	case errors.As(err, &unfinished):
		return exitUnfinished
	case errors.As(err, &locked):
		return exitLocked
	case errors.As(err, &stuck):
		return exitStuck
	}
	return exitUsage
}
