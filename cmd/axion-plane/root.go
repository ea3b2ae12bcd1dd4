package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/axion/runner-agent/internal/variables"
	"github.com/axion/runner-agent/plane"
	"github.com/axion/runner-agent/proto/version"
)

const (
	// envPrefix begins the environment variable of each flag: --kafka-listen is AXION_PLANE_KAFKA_LISTEN.
	envPrefix = "AXION_PLANE_"
	// passwordEnv is a variable without a flag: a password on a command line can be read by everybody on the machine.
	passwordEnv = envPrefix + "KAFKA_SASL_PASSWORD"
	// defaultData is the data directory of the image.
	defaultData = "/var/lib/axion-plane"
	// checkTimeout bounds a health check; shorter than what the image gives it.
	checkTimeout = 4 * time.Second
)

// newRoot returns the command line.
func newRoot(environ []string) *cobra.Command {
	var data string
	options := &serveOptions{environ: environ}
	root := &cobra.Command{
		Use:           "axion-plane",
		Short:         "The reference control plane of the Axion Runner Agent",
		Long:          "The reference control plane of the Axion Runner Agent. Without a command it serves.\n\nEach flag can be given as an environment variable: --kafka-listen as AXION_PLANE_KAFKA_LISTEN.",
		Args:          noArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return fromEnvironment(cmd, environ)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd, data, options) },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&data, "data", defaultData, "data `directory`: certificate authority, database, embedded broker, operator context")
	options.register(root.Flags())
	root.AddCommand(serveCommand(&data, options), tokenCommand(&data), healthCommand(&data), versionCommand())
	return root
}

func serveCommand(data *string, options *serveOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve agents and operators until the process is told to end",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return serve(cmd, *data, options) },
	}
	options.register(cmd.Flags())
	return cmd
}

func healthCommand(data *string) *cobra.Command {
	return &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask the plane on this machine whether it is ready; exit code 0 if so",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), checkTimeout)
			defer cancel()
			return plane.Check(ctx, *data)
		},
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version.Line("axion-plane"))
			return err
		},
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usageError{err}
	}
	return nil
}

// fromEnvironment sets the flags that were not given from their variables. A variable that belongs to no flag of any command is refused: it is a misspelt one.
func fromEnvironment(cmd *cobra.Command, environ []string) error {
	known := flagNames(cmd.Root())
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || name == passwordEnv {
			continue
		}
		flag := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, envPrefix), "_", "-"))
		if variables.OfAgent(name) {
			continue // an agent shares the environment
		}
		if !slices.Contains(known, flag) {
			return usageError{fmt.Errorf("environment variable %s belongs to no flag", name)}
		}
		f := cmd.Flags().Lookup(flag)
		if f == nil || f.Changed {
			continue // another command's, or given on the command line
		}
		if err := cmd.Flags().Set(flag, value); err != nil {
			return usageError{fmt.Errorf("environment variable %s: %w", name, err)}
		}
	}
	return nil
}

func flagNames(cmd *cobra.Command) (names []string) {
	add := func(f *pflag.Flag) { names = append(names, f.Name) }
	cmd.PersistentFlags().VisitAll(add)
	cmd.LocalFlags().VisitAll(add)
	for _, sub := range cmd.Commands() {
		names = append(names, flagNames(sub)...)
	}
	return names
}
