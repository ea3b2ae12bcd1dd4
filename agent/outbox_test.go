package agent

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/agent/journal"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

// TestOldOutcomesAreCompared: what waits in the outbox from a life before is sent as the stack's head has it.
func TestOldOutcomesAreCompared(t *testing.T) {
	const succeeded, failed = runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED
	away := errors.New("the engine is away")
	for name, tc := range map[string]struct {
		decided *fence.Outcome
		err     error
		manager bool
		after   time.Duration // since the start
		want    runnerv1.OutcomeStatus
		wait    bool
	}{
		"the head agrees":                        {&fence.Outcome{Status: "succeeded"}, nil, true, 0, succeeded, false},
		"another manager decided otherwise":      {&fence.Outcome{Status: "failed"}, nil, true, 0, failed, false},
		"the head has forgotten it":              {nil, nil, true, 0, succeeded, false},
		"the engine is away":                     {nil, away, true, time.Second, succeeded, true},
		"the engine is away for long":            {nil, away, true, 2 * time.Minute, succeeded, false},
		"the node is no manager any more":        {nil, away, false, time.Second, succeeded, false},
		"it was decided in this life of the run": {&fence.Outcome{Status: "failed"}, nil, true, -time.Hour, succeeded, false},
	} {
		t.Run(name, func(t *testing.T) {
			j, err := journal.Open(filepath.Join(t.TempDir(), "journal.db"), journal.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			now := time.Now()
			ev, err := envelope.New("/agents/a1", &runnerv1.CommandOutcome{Status: succeeded, Stack: "shop"}, now.Add(-time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			ev.CausationID = "m1"
			if _, err := j.Decide("m1", "c1", 1, ev); err != nil {
				t.Fatal(err)
			}
			o := &comparedOutbox{
				Bolt: j, started: now, log: slog.New(slog.DiscardHandler), manager: func() bool { return tc.manager },
				now: func() time.Time { return now.Add(tc.after) },
				look: func(_ context.Context, stack, command string) (*fence.Outcome, bool, error) {
					if stack != "shop" || command != "m1" {
						t.Errorf("asked for %s of %s", command, stack)
					}
					return tc.decided, tc.decided != nil, tc.err
				},
			}
			if tc.after < 0 {
				o.started = now.Add(tc.after)
			}
			entries, err := o.Peek(10, 1<<20)
			if tc.wait {
				if err == nil {
					t.Fatal("it was not kept back")
				}
				return
			}
			if err != nil || len(entries) != 1 {
				t.Fatal(entries, err)
			}
			msg, err := entries[0].Envelope.Message()
			if err != nil {
				t.Fatal(err)
			}
			if got := msg.(*runnerv1.CommandOutcome); got.GetStatus() != tc.want || got.GetStack() != "shop" || entries[0].Envelope.ID != ev.ID {
				t.Errorf("got %v", got)
			}
		})
	}
}
