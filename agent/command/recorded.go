package command

import (
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/agent/fence"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

const statusPrefix = "OUTCOME_STATUS_"

// statusWord is a status as the head holds it, for example "succeeded".
func statusWord(s runnerv1.OutcomeStatus) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), statusPrefix))
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

// recorded is the outcome that the head holds.
func (r *Runner) recorded(c *command, o fence.Outcome) *runnerv1.CommandOutcome {
	outcome := &runnerv1.CommandOutcome{}
	if len(o.Detail) == 0 || proto.Unmarshal(o.Detail, outcome) != nil {
		status := runnerv1.OutcomeStatus_value[statusPrefix+strings.ToUpper(o.Status)]
		outcome = &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus(status)}
	}
	outcome.Generation = o.Generation
	r.complete(c, outcome)
	return outcome
}
