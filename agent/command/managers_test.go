package command

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
)

// two returns two agents on one Swarm, each with a journal of its own.
func two(t *testing.T) (*rig, *rig) {
	t.Helper()
	swarm := newConfigs()
	return newRigOn(t, swarm, "a1", filepath.Join(t.TempDir(), "1.db"), 2), newRigOn(t, swarm, "a2", filepath.Join(t.TempDir(), "2.db"), 2)
}

// TestAnotherManagerReturnsTheOutcome: a command that was decided and is delivered again, to an agent that has never seen it, is not run again.
func TestAnotherManagerReturnsTheOutcome(t *testing.T) {
	first, second := two(t)
	first.stacks.deploy = func(context.Context, stack.Deployment, func(stack.Event)) (stack.Result, error) {
		return stack.Result{Status: stack.RolledBack}, failure.New(failure.Invalid, "rolled_back", "shop", "it went back")
	}
	m := message(t, "m1", deploy("shop", 3))
	first.runner.Handle(first.ctx, m)
	want := first.outcome("m1")
	second.runner.Handle(second.ctx, m)
	got := second.outcome("m1")
	if got.GetStatus() != want.GetStatus() || got.GetFailure().GetMessage() != "it went back" || got.GetGeneration() != 3 ||
		!got.GetStartedAt().AsTime().Equal(want.GetStartedAt().AsTime()) || !got.GetEndedAt().AsTime().Equal(want.GetEndedAt().AsTime()) {
		t.Errorf("the second says %v\nthe first %v", got, want)
	}
	if done := second.stacks.all(); len(done) != 0 {
		t.Errorf("run again: %v", done)
	}
	// The second goes on from there, whatever its own journal knows.
	second.runner.Handle(second.ctx, message(t, "m2", deploy("shop", 0)))
	if o := second.outcome("m2"); o.GetGeneration() != 4 {
		t.Errorf("the next generation is %v", o)
	}
	first.runner.Handle(first.ctx, message(t, "old", deploy("shop", 2)))
	if o := first.outcome("old"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED || o.GetCurrentGeneration() != 4 {
		t.Errorf("an older one: %v", o)
	}
}

// TestTakeOver: a manager hangs in the middle of a command; another one is given the command, and then a newer one; what the first does then is refused.
func TestTakeOver(t *testing.T) {
	first, second := two(t)
	hang := make(chan struct{})
	first.stacks.deploy = func(ctx context.Context, _ stack.Deployment, observe func(stack.Event)) (stack.Result, error) {
		<-hang
		observe(stack.ServiceProgress{Service: "shop_web", State: stack.ServiceConverged}) // all is written: this needs the claim
		<-ctx.Done()
		return stack.Result{Status: stack.Cancelled}, ctx.Err()
	}
	m := message(t, "m1", deploy("shop", 1))
	m.GroupGeneration = 1
	done := first.runner.Handle(first.ctx, m)
	first.until("the first manager", func() bool { return len(first.stacks.all()) == 1 })
	m.GroupGeneration = 2
	second.runner.Handle(second.ctx, m)
	if o := second.outcome("m1"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Fatalf("the second manager: %v", o)
	}
	newer := message(t, "m2", deploy("shop", 2))
	newer.GroupGeneration = 2
	second.runner.Handle(second.ctx, newer)
	second.outcome("m2")
	close(hang)
	if o := first.outcome("m1"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("the first manager tells another outcome: %v", o)
	}
	first.settled(done)
	if n := len(first.stacks.all()); n != 1 {
		t.Errorf("the first manager deployed %d times", n)
	}
}

// TestSuccessorGetsTheRest of the command's time, also if its clock is wrong by an hour, and not all of it again.
func TestSuccessorGetsTheRest(t *testing.T) {
	for name, skew := range map[string]time.Duration{"clocks agree": 0, "an hour ahead": time.Hour, "an hour behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			var clock atomic.Int64 // how far all clocks have gone on
			at := func(skew time.Duration) func() time.Time {
				return func() time.Time { return time.Now().Add(time.Duration(clock.Load()) + skew) }
			}
			swarm := newConfigs()
			owner := newRigWith(t, swarm, "a1", filepath.Join(t.TempDir(), "1.db"), 2, at(0))
			other := newRigWith(t, swarm, "a2", filepath.Join(t.TempDir(), "2.db"), 2, at(skew))
			owner.stacks.deploy = func(ctx context.Context, d stack.Deployment, observe func(stack.Event)) (stack.Result, error) {
				clock.Add(int64(40 * time.Second))
				observe(stack.ServiceProgress{Service: "shop_web"}) // all is written: the head knows the time
				return untilEnd(ctx, d, observe)
			}
			left := make(chan time.Duration, 1)
			other.stacks.deploy = func(_ context.Context, d stack.Deployment, _ func(stack.Event)) (stack.Result, error) {
				left <- d.Timeout
				return stack.Result{Status: stack.Converged}, nil
			}
			m := message(t, "m1", deploy("shop", 1)) // takes a minute at most
			owner.runner.Handle(owner.ctx, m)
			owner.until("all to be written", func() bool { return swarm.labelled("axion.phase", "applied") })
			owner.stop()
			owner.runner.Wait()
			other.runner.Handle(other.ctx, m)
			other.wantStatus("m1", statusSucceeded)
			if got := <-left; got > 20*time.Second || got < 10*time.Second {
				t.Errorf("it has %s", got)
			}
		})
	}
}

// TestOlderMemberWaits: who was assigned the topic in an older group generation may not take the claim, but takes it once the head has not moved for long.
func TestOlderMemberWaits(t *testing.T) {
	first, second := two(t)
	newer := message(t, "m1", deploy("shop", 1))
	newer.GroupGeneration = 5
	first.runner.Handle(first.ctx, newer)
	first.outcome("m1")
	older := message(t, "m2", deploy("shop", 2))
	older.GroupGeneration = 4
	second.runner.Handle(second.ctx, older)
	told := false
	second.until("the outcome", func() bool {
		for _, ev := range second.drain() {
			if ev.Type == "axion.runner.v1.CommandOutcome" {
				return true
			}
			if p, ok := mustMessage(t, ev).(*runnerv1.CommandProgress); ok && p.GetNotice() != nil {
				told = true
				if len(second.stacks.all()) > 0 {
					t.Error("it has begun before it waited")
				}
			}
		}
		return false
	})
	if !told {
		t.Error("nobody was told that it waits")
	}
}

// TestPassIsRepeated: a pass that finds that something has changed is repeated, and not told as the command's end.
func TestPassIsRepeated(t *testing.T) {
	r := newRig(t, 1)
	r.stacks.deploy = func(context.Context, stack.Deployment, func(stack.Event)) (stack.Result, error) {
		if len(r.stacks.all()) < 4 {
			return stack.Result{}, failure.New(failure.Conflict, "out_of_sequence", "shop_web", "update out of sequence")
		}
		return stack.Result{Status: stack.Converged}, nil
	}
	r.runner.Handle(r.ctx, message(t, "m", deploy("shop", 1)))
	if o := r.outcome("m"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED || len(r.stacks.all()) != 4 {
		t.Errorf("%v after %d passes", o, len(r.stacks.all()))
	}
}

func mustMessage(t *testing.T, e envelope.Envelope) proto.Message {
	t.Helper()
	msg, err := e.Message()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func TestManifestHoldsNothingSecret(t *testing.T) {
	for name, want := range map[string]bool{"DB_PASSWORD": true, "api_token": true, "TAG": false, "REPLICAS": false, "AWS_SECRET_ACCESS_KEY": true} {
		if namesSecret(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
