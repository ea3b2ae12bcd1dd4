package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// restartTime is how long the tasks of a service may take to be replaced: the plane's bound, since the command has none of its own.
const restartTime = 10 * time.Minute

func (a *app) restartCommand() *cobra.Command {
	var to target
	var detach bool
	timeout := boundedDuration{value: 5 * time.Minute, min: minTimeout, max: maxTimeout}
	cmd := &cobra.Command{
		Use:   "restart SERVICE",
		Short: "Replace a service's tasks and wait until the new ones run",
		Long: `Replace a service's tasks as "docker service update --force" does, with the same image and settings, and wait until the new ones run.

A restart that no agent has begun in time is never run: a service is not restarted hours later because its cluster was away. Ctrl-C ends the
waiting, not the restart.`,
		Example: "  axionctl restart shop_web",
		Args:    named("SERVICE"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			restart := &runnerv1.ServiceRestart{Service: args[0]}
			return a.carry(ctx, watched{
				title: "restart service " + args[0], timeout: restartTime, life: timeout.value, detach: detach, target: to,
				request: &planev1.SubmitCommandRequest{Command: &planev1.SubmitCommandRequest_ServiceRestart{ServiceRestart: restart}},
			})
		}),
	}
	cmd.Flags().Var(&timeout, "timeout", "until when an agent must have begun it; later it is not run any more")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "print the command's id and do not wait")
	to.register(cmd)
	return cmd
}
