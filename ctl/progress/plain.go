package progress

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// quietLimit is after how long without a line Plain says that it is still there.
const quietLimit = 15 * time.Second

// Plain prints a line for each change, and one now and then when nothing changes.
type Plain struct {
	options Options
	record  *record
	started time.Time
	printed time.Time // when the last line was
	offline bool      // a line has told that the plane cannot be reached
	err     error     // the first error of a write
}

// NewPlain returns a display for logs and pipes.
func NewPlain(options Options) *Plain {
	now := options.Now()
	return &Plain{options: options, record: newRecord(), started: now, printed: now}
}

// Retrying says once that the plane does not take the command.
func (p *Plain) Retrying(err error, _ time.Duration) {
	p.disconnected(err, "the command is sent again")
}

// Submitted prints the command's id.
func (p *Plain) Submitted(s *planev1.SubmitCommandResponse) {
	p.offline = false
	p.record.commandID = s.GetCommandId()
	p.line("%s", submittedLine(p.options.Title, s))
}

// Event prints what has changed.
func (p *Plain) Event(event *planev1.EventRecord, message proto.Message) {
	switch m := message.(type) {
	case *runnerv1.CommandReceived:
		p.record.receive(event)
	case *runnerv1.CommandOutcome:
		return // End prints it
	case *runnerv1.CommandProgress:
		if s := m.GetService(); s != nil {
			p.service(event, s)
			return
		}
		p.record.notice(m.GetNotice())
	}
	p.line("%s", Describe(event, message))
}

func (p *Plain) service(event *planev1.EventRecord, s *runnerv1.ServiceProgress) {
	known, changed := p.record.update(event, s)
	if known == nil {
		return
	}
	for _, e := range known.news() {
		p.line("%s", describeTaskError(s.GetService(), e))
	}
	if changed {
		p.line("%s", cleanService(s))
	}
}

// Lost says once that the connection broke.
func (p *Plain) Lost(err error, _ time.Duration) {
	p.disconnected(err, "the command goes on; trying to connect again")
}

// Restored says that the watch goes on.
func (p *Plain) Restored() {
	p.offline = false
	p.line("connected again")
}

// Tick says that it still waits when nothing was printed for a while.
func (p *Plain) Tick() {
	if now := p.options.Now(); now.Sub(p.printed) >= quietLimit {
		p.line("still waiting after %s: %s", elapsed(now.Sub(p.started)), p.record.standing())
	}
}

// End prints the summary. It returns the first error that any write had.
func (p *Plain) End(outcome *runnerv1.CommandOutcome) error {
	if outcome != nil && p.err == nil {
		p.err = writeSummary(p.options, outcome, p.record)
	}
	return p.err
}

func (p *Plain) disconnected(err error, what string) {
	if !p.offline {
		p.offline = true
		p.line("warning: %s; %s", err, what)
	}
}

func (p *Plain) line(format string, args ...any) {
	p.printed = p.options.Now()
	if _, err := fmt.Fprintf(p.options.Out, format+"\n", args...); err != nil && p.err == nil {
		p.err = err
	}
}
