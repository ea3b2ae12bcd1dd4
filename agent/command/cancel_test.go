package command

import (
	"context"
	"slices"
	"testing"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
)

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if f := failure.Of(err); f == nil || f.Code != code {
		t.Fatalf("got %v, want %s", err, code)
	}
}

func (r *rig) wantCancelled(id string, generation uint64) {
	r.t.Helper()
	o := r.outcome(id)
	if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_CANCELLED || o.GetGeneration() != generation || o.GetFailure().GetCode() != "cancelled" {
		r.t.Errorf("%s: %v, want cancelled at generation %d", id, o, generation)
	}
}

func untilEnd(ctx context.Context, _ stack.Deployment, _ func(stack.Event)) (stack.Result, error) {
	<-ctx.Done()
	return stack.Result{Status: stack.Cancelled}, ctx.Err()
}

// TestCancelledByAnotherManager: the one that runs the command finds the cancellation in the head, ends the deployment and tells of it.
func TestCancelledByAnotherManager(t *testing.T) {
	owner, other := two(t)
	owner.stacks.deploy = untilEnd
	m := message(t, "m1", deploy("shop", 3))
	done := owner.runner.Handle(owner.ctx, m)
	owner.until("the deployment", func() bool { return len(owner.stacks.all()) == 1 })
	wantCode(t, other.runner.Cancel(t.Context(), "m1", ""), "no_such_command") // it does not know the stack
	if err := other.runner.Cancel(t.Context(), "m1", "shop"); err != nil {
		t.Fatal(err)
	}
	owner.wantCancelled("m1", 3)
	owner.settled(done)
	// The other one answers the same when the command comes to it, and too late is too late.
	other.runner.Handle(other.ctx, m)
	other.wantCancelled("m1", 3)
	wantCode(t, other.runner.Cancel(t.Context(), "m1", "shop"), "already_decided")
	// The next generation is applied.
	other.runner.Handle(other.ctx, message(t, "m2", deploy("shop", 4)))
	if o := other.outcome("m2"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("the next one: %v", o)
	}
}

// TestCancelledBeforeItBegins: nothing of it is ever applied, whoever gets it, also as the first command of its stack.
func TestCancelledBeforeItBegins(t *testing.T) {
	for name, before := range map[string]uint64{"of a new stack": 0, "of a known one": 4} {
		t.Run(name, func(t *testing.T) {
			r, other := two(t)
			if before != 0 {
				r.runner.Handle(r.ctx, message(t, "before", deploy("shop", before)))
				r.outcome("before")
			}
			if err := other.runner.Cancel(t.Context(), "m1", "shop"); err != nil {
				t.Fatal(err)
			}
			if err := other.runner.Cancel(t.Context(), "m1", "shop"); err != nil { // an operator's second try
				t.Fatal(err)
			}
			done := len(r.stacks.all())
			r.runner.Handle(r.ctx, message(t, "m1", deploy("shop", before+1)))
			r.wantCancelled("m1", before+1)
			if got := r.stacks.all(); len(got) != done {
				t.Errorf("done: %v", got)
			}
			r.runner.Handle(r.ctx, message(t, "m2", deploy("shop", 0)))
			if o := r.outcome("m2"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED || o.GetGeneration() != before+2 {
				t.Errorf("the next one: %v", o)
			}
		})
	}
}

// TestCancelledThenKilled: the owner dies with the cancellation in the head, and its successor does not go on.
func TestCancelledThenKilled(t *testing.T) {
	owner, other := two(t)
	owner.stacks.deploy = untilEnd
	m := message(t, "m1", deploy("shop", 1))
	owner.runner.Handle(owner.ctx, m)
	owner.until("the deployment", func() bool { return len(owner.stacks.all()) == 1 })
	owner.stop() // it decides nothing any more
	owner.runner.Wait()
	if err := other.runner.Cancel(t.Context(), "m1", "shop"); err != nil {
		t.Fatal(err)
	}
	other.runner.Handle(other.ctx, m)
	other.wantCancelled("m1", 1)
	if done := other.stacks.all(); len(done) != 0 {
		t.Errorf("the successor went on: %v", done)
	}
}

// TestCancelComesBeforeTheDecision: the work has succeeded, but the cancellation was in the head before its outcome.
func TestCancelComesBeforeTheDecision(t *testing.T) {
	owner, other := two(t)
	owner.stacks.deploy = func(_ context.Context, _ stack.Deployment, observe func(stack.Event)) (stack.Result, error) {
		observe(stack.ServiceProgress{Service: "shop_web", State: stack.ServiceConverged}) // all is written: the head is changed once more, by the decision
		if err := other.runner.Cancel(t.Context(), "m1", "shop"); err != nil {
			t.Error(err)
		}
		return stack.Result{Status: stack.Converged}, nil
	}
	owner.runner.Handle(owner.ctx, message(t, "m1", deploy("shop", 1)))
	owner.wantCancelled("m1", 1)
}

// TestCancelOfAService: a scaling that this agent holds counts with its stack, which the agent finds out itself.
func TestCancelOfAService(t *testing.T) {
	r := newRig(t, 1)
	r.stacks.deploy = untilEnd
	r.runner.Handle(r.ctx, message(t, "m1", deploy("shop", 1)))
	scaling := message(t, "m2", &runnerv1.ServiceScale{Service: "shop_web", Replicas: 3, Generation: 2})
	scaling.Key = []byte("shop")
	r.runner.Handle(r.ctx, scaling)
	r.until("the deployment", func() bool { return slices.Equal(r.runner.Running(), []string{"m1"}) })
	for _, id := range []string{"m2", "m1"} {
		if err := r.runner.Cancel(t.Context(), id, "another"); err != nil {
			t.Fatal(err)
		}
	}
	found := map[string]bool{}
	r.until("both outcomes", func() bool {
		for _, ev := range r.drain() {
			if ev.Type == "axion.runner.v1.CommandOutcome" {
				found[ev.CausationID+decode[*runnerv1.CommandOutcome](t, ev).GetStatus().String()] = true
			}
		}
		return found["m1OUTCOME_STATUS_CANCELLED"] && found["m2OUTCOME_STATUS_CANCELLED"]
	})
}

func TestCancelIsRefused(t *testing.T) {
	r := newRig(t, 1)
	wantCode(t, r.runner.Cancel(t.Context(), "", "shop"), "bad_cancellation")
	wantCode(t, r.runner.Cancel(t.Context(), string(make([]byte, 129)), "shop"), "bad_cancellation")
	r.role = runnerv1.NodeRole_NODE_ROLE_WORKER
	wantCode(t, r.runner.Cancel(t.Context(), "m1", "shop"), "wrong_node")
}
