// Package progress shows a running command to a person or a program. Terminal redraws one line a service; Plain prints one line a change, for
// logs and pipes; Lines prints one JSON document a line. All three are told the same by package command and end with the same summary.
package progress

import (
	"io"
	"time"

	"github.com/axion/runner-agent/ctl/command"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Display shows one command. Its methods are called one at a time.
type Display interface {
	command.Observer
	// End takes away what is only there while the command runs and prints the summary of its outcome; nil means that the outcome is not known.
	End(outcome *runnerv1.CommandOutcome) error
}

// Options are the same for all displays.
type Options struct {
	// Out takes the lines.
	Out io.Writer
	// Title says what is done, for example "deploy stack shop".
	Title string
	// Now is the clock.
	Now func() time.Time
	// Size returns the terminal's width and height in cells; only Terminal asks.
	Size func() (width, height int)
	// Unicode allows characters beyond ASCII in what Terminal draws.
	Unicode bool
	// Color allows colours in what Terminal draws.
	Color bool
}
