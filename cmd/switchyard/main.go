// Command switchyard is for operators: it deploys versions and rolls them back,
// backs up and restores a stack, inspects it, verifies that a service keeps its
// guarantees, and measures how fast it is.
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
	"switchyard/internal/stack"
)

// version is set by the build.
var version = "dev"

// Exit codes of the command.
const (
	exitOK         = 0
	exitFailed     = 1 // the command ran, and what it did or checked failed
	exitUsage      = 2 // the command could not run: wrong usage, or nothing to connect to
	exitUnfinished = 3 // a deploy is unfinished; the same command continues it
	exitLocked     = 4 // another command is running
	exitStuck      = 5 // an operator must intervene
)

// errFailed makes the command exit with exitFailed without a further line: the
// reason has been printed.
var errFailed = errors.New("failed")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run runs the command that the arguments name, and returns the exit code. When ctx
// ends, the command stops in an orderly way.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	command, err := root.ExecuteContextC(ctx)
	if err != nil && !errors.Is(err, errFailed) {
		fmt.Fprintf(stderr, "%s: %v\n", command.CommandPath(), err)
	}
	return exitCode(err)
}

// rootCommand returns the command with all its subcommands.
func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:     "switchyard",
		Short:   "operate a Switchyard service",
		Version: version,
		// run prints errors, once and in one line.
		SilenceErrors: true, SilenceUsage: true, DisableSuggestions: true,
	}
	root.AddCommand(verifyCommand(), loadCommand(),
		deployCommand(), rollbackCommand(), switchCommand(), statusCommand(), historyCommand(),
		scaleCommand(), drainCommand(), undrainCommand(), smokeCommand(), preflightCommand())
	root.AddCommand(backupCommand(), restoreCommand(), promoteCommand(), checkCommand(), topCommand(),
		queriesCommand(), connectionsCommand(), errorsCommand(), memoryCommand(), reportCommand())
	return root
}

// exitCode returns the exit code for the error of a command.
func exitCode(err error) int {
	var (
		rolledBack *deploy.RolledBackError
		unfinished *deploy.UnfinishedError
		locked     *stack.LockedError
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
