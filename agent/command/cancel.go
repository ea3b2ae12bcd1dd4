package command

import (
	"context"

	"github.com/axion/runner-agent/agent/fence"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

// errCancelled is how a cancelled command ended, and the cause of the context of one that this agent runs.
var errCancelled = failure.New(failure.Conflict, fence.CodeCancelled, "", "the command was cancelled by an operator")

// Cancel has a command end as cancelled, one that runs or waits here or on another manager, or that nobody has yet. It returns nil when the Swarm has the
// cancellation: from then on the command can only end so. The stack is the one whose commands it counts with; of a command that is here it may be "".
func (r *Runner) Cancel(ctx context.Context, id, stack string) error {
	if id == "" || len(id) > envelope.MaxID || len(stack) > maxSubject {
		return failure.New(failure.Invalid, "bad_cancellation", id, "the id must have 1 to %d bytes and the name of the stack at most %d", envelope.MaxID, maxSubject)
	}
	if err := onManager(r.deps.Role(), "cancel command "+id); err != nil {
		return err
	}
	here := r.held(id)
	if err := r.cancelInSwarm(ctx, id, stack, here); err != nil {
		return err
	}
	r.deps.Log.Info("command cancelled", "command_id", id)
	for _, c := range here { // which would find it in the head a little later
		c.cancel(errCancelled)
	}
	return nil
}

// cancelInSwarm puts the cancellation where the command's next change must see it: in the head of its stack, or, if it has no generation, in the ring. Which of the two it
// is only an agent knows that has the command; without it, the ring is told before the head, and the head only if the ring does not know the command.
func (r *Runner) cancelInSwarm(ctx context.Context, id, stack string, here []*command) error {
	if len(here) > 0 {
		if withoutGeneration(here[0].payload) {
			_, err := r.deps.Fence.Recent().Cancel(ctx, id)
			return err
		}
		var err error
		if stack, err = r.stackKey(ctx, here[0]); err != nil {
			return err
		}
	}
	if stack == "" {
		return failure.New(failure.Invalid, "no_such_command", id, "command %s is neither running nor waiting on this agent", id).
			WithHint("name the stack: then any manager can cancel it")
	}
	if len(here) == 0 {
		if known, err := r.deps.Fence.Recent().Cancel(ctx, id); known || err != nil {
			return err
		}
	}
	return r.deps.Fence.Cancel(ctx, stack, id)
}

// held are the deliveries of a command that this agent runs or holds, and can read.
func (r *Runner) held(id string) (all []*command) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, c := range r.inflight {
		if d.commandID == id && c.payload != nil && supported(c.payload) {
			all = append(all, c)
		}
	}
	return all
}

func onManager(role runnerv1.NodeRole, what string) error {
	if role != runnerv1.NodeRole_NODE_ROLE_MANAGER {
		return failure.New(failure.Conflict, "wrong_node", "", "this agent is on a worker node and cannot %s", what).WithHint("ask an agent on a manager")
	}
	return nil
}
