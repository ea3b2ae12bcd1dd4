package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/axion/runner-agent/ctl/document"
	"github.com/axion/runner-agent/ctl/table"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// Exit codes; they stand in the help too.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitTimedOut    = 3
	exitNotRun      = 4
	exitInterrupted = 130
)

// exitError is an error that ends the process with a code of its own.
type exitError struct {
	code int
	err  error // nil means that all was said
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usagef returns an error for wrong arguments.
func usagef(format string, args ...any) error {
	return &exitError{code: exitUsage, err: failure.New(failure.Invalid, "usage", "", format, args...)}
}

// errInterrupted ends a process that the person stopped and that has nothing more to say.
var errInterrupted = &exitError{code: exitInterrupted}

// codeOf returns the exit code of what a command returned.
func codeOf(err error) int {
	var exit *exitError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &exit):
		return exit.code
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case failure.ClassOf(err) == failure.Deadline:
		return exitTimedOut
	default:
		return exitFailed
	}
}

// finish says why a command failed and returns the exit code.
func (a *app) finish(cmd *cobra.Command, err error) int {
	if err == nil {
		return exitDone
	}
	if !a.started && codeOf(err) != exitUsage { // cobra found it in the arguments
		err = usagef("%w", err)
	}
	code := codeOf(err)
	var exit *exitError
	if errors.As(err, &exit) {
		err = exit.err
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return code
	}
	f := failure.Of(err)
	if code == exitUsage && f.Hint == "" {
		f = f.WithHint(cmd.CommandPath() + " --help")
	}
	a.report(f, code)
	return code
}

// report prints a failure on stderr. If that cannot be written to, the exit code has to do.
func (a *app) report(f *failure.Error, code int) {
	if a.json() {
		_ = document.WriteLine(a.env.Stderr, document.Error{Error: document.OfError(f), ExitCode: code})
		return
	}
	_, _ = fmt.Fprintf(a.env.Stderr, "axionctl: %s\n", table.Clean(f.Message))
	if f.Hint != "" {
		_, _ = fmt.Fprintf(a.env.Stderr, "hint: %s\n", table.Clean(f.Hint))
	}
}

// outcomeError returns how a command's outcome ends the process; nil if it succeeded.
func outcomeError(commandID string, outcome *runnerv1.CommandOutcome) error {
	if outcome.GetStatus() == runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		return nil
	}
	err := failurepb.ToError(outcome.GetFailure())
	if err == nil {
		err = failure.New(failure.Internal, document.Status(outcome.GetStatus()), commandID, "command %s ended as %s; the agent gave no reason",
			commandID, document.Status(outcome.GetStatus()))
	}
	return &exitError{code: outcomeCode(outcome.GetStatus()), err: err}
}

func outcomeCode(status runnerv1.OutcomeStatus) int {
	switch status {
	case runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED:
		return exitDone
	case runnerv1.OutcomeStatus_OUTCOME_STATUS_TIMED_OUT:
		return exitTimedOut
	case runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED, runnerv1.OutcomeStatus_OUTCOME_STATUS_CANCELLED, runnerv1.OutcomeStatus_OUTCOME_STATUS_EXPIRED:
		return exitNotRun
	default:
		return exitFailed
	}
}
