package cli

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/ctl/document"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failurepb"
)

// logOptions are the flags of `docker service logs`.
type logOptions struct {
	follow, timestamps, details, raw, noTrunc, noResolve, noTaskIDs bool
	since, tail                                                     string
}

// registerShared registers the flags that `docker logs` has too.
func (o *logOptions) registerShared(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVarP(&o.follow, "follow", "f", false, "go on with new lines")
	flags.StringVar(&o.since, "since", "", "only lines since this `TIME`, for example 2026-01-02T13:23:37Z or 42m")
	flags.StringVarP(&o.tail, "tail", "n", "all", "`NUMBER` of lines from the end")
	flags.BoolVarP(&o.timestamps, "timestamps", "t", false, "print timestamps")
	flags.BoolVar(&o.details, "details", false, "print extra details that the log driver has")
}

// register registers all flags.
func (o *logOptions) register(cmd *cobra.Command) {
	o.registerShared(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&o.raw, "raw", false, "print the lines as the container wrote them")
	flags.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten ids")
	flags.BoolVar(&o.noResolve, "no-resolve", false, "do not map ids to names")
	flags.BoolVar(&o.noTaskIDs, "no-task-ids", false, "leave task ids out")
}

func (o *logOptions) message() *runnerv1.LogOptions {
	return &runnerv1.LogOptions{
		Follow: o.follow, Since: o.since, Tail: o.tail, Timestamps: o.timestamps, Details: o.details, NoResolve: o.noResolve, NoTrunc: o.noTrunc,
		NoTaskIds: o.noTaskIDs, Raw: o.raw,
	}
}

func (a *app) logsCommand() *cobra.Command {
	var to target
	var options logOptions
	cmd := &cobra.Command{
		Use:   "logs SERVICE|TASK",
		Short: "Print the log of a service or task",
		Long: `Print the log of a service or task, line for line as "docker service logs" does: what went to a container's standard error
goes to standard error.`,
		Example: `  axionctl logs -f --tail 100 shop_web
  axionctl logs --since 10m --timestamps shop_web`,
		Args: named("SERVICE"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			return a.printLogs(ctx, &planev1.StreamLogsRequest{
				AgentId: to.agent, ClusterId: to.cluster,
				Open: &runnerv1.OpenLogs{Target: &runnerv1.OpenLogs_Service{Service: args[0]}, Options: options.message()},
			})
		}),
	}
	options.register(cmd)
	to.register(cmd)
	return cmd
}

// printLogs prints a stream of lines until its end. An interruption ends it without a word, as docker does.
func (a *app) printLogs(ctx context.Context, request *planev1.StreamLogsRequest) error {
	return a.call(ctx, 0, func(ctx context.Context, plane *client.Client) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends the stream when a line cannot be printed
		stream, err := plane.StreamLogs(ctx, request)
		if err != nil {
			return err
		}
		for {
			batch, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			for _, line := range batch.GetLines() {
				if err := a.printLogLine(line); err != nil {
					return err
				}
			}
			if batch.GetFailure() != nil {
				return failurepb.ToError(batch.GetFailure())
			}
			if batch.GetEnd() {
				return nil
			}
		}
	})
}

// printLogLine writes the bytes as they are: what a container prints is its own affair, as with docker.
func (a *app) printLogLine(line *runnerv1.LogLine) error {
	if a.json() {
		return document.WriteLine(a.env.Stdout, document.OfLogLine(line))
	}
	to := a.env.Stdout
	if line.GetSource() == runnerv1.LogSource_LOG_SOURCE_STDERR {
		to = a.env.Stderr
	}
	_, err := to.Write(line.GetText())
	return err
}
