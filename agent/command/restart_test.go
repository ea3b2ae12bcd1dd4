package command

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/agent/fence"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/engineproxy"
)

// restart is a command that may be begun for that long.
func restart(t *testing.T, id, service string, within time.Duration) bus.Message {
	t.Helper()
	m := message(t, id, &runnerv1.ServiceRestart{Service: service})
	if within != 0 {
		m.Headers = append(m.Headers, envelope.Header{Key: "ce_deadline", Value: []byte(time.Now().Add(within).Format(time.RFC3339Nano))})
	}
	return m
}

func TestRestart(t *testing.T) {
	first, second := two(t)
	m := restart(t, "m1", "shop_web", time.Hour)
	done := first.runner.Handle(first.ctx, m)
	var types []string
	var outcome *runnerv1.CommandOutcome
	first.until("the settled message", func() bool {
		for _, ev := range first.drain() {
			types = append(types, ev.Type)
			if ev.ID == envelope.OutcomeID("m1") {
				outcome = decode[*runnerv1.CommandOutcome](t, ev)
			}
		}
		return !open(done)
	})
	if !slices.Equal(types, []string{"axion.runner.v1.CommandReceived", "axion.runner.v1.CommandOutcome"}) {
		t.Errorf("events are %v", types)
	}
	if outcome.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED || outcome.GetType() != "axion.runner.v1.ServiceRestart" || outcome.GetGeneration() != 0 {
		t.Errorf("outcome is %v", outcome)
	}
	second.runner.Handle(second.ctx, m)
	if o := second.outcome("m1"); o.GetStatus() != outcome.GetStatus() || !o.GetEndedAt().AsTime().Equal(outcome.GetEndedAt().AsTime()) {
		t.Errorf("the second manager says %v", o)
	}
	if got := slices.Concat(first.stacks.all(), second.stacks.all()); !slices.Equal(got, []string{"restart shop_web"}) {
		t.Errorf("done: %v", got)
	}
}

// TestRestartWithoutGoodDeadline is refused whoever gets it, and nothing is kept of it.
func TestRestartWithoutGoodDeadline(t *testing.T) {
	const rejected, expired = runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED, runnerv1.OutcomeStatus_OUTCOME_STATUS_EXPIRED
	for name, tc := range map[string]struct {
		within time.Duration
		status runnerv1.OutcomeStatus
		code   string
	}{
		"none":             {0, rejected, "no_deadline"},
		"too far ahead":    {fence.MaxDeadline + fence.ClockTolerance + time.Minute, rejected, "bad_deadline"},
		"over":             {-time.Second, expired, "expired"},
		"over for long":    {-8 * 24 * time.Hour, expired, "expired"},
		"as far as can be": {fence.MaxDeadline, runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, ""},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := two(t)
			m := restart(t, "m", "shop_web", tc.within)
			for _, r := range []*rig{first, second} {
				r.runner.Handle(r.ctx, m)
				if o := r.outcome("m"); o.GetStatus() != tc.status || o.GetFailure().GetCode() != tc.code {
					t.Errorf("outcome is %v", o)
				}
			}
			if done := append(first.stacks.all(), second.stacks.all()...); (len(done) > 0) != (tc.code == "") {
				t.Errorf("done: %v", done)
			}
		})
	}
}

// TestRestartKeepsOrder with the other commands of its stack, and not with those of others.
func TestRestartKeepsOrder(t *testing.T) {
	r := newRig(t, 4)
	hold := make(chan struct{})
	r.stacks.deploy = func(ctx context.Context, _ stack.Deployment, _ func(stack.Event)) (stack.Result, error) {
		select {
		case <-hold:
		case <-ctx.Done():
		}
		return stack.Result{Status: stack.Converged}, ctx.Err()
	}
	r.runner.Handle(r.ctx, message(t, "1", deploy("shop", 1)))
	r.runner.Handle(r.ctx, restart(t, "2", "shop_web", time.Hour))
	r.runner.Handle(r.ctx, restart(t, "3", "blog_web", time.Hour))
	r.outcome("3")
	r.until("the deployment", func() bool { return slices.Contains(r.stacks.all(), "deploy shop") })
	if slices.Contains(r.stacks.all(), "restart shop_web") {
		t.Error("it has overtaken the deployment")
	}
	close(hold)
	r.outcome("2")
}

