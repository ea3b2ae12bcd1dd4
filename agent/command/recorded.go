package command

import (
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/agent/fence"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

const statusPrefix = "OUTCOME_STATUS_"

// statusWord is a status as the head holds it, for example "succeeded".
func statusWord(s runnerv1.OutcomeStatus) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), statusPrefix))
}

func statusOf(word string) runnerv1.OutcomeStatus {
	return runnerv1.OutcomeStatus(runnerv1.OutcomeStatus_value[statusPrefix+strings.ToUpper(word)])
}

// maxRecordedText bounds the sentence of a failure that the head holds.
const maxRecordedText = 1 << 10

// detailOf is the part of an outcome that the head holds beside its status: all but the lists.
func detailOf(outcome *runnerv1.CommandOutcome) []byte {
	short := &runnerv1.CommandOutcome{
		Status: outcome.GetStatus(), Type: outcome.GetType(), Stack: outcome.GetStack(), Generation: outcome.GetGeneration(),
		StartedAt: outcome.GetStartedAt(), EndedAt: outcome.GetEndedAt(),
	}
	if f := outcome.GetFailure(); f != nil {
		short.Failure = proto.CloneOf(f)
		short.Failure.Message, short.Failure.Hint = shortened(f.GetMessage()), shortened(f.GetHint())
	}
	detail, err := proto.Marshal(short)
	if err != nil { // text that is not UTF-8
		return nil
	}
	return detail
}

func shortened(text string) string {
	if len(text) <= maxRecordedText {
		return text
	}
	return strings.ToValidUTF8(text[:maxRecordedText], "") + "…"
}

// recorded is the outcome that the head holds, with what every outcome of the command says.
func (r *Runner) recorded(c *command, o fence.Outcome) *runnerv1.CommandOutcome {
	outcome := restored(o)
	r.complete(c, outcome)
	return outcome
}

// restored is the outcome that the head holds.
func restored(o fence.Outcome) *runnerv1.CommandOutcome {
	outcome := &runnerv1.CommandOutcome{}
	if len(o.Detail) == 0 || proto.Unmarshal(o.Detail, outcome) != nil {
		outcome = &runnerv1.CommandOutcome{Status: statusOf(o.Status)}
	}
	outcome.Generation = o.Generation
	return outcome
}

// StackOf returns the stack that an outcome is about; it may be empty.
func StackOf(ev envelope.Envelope) (string, error) {
	outcome, err := outcomeIn(ev)
	return outcome.GetStack(), err
}

// Corrected returns the outcome as the stack's head has it, and whether that is another one.
func Corrected(ev envelope.Envelope, decided fence.Outcome) (envelope.Envelope, bool, error) {
	told, err := outcomeIn(ev)
	if err != nil || statusWord(told.GetStatus()) == decided.Status {
		return ev, false, err
	}
	outcome := restored(decided)
	outcome.Type, outcome.Stack = told.GetType(), told.GetStack()
	as, err := envelope.New(ev.Source, outcome, ev.Time)
	ev.Data, ev.ContentType = as.Data, as.ContentType
	return ev, err == nil, err
}

func outcomeIn(ev envelope.Envelope) (*runnerv1.CommandOutcome, error) {
	msg, err := ev.Message()
	if err != nil {
		return nil, err
	}
	outcome, ok := msg.(*runnerv1.CommandOutcome)
	if !ok {
		return nil, failure.New(failure.Internal, "no_outcome", ev.ID, "event %s is a %s and no outcome", ev.ID, ev.Type)
	}
	return outcome, nil
}
