package command

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/internal/crashpoint"
	"github.com/axion/runner-agent/internal/quorum"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
)

const (
	// claimPause is between two attempts to take a claim that somebody else holds.
	claimPause = time.Second
	// maxPasses bounds how often the services are listed anew because something changed between the list and the write.
	maxPasses = 20
)

// execute runs the command under a claim and returns its outcome, which the stack's head then holds. The error is only for what decides nothing: the agent
// stops. A claim that is lost is asked for again, and the answer tells what became of the command.
func (r *Runner) execute(ctx context.Context, c *command) (*runnerv1.CommandOutcome, error) {
	p := r.newProgress(c)
	defer p.pace.end()
	defer func() {
		if errors.Is(context.Cause(ctx), ErrNoQuorum) {
			p.withoutQuorum()
		}
	}()
	defer c.pulse.rest()
	c.pulse.expect("read the command", r.deps.Now().Add(stepTime))
	job, err := r.job(c)
	if err != nil {
		return outcomeOf(stack.Result{}, err), nil
	}
	for told := false; ; {
		outcome, err := r.try(ctx, c, job, p)
		switch f := failure.Of(err); {
		case f == nil:
			return outcome, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case f.Code == fence.CodeLost:
			c.log.Warn("the claim is lost; looking what became of the command", "error", err)
			p.observe(stack.Notice{Warning: true, Text: err.Error()})
		case quorum.Missing(err):
			p.withoutQuorum()
		case f.Class == failure.Unavailable:
			if !told {
				c.log.Warn("the stack cannot be claimed; trying again", "error", err)
				p.observe(stack.Notice{Warning: true, Text: err.Error() + "; trying again"})
				told = true
			}
		default:
			return outcomeOf(stack.Result{}, err), nil
		}
		if !sleep(ctx, claimPause/2+rand.N(claimPause)) {
			return nil, ctx.Err()
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// try takes the claim and runs the command under it, or returns the outcome that it has without one.
func (r *Runner) try(ctx context.Context, c *command, job *job, p *progress) (*runnerv1.CommandOutcome, error) {
	c.pulse.expect("claim the stack", r.deps.Now().Add(stepTime))
	if withoutGeneration(c.payload) {
		return r.tryOnce(ctx, c, job, p)
	}
	order := job.order
	var err error
	if order.Stack, err = r.stackKey(ctx, c); err != nil {
		return nil, err
	}
	order.GroupGeneration = c.group.Load()
	order.Expired = !c.envelope.Deadline.IsZero() && r.deps.Now().After(c.envelope.Deadline)
	order.Detail = r.verdict(c, order.Stack)
	job.order = order
	claim, outcome, err := r.deps.Fence.Claim(ctx, order)
	var older *fence.Superseded
	switch {
	case errors.As(err, &older):
		refused := rejected(failure.Of(err))
		refused.Status, refused.CurrentGeneration = runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED, older.Current
		return refused, nil
	case err != nil && failure.Of(err).Code == fence.CodeConflict:
		refused := rejected(failure.Of(err))
		refused.CurrentGeneration = order.Generation // a plane that counts anew jumps ahead
		return refused, nil
	case err != nil:
		return nil, err
	case outcome != nil:
		c.log.Info("command is decided already", "status", outcome.Status)
		return r.recorded(c, *outcome), nil
	}
	defer claim.Release()
	crashpoint.At(crashpoint.Claimed)
	return r.underClaim(ctx, c, job, claim, p)
}

// verdict makes what the head says of a command that ends with its claim.
func (r *Runner) verdict(c *command, stack string) func(status string, generation uint64) []byte {
	return func(status string, generation uint64) []byte {
		outcome := &runnerv1.CommandOutcome{Status: statusOf(status), Stack: stack, Generation: generation}
		switch status {
		case fence.StatusCancelled:
			outcome.Failure = failureOf(errCancelled)
		case fence.StatusExpired:
			outcome.Failure = failureOf(failure.New(failure.Deadline, "expired", c.envelope.Subject, "command %s was to be begun by %s",
				c.envelope.ID, c.envelope.Deadline.Format(time.RFC3339)))
		}
		r.complete(c, outcome)
		return detailOf(outcome)
	}
}

func rejected(f *failure.Error) *runnerv1.CommandOutcome {
	return &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED, Failure: failureOf(f)}
}

// underClaim runs the command while the claim is kept, and decides its outcome in the head. Nothing is decided when the agent stops or the claim is lost.
func (r *Runner) underClaim(ctx context.Context, c *command, job *job, claim Claim, p *progress) (*runnerv1.CommandOutcome, error) {
	keeping, stop := context.WithCancel(ctx)
	kept := make(chan struct{})
	go func() { defer close(kept); claim.Keep(keeping) }()
	defer func() { stop(); <-kept }()

	started := r.deps.Now()
	result, err := r.run(c, job, claim, p)
	switch {
	case claim.Err() != nil:
		return nil, claim.Err()
	case claim.Stopped() != nil || errors.Is(context.Cause(c.run), errCancelled):
		err = errCancelled
	case c.run.Err() != nil:
		return nil, c.run.Err()
	}
	crashpoint.At(crashpoint.Converged)
	outcome, err := r.decide(ctx, c, claim, func(err error) *runnerv1.CommandOutcome {
		outcome := outcomeOf(result, err)
		outcome.Stack = job.order.Stack
		outcome.Generation, outcome.StartedAt = claim.Generation(), timestamp(started)
		r.complete(c, outcome)
		return outcome
	}, err)
	if err != nil {
		return nil, err
	}
	crashpoint.At(crashpoint.Decided)
	return outcome, nil
}

// decide records in the head how the command ended: as err says, unless a cancellation has come first.
func (r *Runner) decide(ctx context.Context, c *command, claim Claim, with func(error) *runnerv1.CommandOutcome, err error) (*runnerv1.CommandOutcome, error) {
	outcome := with(err)
	var lost error
	stalled := r.patiently(ctx, c, "decide the outcome in the stack's head", func() error {
		err := claim.Decide(ctx, statusWord(outcome.GetStatus()), detailOf(outcome))
		if f := failure.Of(err); f != nil && f.Code == fence.CodeCancelled {
			outcome = with(errCancelled)
			err = claim.Decide(ctx, statusWord(outcome.GetStatus()), detailOf(outcome))
		}
		if lost = claim.Err(); lost != nil {
			return nil // not to be tried again
		}
		return err
	})
	if stalled != nil {
		return nil, stalled
	}
	return outcome, lost
}

// run does what the command asks. While the engine is away it is asked again, until what is left of the command's own time is over; when something changed between a
// list and a write, the pass is repeated.
func (r *Runner) run(c *command, job *job, claim Claim, p *progress) (stack.Result, error) {
	left := claim.Left(job.timeout)
	c.pulse.expect("do what it asks", r.deps.Now().Add(left))
	if left < job.timeout {
		c.log.Info("the command was begun before", "left", left.Round(time.Second), "of", job.timeout)
	}
	ctx, cancel := context.WithTimeoutCause(c.run, left, failure.New(failure.Deadline, "timed_out", subjectOf(c.payload),
		"%s did not end within %s", subjectOf(c.payload), job.timeout))
	defer cancel()
	passes := 0
	for wait := firstRetry; ; wait = min(2*wait, longestRetry) {
		result, err := r.attempt(ctx, job, claim, p)
		again := failure.Of(err) != nil && failure.Of(err).Code == fence.CodeRepeat
		if again {
			passes++
		}
		if ctx.Err() != nil || claim.Stopped() != nil || !(again && passes < maxPasses) && failure.ClassOf(err) != failure.Unavailable {
			return result, err
		}
		switch {
		case again:
			c.log.Info("the services have changed; listing them again", "pass", passes, "reason", err)
		case quorum.Missing(err):
			p.withoutQuorum()
		default:
			c.log.Warn("the engine is away; trying again", "error", err)
			p.observe(stack.Notice{Warning: true, Text: err.Error() + "; trying again"})
		}
		if !sleep(ctx, rand.N(wait)) {
			return result, err
		}
	}
}

// attempt is one attempt. The first that is told of a service's progress means that all is written.
func (r *Runner) attempt(ctx context.Context, job *job, claim Claim, p *progress) (stack.Result, error) {
	left := job.timeout
	if deadline, ok := ctx.Deadline(); ok {
		left = time.Until(deadline)
	}
	ctx, end := claim.Context(ctx)
	defer end(nil)
	stacks, err := r.deps.Stacks(claim)
	if err != nil {
		return stack.Result{}, err
	}
	var refused atomic.Pointer[failure.Error]
	applied := false
	written := func() {
		applied = true
		if err := claim.Applied(ctx); err != nil {
			refused.Store(failure.Of(err))
			end(err)
		}
	}
	result, err := job.work(ctx, stacks, left, func(e stack.Event) {
		if _, ok := e.(stack.ServiceProgress); ok && !applied {
			written()
		}
		p.observe(e)
	})
	if err == nil && !applied && job.order.Kind == fence.Deploy {
		written() // a stack without services
	}
	if f := refused.Load(); f != nil {
		return result, f
	}
	return result, err
}

// job is what a command does, prepared so far that it only needs a claim.
type job struct {
	order   fence.Command // of one without a generation only the stack
	work    workFunc
	timeout time.Duration
}

type workFunc func(ctx context.Context, stacks Stacks, left time.Duration, observe func(stack.Event)) (stack.Result, error)

// job reads the command. What it refuses is refused before anything is claimed.
func (r *Runner) job(c *command) (*job, error) {
	subject, asked := subjectOf(c.payload), generationOf(c.payload)
	if e := c.envelope.Generation; e != 0 && e != asked {
		return nil, failure.New(failure.Invalid, "generation_mismatch", subject, "command %s: its envelope has generation %d, its payload %d", c.envelope.ID, e, asked)
	}
	if strings.TrimSpace(subject) == "" || len(subject) > maxSubject {
		return nil, failure.New(failure.Invalid, "invalid_name", subject, "invalid name: %q", subject)
	}
	j := &job{order: fence.Command{ID: c.envelope.ID, Generation: asked}}
	var err error
	switch m := c.payload.(type) {
	case *runnerv1.StackDeploy:
		deployment, otherErr := deploymentOf(m, r.cfg.DefaultTimeout)
		if otherErr != nil {
			return nil, otherErr
		}
		j.order.Kind, j.order.Prune, j.timeout = fence.Deploy, deployment.Prune, deployment.Timeout
		j.order.Services, j.order.Manifest, err = r.manifest(deployment)
		j.work = func(ctx context.Context, stacks Stacks, left time.Duration, observe func(stack.Event)) (stack.Result, error) {
			deployment.Timeout = left
			return stacks.Deploy(ctx, deployment, observe)
		}
	case *runnerv1.StackRemove:
		j.order.Kind = fence.Remove
		j.timeout, err = timeoutOf(m.GetTimeout(), defaultRemoveTimeout)
		j.work = func(ctx context.Context, stacks Stacks, left time.Duration, observe func(stack.Event)) (stack.Result, error) {
			return stacks.Remove(ctx, m.GetStack(), left, observe)
		}
	case *runnerv1.ServiceScale:
		j.order.Kind, j.order.Services = fence.Scale, []string{m.GetService()}
		j.timeout, err = timeoutOf(m.GetTimeout(), defaultScaleTimeout)
		j.work = func(ctx context.Context, stacks Stacks, left time.Duration, observe func(stack.Event)) (stack.Result, error) {
			return stacks.Scale(ctx, m.GetService(), m.GetReplicas(), left, observe)
		}
	case *runnerv1.ServiceRestart:
		j.timeout = restartTimeout
		err = r.deadline(c)
		j.work = func(ctx context.Context, stacks Stacks, left time.Duration, observe func(stack.Event)) (stack.Result, error) {
			return stacks.Restart(ctx, m.GetService(), left, observe)
		}
	default:
		err = failure.New(failure.Internal, "unsupported_command", c.envelope.Type, "cannot do %s", c.envelope.Type)
	}
	if err != nil {
		c.log.Log(c.run, slog.LevelWarn, "command refused", "error", err)
	}
	return j, err
}
