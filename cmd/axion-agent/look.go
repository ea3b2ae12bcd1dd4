package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/axion/runner-agent/agent/config"
	"github.com/axion/runner-agent/agent/local"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// askTimeout bounds each question to the agent; a stack's status may need a few calls to the engine.
const askTimeout = 30 * time.Second

// The values of -o.
const (
	outputTable = "table"
	outputJSON  = "json"
)

// output is the flag -o.
type output string

// String returns the value.
func (o *output) String() string { return string(*o) }

// Type names the value in the usage text.
func (o *output) Type() string { return "format" }

// Set takes a value that is known.
func (o *output) Set(value string) error {
	if value != outputTable && value != outputJSON {
		return fmt.Errorf("must be %s or %s", outputTable, outputJSON)
	}
	*o = output(value)
	return nil
}

// withAgent connects to the agent of this host and runs f.
func (l *commandLine) withAgent(ctx context.Context, flags *config.Flags, f func(*local.Client) error) (err error) {
	client, err := local.Dial(ctx, config.LocalSocket(l.sources(flags)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	return f(client)
}

// ask is withAgent for a question that must be answered in time.
func (l *commandLine) ask(ctx context.Context, flags *config.Flags, f func(context.Context, *local.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return l.withAgent(ctx, flags, func(c *local.Client) error { return f(ctx, c) })
}

func (l *commandLine) statusCommand() *cobra.Command {
	var flags *config.Flags
	format := output(outputTable)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell how the agent of this host is",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return l.ask(cmd.Context(), flags, func(ctx context.Context, c *local.Client) error {
				status, err := c.Status(ctx)
				if err != nil {
					return err
				}
				if format == outputJSON {
					return printJSON(cmd.OutOrStdout(), status)
				}
				return printStatus(cmd.OutOrStdout(), status, time.Now())
			})
		},
	}
	cmd.Flags().VarP(&format, "output", "o", "table or json")
	flags = config.AddFlags(cmd.Flags(), "local.socket")
	return cmd
}

func (l *commandLine) stacksCommand() *cobra.Command {
	var flags *config.Flags
	format := output(outputTable)
	cmd := &cobra.Command{
		Use:   "stacks [STACK]",
		Short: "List the stacks of the Swarm, or the services and tasks of one (on a manager)",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			name := ""
			if len(names) == 1 {
				name = names[0]
			}
			return l.ask(cmd.Context(), flags, func(ctx context.Context, c *local.Client) error {
				result, err := c.Stack(ctx, name)
				if err != nil {
					return err
				}
				switch {
				case format == outputJSON:
					return printJSON(cmd.OutOrStdout(), result)
				case name == "":
					return printStacks(cmd.OutOrStdout(), result.GetStacks())
				default:
					return printStack(cmd.OutOrStdout(), result)
				}
			})
		},
	}
	cmd.Flags().VarP(&format, "output", "o", "table or json")
	flags = config.AddFlags(cmd.Flags(), "local.socket")
	return cmd
}

func (l *commandLine) logsCommand() *cobra.Command {
	var flags *config.Flags
	var container string
	options := &runnerv1.LogOptions{}
	cmd := &cobra.Command{
		Use:   "logs SERVICE | logs --container ID",
		Short: "Print the logs of a service (on a manager) or of a container of this host",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			req := &runnerv1.LocalLogsRequest{Options: options}
			switch {
			case len(names) == 1 && container == "":
				req.Target = &runnerv1.LocalLogsRequest_Service{Service: names[0]}
			case len(names) == 0 && container != "":
				req.Target = &runnerv1.LocalLogsRequest_Container{Container: container}
			default:
				return usageError{errors.New("name either a service or, with --container, a container")}
			}
			return l.withAgent(cmd.Context(), flags, func(c *local.Client) error {
				return c.Logs(cmd.Context(), req, func(line *runnerv1.LogLine) error { return printLine(cmd, line) })
			})
		},
	}
	cmd.Flags().StringVar(&container, "container", "", "`id` or name of a container of this host")
	cmd.Flags().BoolVarP(&options.Follow, "follow", "f", false, "go on with new lines")
	cmd.Flags().StringVar(&options.Since, "since", "", "only lines since a `time` (2025-01-02T13:23:37Z) or for a duration (42m)")
	cmd.Flags().StringVarP(&options.Tail, "tail", "n", "all", "`number` of lines from the end")
	cmd.Flags().BoolVarP(&options.Timestamps, "timestamps", "t", false, "print timestamps")
	flags = config.AddFlags(cmd.Flags(), "local.socket")
	return cmd
}

// printLine writes a line to where the container wrote it.
func printLine(cmd *cobra.Command, line *runnerv1.LogLine) error {
	w := cmd.OutOrStdout()
	if line.GetSource() == runnerv1.LogSource_LOG_SOURCE_STDERR {
		w = cmd.ErrOrStderr()
	}
	_, err := w.Write(line.GetText())
	return err
}
