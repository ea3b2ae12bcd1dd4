package command

import (
	"context"
	"log/slog"
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
	case *runnerv1.StackDeploy, *runnerv1.StackRemove, *runnerv1.ServiceScale, *runnerv1.ServiceRestart:
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
	case *runnerv1.ServiceRestart:
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

// withoutGeneration says whether a command is done once by an entry in the Swarm's ring, and not by its place in its stack's generations.
func withoutGeneration(msg proto.Message) bool {
	_, restart := msg.(*runnerv1.ServiceRestart)
	return restart
}

// orderKey says which commands must keep their order: those whose names agree up to the first underscore. A service's name is its stack's name, an
// underscore and its own; both parts may hold underscores, and the service may not exist yet, so this errs on the side of order.
func orderKey(msg proto.Message) string {
	key, _, _ := strings.Cut(subjectOf(msg), "_")
	return key
}

// stackKey names the stack whose head the command counts in. Of a scaling the Swarm knows the stack; where the service is gone, the message's key tells it, because
// the plane numbers a scaling with its stack's commands. A person's message may have any key.
func (r *Runner) stackKey(ctx context.Context, c *command) (string, error) {
	if name := stackOf(c.payload); name != "" {
		return name, nil
	}
	service, key := subjectOf(c.payload), string(c.message.Key)
	stack, err := r.deps.Fence.StackOf(ctx, service)
	if err != nil || stack != "" {
		return stack, err
	}
	if key != "" && strings.HasPrefix(service, key+"_") {
		return key, nil
	}
	return service, nil
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

// progress tells the steps of one command. The stack engine calls it from one goroutine at a time.
type progress struct {
	runner  *Runner
	command *command
	pace    pace
	// sequence belongs to tell.
	sequence uint64
	// waits says that the lack of a quorum has been told.
	waits bool
}

func (r *Runner) newProgress(c *command) *progress {
	p := &progress{runner: r, command: c}
	p.pace.tell = p.tell
	return p
}

// withoutQuorum tells, once, that the command waits for the Swarm's managers. Call it from the goroutine that runs the command.
func (p *progress) withoutQuorum() {
	if !p.waits {
		p.waits = true
		p.observe(stack.Notice{Warning: true, Text: "waiting: no quorum"})
	}
}

func (p *progress) observe(e stack.Event) { p.pace.observe(e) }

// tell sends a step. The pace calls it, from one goroutine at a time.
func (p *progress) tell(e stack.Event) {
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
