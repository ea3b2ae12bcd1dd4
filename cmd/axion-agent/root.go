package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/axion/runner-agent/agent"
	"github.com/axion/runner-agent/agent/config"
	"github.com/axion/runner-agent/agent/health"
	"github.com/axion/runner-agent/internal/crashpoint"
	"github.com/axion/runner-agent/proto/version"
)

// commandLine is what the commands share.
type commandLine struct {
	environ []string
	file    string // --config
}

// newRoot returns the command line.
func newRoot(environ []string) *cobra.Command {
	line := &commandLine{environ: environ}
	var flags *config.Flags
	root := &cobra.Command{
		Use:   "axion-agent",
		Short: "Agent that deploys applications on this node's Docker Swarm",
		Long: "Agent that deploys applications on this node's Docker Swarm. Without a command it runs.\n\n" +
			"The configuration is read from a file, then from AXION_... variables, then from the flags, each stronger than the one before.",
		Args:          args(cobra.NoArgs),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return line.runAgent(cmd, flags) },
	}
	root.CompletionOptions.DisableDefaultCmd = true // the image has no shell
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&line.file, "config", "", "configuration `file` (default "+config.DefaultFile+", if there is one)")
	flags = config.AddFlags(root.Flags())
	root.AddCommand(
		line.runCommand(), line.configCommand(), line.healthcheckCommand(),
		line.statusCommand(), line.stacksCommand(), line.logsCommand(), line.doctorCommand(), versionCommand(),
	)
	return root
}

// sources returns where a command's configuration comes from.
func (l *commandLine) sources(flags *config.Flags) config.Sources {
	return config.Sources{File: l.file, Environ: l.environ, Flags: flags}
}

func (l *commandLine) runCommand() *cobra.Command {
	var flags *config.Flags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent until it is told to end (the default)",
		Args:  args(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return l.runAgent(cmd, flags) },
	}
	flags = config.AddFlags(cmd.Flags())
	return cmd
}

func (l *commandLine) runAgent(cmd *cobra.Command, flags *config.Flags) error {
	cfg, err := config.Load(l.sources(flags))
	if err != nil {
		return err
	}
	crashpoint.Arm()
	config.ClearEnvironment()
	a, err := agent.New(cfg, newLogger(cmd, cfg.Agent))
	if err != nil {
		return err
	}
	return a.Run(cmd.Context())
}

// newLogger returns a logger to standard error.
func newLogger(cmd *cobra.Command, cfg config.Agent) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.LogLevel)) // one of the configuration's choices
	options := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), options))
	}
	return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), options))
}

func (l *commandLine) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look at the configuration", Args: args(cobra.NoArgs)}
	cmd.AddCommand(
		l.configSubcommand("check", "Say what is wrong with the configuration; exit code 0 if nothing is", func(cmd *cobra.Command, _ config.Config) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "the configuration is sound")
			return err
		}),
		l.configSubcommand("print", "Print what holds in the end, and where it comes from; secrets are redacted", func(cmd *cobra.Command, cfg config.Config) error {
			return config.Print(cmd.OutOrStdout(), cfg)
		}),
	)
	return cmd
}

func (l *commandLine) configSubcommand(use, short string, then func(*cobra.Command, config.Config) error) *cobra.Command {
	var flags *config.Flags
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(l.sources(flags))
			if err != nil {
				return err
			}
			return then(cmd, cfg)
		},
	}
	flags = config.AddFlags(cmd.Flags())
	return cmd
}

func (l *commandLine) healthcheckCommand() *cobra.Command {
	var flags *config.Flags
	var ready bool
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask the agent of this node whether it is alive; exit code 0 if so",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := "/livez"
			if ready {
				path = "/readyz"
			}
			if err := health.Check(cmd.Context(), config.HealthListen(l.sources(flags)), path); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "the agent is well")
			return err
		},
	}
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether it can do its work, too")
	flags = config.AddFlags(cmd.Flags(), "health.listen")
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version.Line("axion-agent"))
			return err
		},
	}
}

// args makes a usage error of what check complains about.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}
