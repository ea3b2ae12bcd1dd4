package command

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/agent/bus"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/stack"
)

// due is a message with a deadline.
func due(t *testing.T, id string, cmd proto.Message, deadline time.Time) bus.Message {
	t.Helper()
	m := message(t, id, cmd)
	m.Headers = append(m.Headers, envelope.Header{Key: "ce_deadline", Value: []byte(deadline.Format(time.RFC3339))})
	return m
}

func (r *rig) wantStatus(id string, want runnerv1.OutcomeStatus) *runnerv1.CommandOutcome {
	r.t.Helper()
	o := r.outcome(id)
	if o.GetStatus() != want {
		r.t.Errorf("%s: %v, want %s", id, o, want)
	}
	return o
}

const (
	statusExpired   = runnerv1.OutcomeStatus_OUTCOME_STATUS_EXPIRED
	statusSucceeded = runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED
)

// TestExpiredIsDecided: what was told as expired is not run by a manager whose clock is behind.
func TestExpiredIsDecided(t *testing.T) {
	r, slow := two(t)
	slow.runner.deps.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	m := due(t, "m", deploy("shop", 5), time.Now().Add(-time.Second))
	r.runner.Handle(r.ctx, m)
	told := r.wantStatus("m", statusExpired)
	if told.GetGeneration() != 5 || told.GetFailure().GetCode() != "expired" {
		t.Errorf("told %v", told)
	}
	slow.runner.Handle(slow.ctx, m)
	if again := slow.wantStatus("m", statusExpired); again.GetFailure().GetMessage() != told.GetFailure().GetMessage() {
		t.Errorf("told again as %v", again)
	}
	if done := append(r.stacks.all(), slow.stacks.all()...); len(done) != 0 {
		t.Errorf("done: %v", done)
	}
	// It has its generation, as any command.
	slow.runner.Handle(slow.ctx, message(t, "older", deploy("shop", 4)))
	slow.wantStatus("older", runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED)
	slow.runner.Handle(slow.ctx, message(t, "next", deploy("shop", 0)))
	if o := slow.wantStatus("next", statusSucceeded); o.GetGeneration() != 6 {
		t.Errorf("the next one: %v", o)
	}
}

// TestExpiredWhateverTheJournalSays: this agent had the command before, and did not come to begin it.
func TestExpiredWhateverTheJournalSays(t *testing.T) {
	r := newRig(t, 1)
	if _, err := r.journal.Receive("m", "axion.runner.v1.StackDeploy"); err != nil {
		t.Fatal(err)
	}
	r.runner.Handle(r.ctx, due(t, "m", deploy("shop", 1), time.Now().Add(-time.Second)))
	r.wantStatus("m", statusExpired)
}

// TestBegunIsEnded: the deadline passes while the owner dies; its successor, which has never seen the command, goes on with it.
func TestBegunIsEnded(t *testing.T) {
	owner, other := two(t)
	owner.stacks.deploy = untilEnd
	m := due(t, "m", deploy("shop", 1), time.Now().Add(time.Minute))
	owner.runner.Handle(owner.ctx, m)
	owner.until("the deployment", func() bool { return len(owner.stacks.all()) == 1 })
	owner.stop()
	owner.runner.Wait()
	other.runner.deps.Now = func() time.Time { return time.Now().Add(time.Hour) }
	other.runner.Handle(other.ctx, m)
	other.wantStatus("m", statusSucceeded)
}

// TestExpiresWhileItWaits: another one's claim lasts longer than the command's deadline.
func TestExpiresWhileItWaits(t *testing.T) {
	swarm := newConfigs()
	first := newRigOn(t, swarm, "a1", filepath.Join(t.TempDir(), "1.db"), 2)
	second := newRigOn(t, swarm, "a2", filepath.Join(t.TempDir(), "2.db"), 2)
	first.stacks.deploy = func(context.Context, stack.Deployment, func(stack.Event)) (stack.Result, error) {
		return stack.Result{Status: stack.Converged}, nil
	}
	newer := message(t, "m1", deploy("shop", 1))
	newer.GroupGeneration = 5
	first.runner.Handle(first.ctx, newer)
	first.outcome("m1")
	m := due(t, "m2", deploy("shop", 2), time.Now().Add(time.Minute))
	m.GroupGeneration = 4 // it has to wait until the head has stood still
	var late atomic.Bool
	second.runner.deps.Now = func() time.Time {
		if late.Load() {
			return time.Now().Add(time.Hour)
		}
		return time.Now()
	}
	second.runner.Handle(second.ctx, m)
	var outcome *runnerv1.CommandOutcome
	second.until("the outcome", func() bool {
		for _, ev := range second.drain() {
			switch msg := mustMessage(t, ev).(type) {
			case *runnerv1.CommandProgress: // that it waits
				late.Store(true)
			case *runnerv1.CommandOutcome:
				outcome = msg
			}
		}
		return outcome != nil
	})
	if done := second.stacks.all(); outcome.GetStatus() != statusExpired || !late.Load() || len(done) != 0 {
		t.Errorf("%v, done: %v", outcome, done)
	}
}
