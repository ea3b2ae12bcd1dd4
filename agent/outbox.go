package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/axion/runner-agent/agent/command"
	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/agent/journal"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// compareWithin is how long after the start an outcome waits for the Swarm to tell whether it still stands. After that it is sent as it is: a node that
	// is no manager any more, or has lost its Swarm, must not keep its events for ever.
	compareWithin = time.Minute
	// compareTimeout bounds one look; it is short, because the agent may have to stop meanwhile.
	compareTimeout = 1500 * time.Millisecond
)

// comparedOutbox is the outbox with the outcomes of the agent's life before: while it was away another manager may have had to decide, and what the stack's
// head says is the outcome.
type comparedOutbox struct {
	*journal.Bolt
	look    func(ctx context.Context, stack, command string) (*fence.Outcome, bool, error)
	manager func() bool
	started time.Time
	log     *slog.Logger
	now     func() time.Time
}

// Peek is the journal's, with each old outcome as the head has it. It fails as long as a manager's engine cannot say, for a minute after the start.
func (o *comparedOutbox) Peek(most int, mostBytes int64) ([]journal.Entry, error) {
	entries, err := o.Bolt.Peek(most, mostBytes)
	for i := range entries {
		e := &entries[i]
		if err != nil || !e.Outcome || !e.Envelope.Time.Before(o.started) {
			continue
		}
		if err = o.compare(e); err != nil && (!o.manager() || o.now().Sub(o.started) > compareWithin) {
			o.log.Warn("an outcome is sent without a look at its stack's head", "command_id", e.Envelope.CausationID, "error", err)
			err = nil
		}
	}
	if err != nil {
		return nil, failure.New(failure.Unavailable, "not_compared", "", "outcomes wait for the Swarm to say whether they still stand: %w", err)
	}
	return entries, nil
}

func (o *comparedOutbox) compare(e *journal.Entry) error {
	stack, err := command.StackOf(e.Envelope)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), compareTimeout)
	defer cancel()
	decided, _, err := o.look(ctx, stack, e.Envelope.CausationID)
	if err != nil || decided == nil {
		return err
	}
	corrected, differs, err := command.Corrected(e.Envelope, *decided)
	if err == nil && differs {
		o.log.Warn("another manager decided the outcome", "command_id", e.Envelope.CausationID, "status", decided.Status)
		e.Envelope = corrected
	}
	return err
}
