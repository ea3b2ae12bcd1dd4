package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/axion/runner-agent/ctl/client"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
)

// cancelTimeout bounds the call: the plane may have to ask one manager after the other.
const cancelTimeout = time.Minute

func (a *app) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel COMMAND",
		Short: "Cancel a command that has not ended",
		Long: `Cancel a command that runs or waits. It is acknowledged when a manager's agent has written that to the Swarm; from then on no agent goes on
with it, whichever dies. What it has changed so far stays: deploy again, or remove the stack.

A command may end in another way just before: "axionctl events --command COMMAND --follow" tells how it ended.`,
		Example: "  axionctl cancel 7c1f0c9e-3e0b-4f7d-9d5b-0a54c4c5b1a2",
		Args:    named("COMMAND"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			return a.call(ctx, cancelTimeout, func(ctx context.Context, plane *client.Client) error {
				if _, err := plane.CancelCommand(ctx, &planev1.CancelCommandRequest{CommandId: args[0]}); err != nil {
					return err
				}
				return a.done("cancelled", args[0])
			})
		}),
	}
}
