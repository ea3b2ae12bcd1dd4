package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/axion/runner-agent/ctl/document"
	"github.com/axion/runner-agent/ctl/table"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// statusTimeout bounds the agent's answer; a stack of some thousand tasks takes its engine seconds.
const statusTimeout = 30 * time.Second

func (a *app) psCommand() *cobra.Command {
	var to target
	var noTrunc bool
	cmd := &cobra.Command{
		Use:   "ps [STACK]",
		Short: "List the stacks, or the services and tasks of one",
		Long: `List the stacks of a cluster as "docker stack ls" does; with a stack, its services and tasks as "docker stack services" and
"docker stack ps" do. A task's error is never cut.`,
		Example: `  axionctl ps
  axionctl ps shop
  axionctl ps shop -o json | jq '.tasks[] | select(.error != "")'`,
		Args: named("[STACK]"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			stack := ""
			if len(args) == 1 {
				stack = args[0]
			}
			request := &runnerv1.Request{Command: &runnerv1.Request_StackStatus{StackStatus: &runnerv1.StackStatus{Stack: stack}}}
			response, err := a.ask(ctx, to, statusTimeout, request)
			if err != nil {
				return err
			}
			if stack == "" {
				return a.printStacks(response.GetStackStatus().GetStacks())
			}
			return a.printStack(stack, response.GetStackStatus(), noTrunc)
		}),
	}
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "do not shorten ids")
	to.register(cmd)
	return cmd
}

func (a *app) printStacks(stacks []*runnerv1.StackSummary) error {
	if a.json() {
		return document.Write(a.env.Stdout, document.OfStacks(stacks))
	}
	rows := table.New("NAME", "SERVICES")
	for _, s := range stacks {
		rows.Add(s.GetName(), strconv.FormatUint(uint64(s.GetServices()), 10))
	}
	return rows.Write(a.env.Stdout)
}

func (a *app) printStack(stack string, status *runnerv1.StackStatusResult, noTrunc bool) error {
	if len(status.GetServices()) == 0 && len(status.GetTasks()) == 0 {
		return failure.New(failure.Invalid, "no_such_stack", stack, "nothing found in stack: %s", stack).WithHint("axionctl ps lists the stacks")
	}
	if a.json() {
		return document.Write(a.env.Stdout, document.OfStackStatus(stack, status))
	}
	id := shortID
	if noTrunc {
		id = func(full string) string { return full }
	}
	services := table.New("ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS")
	for _, s := range status.GetServices() {
		services.Add(id(s.GetId()), s.GetName(), s.GetMode(), s.GetReplicas(), s.GetImage(), s.GetPorts())
	}
	tasks := table.New("ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS")
	for _, t := range status.GetTasks() {
		tasks.Add(id(t.GetId()), t.GetName(), t.GetImage(), t.GetNode(), t.GetDesiredState(), t.GetCurrentState(), t.GetError(), t.GetPorts())
	}
	if err := services.Write(a.env.Stdout); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(a.env.Stdout); err != nil {
		return err
	}
	return tasks.Write(a.env.Stdout)
}
