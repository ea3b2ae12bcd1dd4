package command

import (
	"context"
	"slices"
	"testing"

	"github.com/axion/runner-agent/agent/bus"
)

// echo is a Kafka that delivers a message before it acknowledges it.
type echo struct {
	runner    *Runner
	ctx       context.Context
	delivered []<-chan struct{}
}

// Produce implements Producer.
func (e *echo) Produce(_ context.Context, ms []bus.Message) error {
	for _, m := range ms {
		e.delivered = append(e.delivered, e.runner.Handle(e.ctx, m))
	}
	return nil
}

func TestHandedOnCommandComesBackAtOnce(t *testing.T) {
	r := newRig(t, 1)
	e := &echo{runner: r.runner, ctx: r.ctx}
	r.runner.deps.Producer = e
	m := message(t, "m", deploy("shop", 1))
	m.Topic = names.GetAgentTopic()
	r.settled(r.runner.Handle(r.ctx, m))
	if len(e.delivered) != 1 {
		t.Fatalf("delivered %d times", len(e.delivered))
	}
	r.outcome("m") // acknowledges it, too
	r.settled(e.delivered[0])
	if done := r.stacks.all(); !slices.Equal(done, []string{"deploy shop"}) {
		t.Errorf("done: %q", done)
	}
}
