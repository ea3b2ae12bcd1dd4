package command

import (
	"context"
	"errors"
	"testing"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
)

var noLeader = failure.New(failure.Unavailable, "engine_unavailable", "", "rpc error: code = Unknown desc = The swarm does not have a leader.")

// notices are the texts that were told of a command.
func notices(t *testing.T, events []envelope.Envelope) (texts []string) {
	t.Helper()
	for _, ev := range events {
		if ev.Type != "axion.runner.v1.CommandProgress" {
			continue
		}
		if n := decode[*runnerv1.CommandProgress](t, ev).GetNotice(); n != nil {
			texts = append(texts, n.GetText())
		}
	}
	return texts
}

func wantOneNotice(t *testing.T, events []envelope.Envelope) {
	t.Helper()
	if texts := notices(t, events); len(texts) != 1 || texts[0] != "waiting: no quorum" {
		t.Errorf("told %q", texts)
	}
}

// TestWithoutQuorum: as long as the Swarm has no leader a command is tried again and decides nothing; that it waits is told once.
func TestWithoutQuorum(t *testing.T) {
	r := newRig(t, 1)
	tries := 0
	r.stacks.deploy = func(context.Context, stack.Deployment, func(stack.Event)) (stack.Result, error) {
		if tries++; tries < 4 {
			return stack.Result{Status: stack.Failed}, noLeader
		}
		return stack.Result{Status: stack.Converged}, nil
	}
	r.runner.Handle(r.ctx, message(t, "m1", deploy("shop", 1)))
	var events []envelope.Envelope
	r.until("an outcome", func() bool {
		events = append(events, r.drain()...)
		return events != nil && events[len(events)-1].ID == envelope.OutcomeID("m1")
	})
	wantOneNotice(t, events)
	if o := decode[*runnerv1.CommandOutcome](t, events[len(events)-1]); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("the outcome is %v", o)
	}
}

// TestTermEndsWithoutQuorum: a command that runs when its agent leaves the group for want of a leader has no outcome. Delivered again while it is still being
// interrupted, it is run again, and not mistaken for the one that dies.
func TestTermEndsWithoutQuorum(t *testing.T) {
	r := newRig(t, 1)
	held, release := make(chan struct{}), make(chan struct{})
	r.stacks.deploy = func(ctx context.Context, _ stack.Deployment, _ func(stack.Event)) (stack.Result, error) {
		if len(r.stacks.all()) > 1 {
			return stack.Result{Status: stack.Converged}, nil
		}
		close(held)
		<-ctx.Done()
		<-release // a call that does not end at once
		return stack.Result{Status: stack.Cancelled}, ctx.Err()
	}
	m := message(t, "m1", deploy("shop", 1))
	term, end := context.WithCancelCause(r.ctx)
	first := r.runner.Handle(term, m)
	<-held
	end(ErrNoQuorum)
	second := r.runner.Handle(r.ctx, m) // the next term
	close(release)
	var events []envelope.Envelope
	r.until("an outcome", func() bool {
		events = append(events, r.drain()...)
		return events != nil && events[len(events)-1].ID == envelope.OutcomeID("m1")
	})
	wantOneNotice(t, events)
	if o := decode[*runnerv1.CommandOutcome](t, events[len(events)-1]); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("the outcome is %v", o)
	}
	r.settled(second)
	if !open(first) {
		t.Error("an interrupted delivery was settled")
	}
}

// TestTermEndsOtherwise: who leaves for another reason does not speak of a quorum.
func TestTermEndsOtherwise(t *testing.T) {
	r := newRig(t, 1)
	r.stacks.deploy = func(ctx context.Context, _ stack.Deployment, _ func(stack.Event)) (stack.Result, error) {
		<-ctx.Done()
		return stack.Result{Status: stack.Cancelled}, ctx.Err()
	}
	term, end := context.WithCancelCause(r.ctx)
	r.runner.Handle(term, message(t, "m1", deploy("shop", 1)))
	r.until("the deployment", func() bool { return len(r.stacks.all()) == 1 })
	end(errors.New("demoted"))
	r.runner.Wait()
	for _, ev := range r.drain() {
		if ev.Type != "axion.runner.v1.CommandReceived" {
			t.Errorf("told %s", ev.Type)
		}
	}
}
