package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/rig"
)

// outboxEvents is the agent's figure of events that Kafka has not acknowledged.
const outboxEvents = "axion_agent_outbox_events"

// TestNodeIsLostWithAnOutcomeInItsOutbox: the owner decides and cannot tell, because the broker is cut from it; then it loses its power. Its successor tells the
// outcome that was decided; the owner comes back and finds the same one in its outbox.
func TestNodeIsLostWithAnOutcomeInItsOutbox(t *testing.T) {
	fault.NeedLong(t)
	w := whole(t)
	const soon = time.Second // so that it ends before Kafka takes the owner out of its group
	c := w.deploy(t, w.stackName(t), w.slow(soon), deployTimeout)
	owner := c.owner(t)
	must(t, w.Plane().CutPort(t.Context(), rig.KafkaPort, owner))
	other := w.Managers()[0]
	if other == owner {
		other = w.Managers()[1]
	}
	must(t, rig.Wait(t.Context(), wholeTimeout, "the outcome in the stack's head", func(ctx context.Context) error { return decided(ctx, other, c.id) }))
	must(t, rig.Wait(t.Context(), wholeTimeout, "the outcome in the owner's outbox", func(ctx context.Context) error {
		n, err := owner.AgentMetric(ctx, outboxEvents)
		if err == nil && n == 0 {
			err = errors.New("it is empty")
		}
		return err
	}))
	must(t, owner.Kill(t.Context()))
	lost := time.Now()
	if e, err := c.wait(t.Context(), 0, "its outcome", isOutcome); err == nil {
		t.Fatalf("the outcome was told before its node died: %v", e.message)
	}
	told := c.succeeds(t, lostLimit, "web")
	must(t, w.heal(t.Context()))
	must(t, rig.Wait(t.Context(), wholeTimeout, "the outbox of "+owner.Name()+" to be empty", func(ctx context.Context) error {
		n, err := owner.AgentMetric(ctx, outboxEvents)
		if err == nil && n > 0 {
			err = fmt.Errorf("%v events are in it", n)
		}
		return err
	}))
	all, err := w.outcomes(t.Context(), c.id)
	must(t, err)
	if len(all) != 1 {
		t.Errorf("there are %d outcomes: %v", len(all), all)
	}
	fault.Report(t, "a node dies with an outcome in its outbox and comes back after its successor's", "one outcome an id",
		fmt.Sprintf("told by the successor %s after the node's death; %d outcome, none said otherwise", seconds(told.Sub(lost)), len(all)))
}

// decided: a stack's head, as that manager's Swarm has it, holds an outcome of the command.
func decided(ctx context.Context, by *rig.Node, commandID string) error {
	configs, err := by.Client().ConfigList(ctx, swarm.ConfigListOptions{})
	if err != nil {
		return err
	}
	for _, c := range configs {
		if strings.Contains(c.Spec.Labels["axion.outcomes"], commandID) {
			return nil
		}
	}
	return fmt.Errorf("no head of %d configs has it", len(configs))
}
