package progress

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/ctl/document"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Lines prints one JSON document a line; each has a field "kind". The last one is the outcome.
type Lines struct {
	options Options
	record  *record
	err     error // the first error of a write
}

// NewLines returns a display for programs.
func NewLines(options Options) *Lines { return &Lines{options: options, record: newRecord()} }

// Retrying tells that the plane did not take the command yet.
func (l *Lines) Retrying(err error, wait time.Duration) {
	l.print(document.OfConnection("retrying", wait, err))
}

// Submitted prints the command's id.
func (l *Lines) Submitted(s *planev1.SubmitCommandResponse) {
	l.record.commandID = s.GetCommandId()
	l.print(document.OfSubmitted(s))
}

// Event prints a step; the outcome is left to End.
func (l *Lines) Event(event *planev1.EventRecord, message proto.Message) {
	switch m := message.(type) {
	case *runnerv1.CommandReceived:
		l.record.receive(event)
		l.print(document.OfReceived(event, m))
	case *runnerv1.CommandProgress:
		switch {
		case m.GetObject() != nil:
			l.print(document.OfObject(event, m.GetObject()))
		case m.GetService() != nil:
			l.record.update(event, m.GetService())
			l.print(document.OfServiceProgress(event, m.GetService()))
		case m.GetNotice() != nil:
			l.print(document.OfNotice(event, m.GetNotice()))
		}
	}
}

// Lost tells that the connection broke.
func (l *Lines) Lost(err error, wait time.Duration) {
	l.print(document.OfConnection("lost", wait, err))
}

// Restored tells that the watch goes on.
func (l *Lines) Restored() { l.print(document.OfConnection("restored", 0, nil)) }

// Tick does nothing: a program sees that the process is alive.
func (l *Lines) Tick() {}

// End prints the outcome. It returns the first error that any write had.
func (l *Lines) End(outcome *runnerv1.CommandOutcome) error {
	if outcome != nil {
		l.print(document.OfOutcome(l.record.commandID, outcome, l.record.took(outcome)))
	}
	return l.err
}

func (l *Lines) print(doc any) {
	if err := document.WriteLine(l.options.Out, doc); err != nil && l.err == nil {
		l.err = err
	}
}
