package command

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
	"github.com/axion/runner-agent/stack"
)

// Containers is what immediate commands do to containers of this node. A nil grace leaves the time before the kill to the container.
type Containers interface {
	Stop(ctx context.Context, container string, grace *time.Duration) error
	Start(ctx context.Context, container string) error
	Restart(ctx context.Context, container string, grace *time.Duration) error
	Kill(ctx context.Context, container, signal string) error
}

// Immediate answers the immediate commands of a session. It is safe for concurrent use.
type Immediate struct {
	Containers Containers
	// Stacks returns the stack engine for one piece of work.
	Stacks func() (Stacks, error)
	// Role tells the node's role now.
	Role func() runnerv1.NodeRole
	// Cancel has a command that came by Kafka end as cancelled, and returns nil when the Swarm has that.
	Cancel func(ctx context.Context, id, stack string) error
}

// Handle does what the request asks within ctx and answers it.
func (i *Immediate) Handle(ctx context.Context, req *runnerv1.Request) *runnerv1.Response {
	resp := &runnerv1.Response{Id: req.GetId()}
	if err := i.handle(ctx, req, resp); err != nil {
		resp.Failure = failurepb.FromError(err)
	}
	return resp
}

func (i *Immediate) handle(ctx context.Context, req *runnerv1.Request, resp *runnerv1.Response) error {
	switch {
	case req.GetPing() != nil:
		return nil
	case req.GetContainerStop() != nil:
		m := req.GetContainerStop()
		return i.Containers.Stop(ctx, m.GetContainer(), grace(m.GetGrace()))
	case req.GetContainerStart() != nil:
		return i.Containers.Start(ctx, req.GetContainerStart().GetContainer())
	case req.GetContainerRestart() != nil:
		m := req.GetContainerRestart()
		return i.Containers.Restart(ctx, m.GetContainer(), grace(m.GetGrace()))
	case req.GetContainerKill() != nil:
		m := req.GetContainerKill()
		return i.Containers.Kill(ctx, m.GetContainer(), m.GetSignal())
	case req.GetServiceScale() != nil:
		return i.scale(ctx, req.GetServiceScale(), resp)
	case req.GetStackStatus() != nil:
		result, err := i.StackStatus(ctx, req.GetStackStatus())
		if err == nil {
			resp.Result = &runnerv1.Response_StackStatus{StackStatus: result}
		}
		return err
	case req.GetCancelCommand() != nil:
		return i.Cancel(ctx, req.GetCancelCommand().GetCommandId(), req.GetCancelCommand().GetStack())
	default:
		return failure.New(failure.Invalid, "unsupported_request", req.GetId(), "request %s is of a kind that this agent cannot do", req.GetId()).WithHint("update the agent")
	}
}

// scale is acknowledged when the engine has accepted it; it has no generation and lasts until the next deployment.
func (i *Immediate) scale(ctx context.Context, m *runnerv1.ServiceScale, resp *runnerv1.Response) error {
	if err := onManager(i.Role(), "scale service "+m.GetService()); err != nil {
		return err
	}
	stacks, err := i.Stacks()
	if err != nil {
		return err
	}
	result, err := stacks.Scale(ctx, m.GetService(), m.GetReplicas(), 0, func(stack.Event) {})
	resp.Warnings = result.Warnings
	return err
}

// StackStatus tells the stacks of the Swarm if none is named, else the services and tasks of that one.
func (i *Immediate) StackStatus(ctx context.Context, m *runnerv1.StackStatus) (*runnerv1.StackStatusResult, error) {
	if err := onManager(i.Role(), "tell about stacks"); err != nil {
		return nil, err
	}
	stacks, err := i.Stacks()
	if err != nil {
		return nil, err
	}
	if m.GetStack() == "" {
		all, err := stacks.Stacks(ctx)
		return stackStatusResult(all, stack.StackStatus{}), err
	}
	status, err := stacks.Status(ctx, m.GetStack())
	return stackStatusResult(nil, status), err
}

// grace is nil if the request leaves it to the container; the engine checks its bounds.
func grace(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	g := d.AsDuration()
	return &g
}
