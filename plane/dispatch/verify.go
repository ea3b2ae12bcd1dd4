package dispatch

import (
	"context"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/plane/ledger"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

// Reasons for which a message on the topic of events is dropped.
const (
	dropUnreadable     = "unreadable"      // no envelope, too large, or data that its type does not fit
	dropBadSource      = "bad_source"      // the source is no agent
	dropUnknownAgent   = "unknown_agent"   // the source is an agent that the plane does not know, or has removed
	dropBadSignature   = "bad_signature"   // not signed with a key of that agent
	dropUnknownType    = "unknown_type"    // no event of the contract
	dropBadOutcome     = "bad_outcome"     // an outcome without status or with another id than its command gives it
	dropForeignCommand = "foreign_command" // about a command of another cluster
	dropTooMany        = "too_many"        // over what one agent may tell
)

const (
	receivedType = envelope.TypePrefix + "CommandReceived"
	sourcePrefix = "/agents/"
	maxAgentID   = 40
)

// verify decides whether a message is believed. It returns the event, or the reason why it is dropped; an error is the database's.
func (d *Dispatch) verify(ctx context.Context, r *kgo.Record) (e ledger.NewEvent, reason string, err error) {
	headers := make([]envelope.Header, len(r.Headers))
	for i, h := range r.Headers {
		headers[i] = envelope.Header{Key: h.Key, Value: h.Value}
	}
	e.Envelope, err = envelope.Parse(headers, r.Value, d.cfg.MaxEventBytes)
	if err != nil {
		return e, dropUnreadable, nil
	}
	agentID, ok := strings.CutPrefix(e.Envelope.Source, sourcePrefix)
	if !ok || agentID == "" || len(agentID) > maxAgentID {
		return e, dropBadSource, nil
	}
	awaited, err := d.awaited(ctx, e.Envelope)
	if err != nil {
		return e, "", err
	}
	if !awaited && !d.budgets.left(agentID) { // before the costly part
		return e, dropTooMany, nil
	}
	clusterID, keys, err := d.deps.Signers.Signer(ctx, agentID)
	if err != nil {
		return e, "", err
	}
	if len(keys) == 0 {
		return e, dropUnknownAgent, nil
	}
	signed := false
	for _, key := range keys {
		signed = signed || e.Envelope.Verify(key)
	}
	if !signed {
		return e, dropBadSignature, nil
	}
	if !awaited {
		d.budgets.take(agentID)
	}
	e.AgentID, e.ClusterID = agentID, clusterID
	if e.Message, err = e.Envelope.Message(); err != nil {
		if failure.Of(err).Code == "unknown_type" {
			return e, dropUnknownType, nil
		}
		return e, dropUnreadable, nil
	}
	if reason := checkEvent(e.Envelope, e.Message); reason != "" {
		return e, reason, nil
	}
	foreign, err := d.foreign(ctx, e)
	if foreign {
		reason = dropForeignCommand
	}
	return e, reason, err
}

// awaited reports whether the plane waits for the event: the outcome of an open command, or the news that one was begun.
func (d *Dispatch) awaited(ctx context.Context, e envelope.Envelope) (bool, error) {
	if e.CausationID == "" || (e.Type != ledger.OutcomeType && e.Type != receivedType) {
		return false, nil
	}
	c, err := d.deps.Ledger.Command(ctx, e.CausationID)
	if failure.ClassOf(err) == failure.Invalid {
		return false, nil
	}
	return err == nil && c.Open() && (e.Type == ledger.OutcomeType || !c.Begun), err
}

// checkEvent refuses what is no event, and outcomes and other events that take each other's ids: the first event of an id wins, so a progress event with an
// outcome's id would keep the outcome out.
func checkEvent(e envelope.Envelope, msg proto.Message) (reason string) {
	hasOutcomeID := e.CausationID != "" && e.ID == envelope.OutcomeID(e.CausationID)
	switch m := msg.(type) {
	case *runnerv1.CommandOutcome:
		if !hasOutcomeID || m.GetStatus() == runnerv1.OutcomeStatus_OUTCOME_STATUS_UNSPECIFIED {
			return dropBadOutcome
		}
	case *runnerv1.CommandReceived, *runnerv1.CommandProgress, *runnerv1.MessageRejected:
		if hasOutcomeID {
			return dropBadOutcome
		}
	default:
		return dropUnknownType
	}
	return ""
}

// foreign reports whether the event is about a command of another cluster than its signer's. A command that the plane does not know may have been sent by
// hand; what an agent says about it is believed.
func (d *Dispatch) foreign(ctx context.Context, e ledger.NewEvent) (bool, error) {
	if e.Envelope.CausationID == "" {
		return false, nil
	}
	c, err := d.deps.Ledger.Command(ctx, e.Envelope.CausationID)
	if failure.ClassOf(err) == failure.Invalid {
		return false, nil
	}
	return err == nil && c.ClusterID != e.ClusterID, err
}
