package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

func (a *app) removeCommand() *cobra.Command {
	var to target
	var detach bool
	timeout := boundedDuration{value: 5 * time.Minute, min: minTimeout, max: maxTimeout}
	cmd := &cobra.Command{
		Use:     "rm STACK",
		Aliases: []string{"remove"},
		Short:   "Remove a stack and wait until it is gone",
		Long: `Remove a stack as "docker stack rm" does, and wait until its services, tasks and networks are gone.

Ctrl-C ends the waiting, not the removal.`,
		Example: "  axionctl rm shop",
		Args:    named("STACK"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			remove := &runnerv1.StackRemove{Stack: args[0], Timeout: durationpb.New(timeout.value)}
			return a.carry(ctx, watched{
				title: "remove stack " + args[0], stack: args[0], timeout: timeout.value, detach: detach, target: to,
				request: &planev1.SubmitCommandRequest{Command: &planev1.SubmitCommandRequest_StackRemove{StackRemove: remove}},
			})
		}),
	}
	cmd.Flags().Var(&timeout, "timeout", "how long the removal may take")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "print the command's id and do not wait")
	to.register(cmd)
	return cmd
}