// TestRestartIsCancelled by the manager that runs it or by another, while it runs or before it comes.
func TestRestartIsCancelled(t *testing.T) {
	untilEnd := func(ctx context.Context, _ string) (stack.Result, error) {
		<-ctx.Done()
		return stack.Result{Status: stack.Cancelled}, ctx.Err()
	}
	for name, tc := range map[string]struct{ running, byOwner bool }{
		"by its owner":           {true, true},
		"by another":             {true, false},
		"by another, beforehand": {false, false},
	} {
		t.Run(name, func(t *testing.T) {
			owner, other := two(t)
			owner.stacks.restart = untilEnd
			m := restart(t, "m1", "shop_web", time.Hour)
			by := other
			if tc.byOwner {
				by = owner
			}
			if tc.running {
				owner.runner.Handle(owner.ctx, m)
				owner.until("the restart", func() bool { return len(owner.stacks.all()) == 1 })
			}
			if err := by.runner.Cancel(t.Context(), "m1", "shop"); err != nil {
				t.Fatal(err)
			}
			if !tc.running {
				owner.runner.Handle(owner.ctx, m)
			}
			owner.wantCancelled("m1", 0)
			other.runner.Handle(other.ctx, m)
			other.wantCancelled("m1", 0)
			if done := other.stacks.all(); len(done) > 0 {
				t.Errorf("the other one did %v", done)
			}
			// A deployment is cancelled beside it.
			if err := other.runner.Cancel(t.Context(), "m2", "shop"); err != nil {
				t.Fatal(err)
			}
			owner.runner.Handle(owner.ctx, message(t, "m2", deploy("shop", 1)))
			owner.wantCancelled("m2", 1)
		})
	}
}

// TestRestartFailsTruthfully: what the stack engine says is the outcome, also of who is asked later.
func TestRestartFailsTruthfully(t *testing.T) {
	first, second := two(t)
	first.stacks.restart = func(context.Context, string) (stack.Result, error) {
		return stack.Result{Status: stack.RolledBack}, failure.New(failure.Invalid, "rolled_back", "shop_web", "service shop_web: it went back")
	}
	m := restart(t, "m1", "shop_web", time.Hour)
	first.runner.Handle(first.ctx, m)
	first.outcome("m1")
	second.runner.Handle(second.ctx, m)
	if o := second.outcome("m1"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK || o.GetFailure().GetMessage() != "service shop_web: it went back" {
		t.Errorf("outcome is %v", o)
	}
}

// TestRestartOnARealSwarm: the owner's write is held, its agent ends, and the write lands before or after another manager has had the command.
func TestRestartOnARealSwarm(t *testing.T) {
	for name, landsFirst := range map[string]bool{"landing first": true, "landing last": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api, image, stackName := engine.Client(t), engine.Image(t), engine.Name(t, "axt-command")
			t.Cleanup(func() { removeStack(t, api, stackName) })
			proxy := engineproxy.New(t, "/var/run/docker.sock")
			first, second := newManager(t, "first", proxy.Client(t)), newManager(t, "second", api)
			d := deploy(stackName, 1)
			d.Bundle.GetPlain().Files[0].Content = []byte(
				"version: \"3.8\"\nservices: {web: {image: \"" + image + "\", command: [sleep], deploy: {replicas: 1, update_config: {monitor: 1s}}}}\nnetworks: {default: {external: true, name: host}}\n")
			d.Options = &runnerv1.DeployOptions{ResolveImage: runnerv1.ResolveImage_RESOLVE_IMAGE_NEVER, Timeout: durationpb.New(time.Minute)}
			second.runner.Handle(second.ctx, message(t, "d1", d))
			if o := second.outcomeWithin(time.Minute, "d1"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
				t.Fatalf("the deployment: %v", o)
			}
			m := restart(t, "m1-"+stackName, stackName+"_web", time.Hour)
			m.GroupGeneration = 1
			held := proxy.Hold("POST", `/services/.*/update`, 1)
			first.runner.Handle(first.ctx, m)
			held.Reached(t)
			first.stop()
			first.runner.Wait()
			if landsFirst {
				held.Land(t)
			}
			m.GroupGeneration = 2
			second.runner.Handle(second.ctx, m)
			o := second.outcomeWithin(time.Minute, "m1-"+stackName)
			if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED || o.GetStack() != stackName || len(o.GetServices()) != 1 || o.GetServices()[0].GetRunning() != 1 {
				t.Errorf("outcome is %v", o)
			}
			if !landsFirst {
				held.Land(t)
			}
			s, _, err := api.ServiceInspectWithRaw(t.Context(), stackName+"_web", swarm.ServiceInspectOptions{})
			if err != nil || s.Spec.TaskTemplate.ForceUpdate != 1 || s.Spec.Labels[fence.LabelRestart] != "m1-"+stackName || s.Spec.Labels[fence.LabelGeneration] != "1/1" {
				t.Errorf("the service is %+v, %v", s.Spec, err)
			}
		})
	}
}
