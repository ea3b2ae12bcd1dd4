package command

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
)

// supported says which of the contract's commands this agent can do.
func supported(msg proto.Message) bool {
	switch msg.(type) {
	case *runnerv1.StackDeploy, *runnerv1.StackRemove, *runnerv1.ServiceScale:
		return true
	default:
		return false
	}
}

// subjectOf is what a command is about: a stack or a service.
func subjectOf(msg proto.Message) string {
	switch m := msg.(type) {
	case *runnerv1.ServiceScale:
		return m.GetService()
	default:
		return stackOf(msg)
	}
}

func stackOf(msg proto.Message) string {
	switch m := msg.(type) {
	case *runnerv1.StackDeploy:
		return m.GetStack()
	case *runnerv1.StackRemove:
		return m.GetStack()
	default:
		return ""
	}
}

// orderKey says which commands must keep their order: those whose names agree up to the first underscore. A service's name is its stack's name, an
// underscore and its own; both parts may hold underscores, and the service may not exist yet, so this errs on the side of order.
func orderKey(msg proto.Message) string {
	key, _, _ := strings.Cut(subjectOf(msg), "_")
	return key
}

// generationKey names what the command's generation counts. The plane numbers a scaling with its stack's commands and says so in the message's key; a person's
// message may have none.
func generationKey(c *command) string {
	subject, key := subjectOf(c.payload), string(c.message.Key)
	if key == subject || key != "" && strings.HasPrefix(subject, key+"_") {
		return key
	}
	return subject
}

func generationOf(msg proto.Message) uint64 {
	if m, ok := msg.(interface{ GetGeneration() uint64 }); ok {
		return m.GetGeneration()
	}
	return 0
}

// Bounds on the timeouts that a command may ask for, as the contract states them.
const (
	minTimeout           = time.Second
	maxTimeout           = 24 * time.Hour
	defaultScaleTimeout  = 5 * time.Minute
	defaultRemoveTimeout = 5 * time.Minute
)

func timeoutOf(d *durationpb.Duration, otherwise time.Duration) (time.Duration, error) {
	if d == nil {
		return otherwise, nil
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() < minTimeout || d.AsDuration() > maxTimeout {
		return 0, failure.New(failure.Invalid, "bad_timeout", "", "timeout %s is not between %s and %s", d.AsDuration(), minTimeout, maxTimeout)
	}
	return d.AsDuration(), nil
}

// execute runs the command and returns its outcome. The error is only for what decides nothing: the agent stops, or the journal is away.
func (r *Runner) execute(c *command) (*runnerv1.CommandOutcome, error) {
	generation, refusal, err := r.admit(c)
	if err != nil || refusal != nil {
		return refusal, err
	}
	progress := &progress{runner: r, command: c}
	result, err := r.run(c, progress)
	if c.run.Err() != nil && !errors.Is(context.Cause(c.run), errCancelled) {
		return nil, c.run.Err()
	}
	if errors.Is(context.Cause(c.run), errCancelled) {
		err = errCancelled
	}
	outcome := outcomeOf(result, err)
	outcome.Generation = generation
	return outcome, nil
}

// admit compares the command's generation with the newest known one. It returns the generation that the command runs under, or the outcome that refuses it.
func (r *Runner) admit(c *command) (uint64, *runnerv1.CommandOutcome, error) {
	asked, key := generationOf(c.payload), generationKey(c)
	if e := c.envelope.Generation; e != 0 && e != asked {
		return 0, rejected(failure.New(failure.Invalid, "generation_mismatch", key, "command %s: its envelope has generation %d, its payload %d", c.envelope.ID, e, asked)), nil
	}
	current, holder, err := r.deps.Journal.Generation(key)
	if err != nil {
		return 0, nil, err
	}
	switch {
	case holder == c.envelope.ID:
		return current, nil, nil // taken up again
	case asked == 0:
		asked = current + 1
	case asked == current:
		return 0, rejected(failure.New(failure.Conflict, "generation_conflict", key, "generation %d of %s belongs to command %s", asked, key, holder)), nil
	case asked < current:
		outcome := rejected(failure.New(failure.Conflict, "superseded", key, "generation %d of %s is superseded by %d", asked, key, current))
		outcome.Status = runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED
		outcome.CurrentGeneration = current
		return 0, outcome, nil
	}
	return asked, nil, r.deps.Journal.SetGeneration(key, asked, c.envelope.ID)
}

func rejected(f *failure.Error) *runnerv1.CommandOutcome {
	return &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED, Failure: failureOf(f)}
}

