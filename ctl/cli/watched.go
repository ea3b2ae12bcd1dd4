package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/ctl/command"
	"github.com/axion/runner-agent/ctl/progress"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// minTimeToLive is the least time that a command waits for an agent, however short its own timeout is.
	minTimeToLive = time.Minute
	// outcomeGrace is how long after its time a command's outcome may come: the agent decides it, Kafka and the plane carry it.
	outcomeGrace = 2 * time.Minute
	// minTimeout and maxTimeout bound --timeout.
	minTimeout, maxTimeout = time.Second, 24 * time.Hour
)

// watched is a command that goes through Kafka and is watched till its end.
type watched struct {
	title   string // what is done, for example "deploy stack shop"
	stack   string // where to look when it is not known what became of it; may be empty
	timeout time.Duration
	life    time.Duration // until when an agent must have begun it; 0 means the timeout, or minTimeToLive if that is longer
	detach  bool
	target  target
	request *planev1.SubmitCommandRequest
}

// carry submits the command, shows its progress and returns how it ended.
func (a *app) carry(ctx context.Context, w watched) error {
	return a.call(ctx, 0, func(ctx context.Context, plane *client.Client) error {
		timeToLive := cmp.Or(w.life, max(w.timeout, minTimeToLive))
		w.request.ClusterId, w.request.AgentId = w.target.cluster, w.target.agent
		w.request.IdempotencyKey = a.env.NewKey()
		w.request.TimeToLive = durationpb.New(timeToLive)
		patience := a.env.Patience
		if patience.Limit == 0 {
			patience.Limit = timeToLive + w.timeout + outcomeGrace
		}
		display := a.display(w.title)
		do := command.Run
		if w.detach {
			do = command.Submit
		}
		result, err := do(ctx, plane, w.request, patience, display)
		if endErr := display.End(result.Outcome); err == nil && endErr != nil {
			return fmt.Errorf("print the outcome: %w", endErr)
		}
		switch {
		case errors.Is(err, context.Canceled):
			return w.interrupted(result)
		case err != nil:
			return w.lost(result, err)
		case w.detach:
			return nil
		default:
			return outcomeError(result.Submitted.GetCommandId(), result.Outcome)
		}
	})
}

// interrupted says what goes on although nobody watches any more.
func (w watched) interrupted(result command.Result) error {
	if result.Submitted == nil {
		f := failure.New(failure.Unavailable, "interrupted", w.stack, "interrupted before the control plane confirmed the command; it may have taken it all the same")
		return &exitError{code: exitInterrupted, err: f.WithHint("axionctl events shows the commands that were taken")}
	}
	id := result.Submitted.GetCommandId()
	f := failure.New(failure.Unavailable, "interrupted", id, "stopped watching; command %s goes on", id)
	return &exitError{code: exitInterrupted, err: f.WithHint(lookAgain(id))}
}

// lost adds to a failure of the watch how to look again; a failure of the submission stays as it is.
func (w watched) lost(result command.Result, err error) error {
	f := failure.Of(err)
	if result.Submitted == nil {
		return f
	}
	hint := lookAgain(result.Submitted.GetCommandId())
	if f.Hint != "" && !strings.Contains(f.Hint, hint) {
		hint = f.Hint + "; the command may still run: " + hint
	}
	return f.WithHint(hint)
}

func lookAgain(commandID string) string {
	return "axionctl events --command " + commandID + " --follow"
}

// display returns what fits the output: JSON lines, a drawn block, or plain lines.
func (a *app) display(title string) progress.Display {
	options := progress.Options{
		Out: a.env.Stdout, Title: title, Now: a.env.Now, Size: a.env.TerminalSize, Unicode: a.unicode(), Color: a.variable("NO_COLOR") == "",
	}
	switch {
	case a.json():
		return progress.NewLines(options)
	case a.env.TerminalSize != nil:
		return progress.NewTerminal(options)
	default:
		return progress.NewPlain(options)
	}
}

// unicode tells whether the locale's characters are UTF-8, by the variables and in the order of POSIX.
func (a *app) unicode() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := strings.ToLower(a.variable(name)); value != "" {
			return strings.Contains(value, "utf-8") || strings.Contains(value, "utf8")
		}
	}
	return false
}

func (a *app) variable(name string) string {
	value, _ := a.env.LookupEnv(name)
	return value
}
