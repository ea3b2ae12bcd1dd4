package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

const (
	// containerTimeout is what the engine may need beside the grace that a container has.
	containerTimeout = 60 * time.Second
	// maxRequestTimeout is the contract's bound.
	maxRequestTimeout = 10 * time.Minute
)

func (a *app) containerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "container",
		Short: "Stop, start, restart, kill or read the log of a container on an agent's node",
		Args:  named(),
		RunE:  a.group,
	}
	cmd.AddCommand(a.containerStopCommand(), a.containerStartCommand(), a.containerRestartCommand(), a.containerKillCommand(), a.containerLogsCommand())
	return cmd
}

func (a *app) containerStopCommand() *cobra.Command {
	grace := boundedDuration{max: maxRequestTimeout}
	cmd := &cobra.Command{
		Use:     "stop AGENT CONTAINER",
		Short:   `Stop a container, as "docker stop" does`,
		Example: "  axionctl container stop a-3k9vbd1xw2p0c7mz shop_web.1.0x1y2z --grace 30s",
		Args:    named("AGENT", "CONTAINER"),
		RunE: a.onContainer("stopped", &grace, func(name string) *runnerv1.Request {
			return &runnerv1.Request{Command: &runnerv1.Request_ContainerStop{ContainerStop: &runnerv1.ContainerStop{Container: name, Grace: grace.message()}}}
		}),
	}
	registerGrace(cmd, &grace)
	return cmd
}

func (a *app) containerStartCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "start AGENT CONTAINER",
		Short:   `Start a container, as "docker start" does`,
		Example: "  axionctl container start a-3k9vbd1xw2p0c7mz db",
		Args:    named("AGENT", "CONTAINER"),
		RunE: a.onContainer("started", nil, func(name string) *runnerv1.Request {
			return &runnerv1.Request{Command: &runnerv1.Request_ContainerStart{ContainerStart: &runnerv1.ContainerStart{Container: name}}}
		}),
	}
}

func (a *app) containerRestartCommand() *cobra.Command {
	grace := boundedDuration{max: maxRequestTimeout}
	cmd := &cobra.Command{
		Use:     "restart AGENT CONTAINER",
		Short:   `Restart a container, as "docker restart" does`,
		Example: "  axionctl container restart a-3k9vbd1xw2p0c7mz db",
		Args:    named("AGENT", "CONTAINER"),
		RunE: a.onContainer("restarted", &grace, func(name string) *runnerv1.Request {
			return &runnerv1.Request{Command: &runnerv1.Request_ContainerRestart{ContainerRestart: &runnerv1.ContainerRestart{Container: name, Grace: grace.message()}}}
		}),
	}
	registerGrace(cmd, &grace)
	return cmd
}

func (a *app) containerKillCommand() *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use:     "kill AGENT CONTAINER",
		Short:   `Send a signal to a container, as "docker kill" does`,
		Example: "  axionctl container kill a-3k9vbd1xw2p0c7mz db --signal SIGHUP",
		Args:    named("AGENT", "CONTAINER"),
		RunE: a.onContainer("killed", nil, func(name string) *runnerv1.Request {
			return &runnerv1.Request{Command: &runnerv1.Request_ContainerKill{ContainerKill: &runnerv1.ContainerKill{Container: name, Signal: signal}}}
		}),
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "`SIGNAL`, by name or number (default SIGKILL)")
	return cmd
}

func (a *app) containerLogsCommand() *cobra.Command {
	var options logOptions
	cmd := &cobra.Command{
		Use:     "logs AGENT CONTAINER",
		Short:   `Print a container's log, as "docker logs" does`,
		Example: "  axionctl container logs -f --tail 100 a-3k9vbd1xw2p0c7mz db",
		Args:    named("AGENT", "CONTAINER"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			return a.printLogs(ctx, &planev1.StreamLogsRequest{
				AgentId: args[0],
				Open:    &runnerv1.OpenLogs{Target: &runnerv1.OpenLogs_Container{Container: args[1]}, Options: options.message()},
			})
		}),
	}
	options.registerShared(cmd)
	return cmd
}

// onContainer returns what a command with the arguments AGENT CONTAINER does.
func (a *app) onContainer(done string, grace *boundedDuration, request func(container string) *runnerv1.Request) func(*cobra.Command, []string) error {
	return a.run(func(ctx context.Context, args []string) error {
		timeout := containerTimeout
		if grace != nil {
			timeout = min(timeout+grace.value, maxRequestTimeout)
		}
		if _, err := a.ask(ctx, target{agent: args[0]}, timeout, request(args[1])); err != nil {
			return err
		}
		return a.done(done, args[1])
	})
}

func registerGrace(cmd *cobra.Command, grace *boundedDuration) {
	cmd.Flags().VarP(grace, "grace", "t", "how long the container may take to stop before it is killed (default: the container's own)")
}

// message returns the duration for the wire; nil, which leaves it to the container, if the flag was not given.
func (d *boundedDuration) message() *durationpb.Duration {
	if !d.set {
		return nil
	}
	return durationpb.New(d.value)
}