// run does what the command asks. While the engine is away it is asked again, until the command's own time is over.
func (r *Runner) run(c *command, p *progress) (stack.Result, error) {
	work, timeout, err := r.work(c, p)
	if err != nil {
		return stack.Result{}, err
	}
	ctx, cancel := context.WithTimeoutCause(c.run, timeout, failure.New(failure.Deadline, "timed_out", subjectOf(c.payload),
		"%s did not end within %s", subjectOf(c.payload), timeout))
	defer cancel()
	for wait := firstRetry; ; wait = min(2*wait, longestRetry) {
		left := timeout
		if deadline, ok := ctx.Deadline(); ok {
			left = time.Until(deadline)
		}
		result, err := r.attempt(ctx, work, left)
		if failure.ClassOf(err) != failure.Unavailable || ctx.Err() != nil {
			return result, err
		}
		c.log.Warn("the engine is away; trying again", "error", err)
		p.observe(stack.Notice{Warning: true, Text: err.Error() + "; trying again"})
		select {
		case <-time.After(rand.N(wait)):
		case <-ctx.Done():
			return result, err
		}
	}
}

func (r *Runner) attempt(ctx context.Context, work workFunc, left time.Duration) (stack.Result, error) {
	stacks, err := r.deps.Stacks()
	if err != nil {
		return stack.Result{}, err
	}
	return work(ctx, stacks, left)
}

type workFunc func(ctx context.Context, stacks Stacks, left time.Duration) (stack.Result, error)

// work returns what the command does and how long it may take.
func (r *Runner) work(c *command, p *progress) (workFunc, time.Duration, error) {
	switch m := c.payload.(type) {
	case *runnerv1.StackDeploy:
		deployment, err := deploymentOf(m, r.cfg.DefaultTimeout)
		return func(ctx context.Context, stacks Stacks, left time.Duration) (stack.Result, error) {
			deployment.Timeout = left
			return stacks.Deploy(ctx, deployment, p.observe)
		}, deployment.Timeout, err
	case *runnerv1.StackRemove:
		timeout, err := timeoutOf(m.GetTimeout(), defaultRemoveTimeout)
		return func(ctx context.Context, stacks Stacks, left time.Duration) (stack.Result, error) {
			return stacks.Remove(ctx, m.GetStack(), left, p.observe)
		}, timeout, err
	case *runnerv1.ServiceScale:
		timeout, err := timeoutOf(m.GetTimeout(), defaultScaleTimeout)
		return func(ctx context.Context, stacks Stacks, left time.Duration) (stack.Result, error) {
			return stacks.Scale(ctx, m.GetService(), m.GetReplicas(), left, p.observe)
		}, timeout, err
	default:
		return nil, 0, failure.New(failure.Internal, "unsupported_command", c.envelope.Type, "cannot do %s", c.envelope.Type)
	}
}

// progress tells the steps of one command. The stack engine calls it from one goroutine at a time.
type progress struct {
	runner   *Runner
	command  *command
	sequence uint64
}

func (p *progress) observe(e stack.Event) {
	p.sequence++
	msg := &runnerv1.CommandProgress{Sequence: p.sequence}
	level := slog.LevelInfo
	switch e := e.(type) {
	case stack.ObjectChange:
		msg.Step = &runnerv1.CommandProgress_Object{Object: objectChange(e)}
	case stack.ServiceProgress:
		msg.Step = &runnerv1.CommandProgress_Service{Service: serviceProgress(e)}
	case stack.Notice:
		msg.Step = &runnerv1.CommandProgress_Notice{Notice: notice(e)}
		if e.Warning {
			level = slog.LevelWarn
		}
	default:
		return
	}
	p.command.log.Log(p.command.run, level, "progress", "step", e)
	p.runner.emit(p.command, msg)
}
