package command

import (
	"errors"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/agent/journal"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failurepb"
)

// correlation is what all events of a command carry: what the sender gave, or the command's own id.
func correlation(e envelope.Envelope) string {
	if e.CorrelationID != "" {
		return e.CorrelationID
	}
	return e.ID
}

// event wraps what is told of a command.
func (r *Runner) event(c *command, msg proto.Message) (envelope.Envelope, error) {
	ev, err := envelope.New("/agents/"+r.cfg.AgentID, msg, r.deps.Now())
	if err != nil {
		return ev, err
	}
	ev.Subject = c.envelope.Subject
	if ev.Subject == "" {
		ev.Subject = subjectOf(c.payload)
	}
	if len(c.envelope.ID) <= envelope.MaxID { // else the message is one that only MessageRejected tells of
		ev.CausationID, ev.CorrelationID = c.envelope.ID, correlation(c.envelope)
	}
	ev.Generation = c.envelope.Generation
	return ev, nil
}

// emit puts an event that may be lost into the outbox: progress is for people, the outcome says it all again.
func (r *Runner) emit(c *command, msg proto.Message) {
	ev, err := r.event(c, msg)
	if err == nil {
		err = r.deps.Journal.Append(ev, r.cfg.ClusterID)
	}
	if err != nil && !errors.Is(err, journal.ErrFull) {
		c.log.Warn("event is lost", "event", ev.Type, "error", err)
	}
}

func timestamp(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t) }

func failureOf(err error) *runnerv1.Failure { return failurepb.FromError(err) }
