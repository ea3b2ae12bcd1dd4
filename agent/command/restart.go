package command

import (
	"context"
	"time"

	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/internal/crashpoint"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// restartTimeout is how long a service may take to converge after a restart.
const restartTimeout = 5 * time.Minute

// deadline refuses a command without a generation that could be delivered when nobody remembers it any more.
func (r *Runner) deadline(c *command) error {
	deadline, last := c.envelope.Deadline, r.deps.Now().Add(fence.MaxDeadline+fence.ClockTolerance)
	switch {
	case deadline.IsZero():
		return failure.New(failure.Invalid, "no_deadline", c.envelope.ID, "command %s: a %s needs a ce_deadline", c.envelope.ID, c.envelope.Type).
			WithHint("it has no generation that would tell a late one from a new one")
	case deadline.After(last):
		return failure.New(failure.Invalid, "bad_deadline", c.envelope.ID, "command %s: its ce_deadline %s is more than %d days ahead",
			c.envelope.ID, deadline.Format(time.RFC3339), fence.MaxDeadline/(24*time.Hour))
	}
	return nil
}

// tryOnce is try for a command without a generation: it has an entry in the Swarm's ring instead of its stack's head.
func (r *Runner) tryOnce(ctx context.Context, c *command, job *job, p *progress) (*runnerv1.CommandOutcome, error) {
	var err error
	if job.order.Stack, err = r.deps.Fence.StackOf(ctx, subjectOf(c.payload)); err != nil { // for the outcome to tell
		return nil, err
	}
	verdict := r.verdict(c, job.order.Stack)
	claim, outcome, err := r.deps.Fence.Recent().Claim(ctx, fence.Once{
		ID: c.envelope.ID, Deadline: c.envelope.Deadline, GroupGeneration: c.group.Load(), Detail: verdict,
	})
	if err != nil {
		return nil, err
	}
	if outcome != nil {
		c.log.Info("command is decided already", "status", outcome.Status)
		if len(outcome.Detail) == 0 { // cancelled by a manager that did not know more of it
			outcome.Detail = verdict(outcome.Status, 0)
		}
		return r.recorded(c, *outcome), nil
	}
	defer claim.Release()
	crashpoint.At(crashpoint.Claimed)
	return r.underClaim(ctx, c, job, claim, p)
}
