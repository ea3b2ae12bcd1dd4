// Package cli is the command line of axionctl: one file a command, each of which reads its flags, asks the control plane through package
// client, and prints a table or JSON. How a process ends is the same for all of them and stands in exit.go.
package cli

import (
	"context"
	"crypto/rand"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/axion/runner-agent/ctl/command"
)

// Environment is what a process has from its caller. System returns the real one.
type Environment struct {
	// Args are the arguments without the program's name.
	Args           []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// LookupEnv reads an environment variable.
	LookupEnv func(string) (string, bool)
	// WorkingDir and Home are absolute; Home may be empty.
	WorkingDir, Home string
	// Now is the clock.
	Now func() time.Time
	// Interactive is whether a person can be asked: Stdin is a terminal.
	Interactive bool
	// TerminalSize returns the width and height of the terminal that Stdout is; nil if it is none that can be drawn on.
	TerminalSize func() (width, height int)
	// NewKey returns an idempotency key that was never used before.
	NewKey func() string
	// Patience says how long to try what does not answer; the zero value means the defaults.
	Patience command.Config
}

// System returns this process's environment.
func System() (Environment, error) {
	dir, err := os.Getwd()
	if err != nil {
		return Environment{}, err
	}
	home, _ := os.UserHomeDir() // only needed for sources that begin with "~"
	env := Environment{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, LookupEnv: os.LookupEnv, WorkingDir: dir, Home: home,
		Now: time.Now, NewKey: func() string { return "axionctl-" + rand.Text() },
	}
	env.Interactive = term.IsTerminal(int(os.Stdin.Fd()))
	if stdout := int(os.Stdout.Fd()); term.IsTerminal(stdout) && os.Getenv("TERM") != "dumb" {
		env.TerminalSize = func() (int, int) {
			width, height, err := term.GetSize(stdout)
			if err != nil {
				return 0, 0
			}
			return width, height
		}
	}
	return env, nil
}

// app is one run of the command line.
type app struct {
	env     Environment
	context string // --context
	output  output // --output
	started bool   // a command has begun: what goes wrong from now on is no mistake in the arguments
}

// Run does what the arguments say and returns the exit code. When ctx ends, the command stops watching and ends with 130.
func Run(ctx context.Context, env Environment) int {
	a := &app{env: env}
	root := a.root()
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	executed, err := root.ExecuteContextC(ctx)
	return a.finish(executed, err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "axionctl",
		Short:         "Operate Docker Swarm clusters through an Axion control plane",
		Long:          rootHelp,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          a.group,
	}
	root.PersistentFlags().StringVar(&a.context, "context", "", "operator context `FILE` (default $AXION_CONTEXT, else ~/.config/axion/context.toml)")
	root.PersistentFlags().VarP(&a.output, "output", "o", "print as `table|json` (default table)")
	mustComplete(root, "output", outputs...)
	root.AddCommand(
		a.deployCommand(), a.removeCommand(), a.scaleCommand(), a.restartCommand(), a.cancelCommand(), a.psCommand(), a.logsCommand(), a.eventsCommand(),
		a.agentsCommand(), a.tokenCommand(), a.containerCommand(), a.dlqCommand(), a.versionCommand(),
	)
	return root
}

const rootHelp = `axionctl deploys to Docker Swarm clusters through a control plane and shows what runs there.

It reads where the control plane is, whom to trust and the operator's token from an operator context, a file that
the control plane writes into its data directory on its first start (operator.toml).

Exit codes:
  0    done; for deploy, rm, scale and restart: everything runs as asked for (or is gone)
  1    failed
  2    the arguments are wrong
  3    timed out
  4    the command was superseded by a newer one, cancelled, or expired before an agent took it
  130  interrupted; a command that the control plane has taken goes on`

// group is what a command does that only holds others: it prints its help.
func (a *app) group(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// run marks the end of the arguments' part and begins a command's own.
func (a *app) run(do func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		return do(cmd.Context(), args)
	}
}

// named returns a check that there is exactly one argument for each name; one in brackets may be left out.
func named(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		for i, name := range names {
			if i >= len(args) && !strings.HasPrefix(name, "[") {
				return usagef("%s is missing", name)
			}
			if i < len(args) && args[i] == "" {
				return usagef("%s is empty", strings.Trim(name, "[]"))
			}
		}
		if len(args) > len(names) {
			return usagef("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// mustComplete gives the shell the values of a flag. It panics if there is no such flag, which any run of the program would show.
func mustComplete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}
