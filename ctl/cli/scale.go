package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// maxReplicas is the contract's bound.
const maxReplicas = 100_000

func (a *app) scaleCommand() *cobra.Command {
	var to target
	var detach bool
	timeout := boundedDuration{value: 5 * time.Minute, min: minTimeout, max: maxTimeout}
	cmd := &cobra.Command{
		Use:   "scale SERVICE=N",
		Short: "Set the number of a service's tasks and wait until they run",
		Long: `Set the number of a service's tasks as "docker service scale" does, and wait until they run.

The next deployment of the stack sets the number that its files name. Ctrl-C ends the waiting, not the scaling.`,
		Example: "  axionctl scale shop_web=5",
		Args:    named("SERVICE=N"),
		RunE: func(cmd *cobra.Command, args []string) error {
			service, replicas, err := parseScale(args[0])
			if err != nil {
				return err
			}
			return a.run(func(ctx context.Context, _ []string) error {
				scale := &runnerv1.ServiceScale{Service: service, Replicas: replicas, Timeout: durationpb.New(timeout.value)}
				return a.carry(ctx, watched{
					title: "scale service " + service + " to " + strconv.FormatUint(replicas, 10), timeout: timeout.value, detach: detach, target: to,
					request: &planev1.SubmitCommandRequest{Command: &planev1.SubmitCommandRequest_ServiceScale{ServiceScale: scale}},
				})
			})(cmd, args)
		},
	}
	cmd.Flags().Var(&timeout, "timeout", "how long until the tasks must run")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "print the command's id and do not wait")
	to.register(cmd)
	return cmd
}

// parseScale reads "SERVICE=N".
func parseScale(text string) (service string, replicas uint64, err error) {
	service, number, ok := strings.Cut(text, "=")
	if !ok || service == "" {
		return "", 0, usagef("%q is not of the form SERVICE=N", text)
	}
	replicas, err = strconv.ParseUint(number, 10, 64)
	if err != nil || replicas > maxReplicas {
		return "", 0, usagef("%q: the number of tasks must be between 0 and %d", text, maxReplicas)
	}
	return service, replicas, nil
}
