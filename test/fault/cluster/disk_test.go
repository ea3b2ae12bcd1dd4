package cluster

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/axion/runner-agent/agent/health"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/rig"
)

// warned waits until the node's agent says so on /health, or does not any more.
func warned(t *testing.T, n *rig.Node, code string, want bool, limit time.Duration) health.Warning {
	t.Helper()
	var found health.Warning
	must(t, rig.Wait(t.Context(), limit, fmt.Sprintf("health warning %s of %s: %t", code, n.Name(), want), func(ctx context.Context) error {
		answer, err := n.Health(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(answer.Warnings, func(w health.Warning) bool { return w.Code == code })
		if i >= 0 {
			found = answer.Warnings[i]
		}
		if (i >= 0) != want {
			return fmt.Errorf("its warnings are %v", answer.Warnings)
		}
		return nil
	}))
	return found
}

// TestOwnersDiskIsFull: the manager that reads the cluster's commands can note nothing any more. It begins no command, says so, and goes on when there is room.
func TestOwnersDiskIsFull(t *testing.T) {
	fault.NeedLong(t)
	w := whole(t)
	stack := w.stackName(t)
	first := w.deploy(t, stack, w.slow(time.Second), deployTimeout)
	owner := first.owner(t)
	first.succeeds(t, deployTimeout, "web")
	if err := owner.FillDisk(t.Context()); err != nil {
		if _, missing := owner.Exec(t.Context(), "mountpoint", "-q", rig.StateMount); missing != nil {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	filled := time.Now()
	second := w.deploy(t, stack, w.slow(2*time.Second), deployTimeout)
	warning := warned(t, owner, "disk_full", true, wholeTimeout)
	after := time.Since(filled)
	if warning.Severity != "high" || warning.Text == "" {
		t.Errorf("the warning is %+v", warning)
	}
	must(t, owner.FreeDisk(t.Context()))
	freed := time.Now()
	ended := second.succeeds(t, deployTimeout, "web")
	warned(t, owner, "disk_full", false, wholeTimeout)
	fault.Report(t, "disk full on the owner's state volume", "clear health warning, recovery without a person when there is room",
		fmt.Sprintf("warned after %s: %q; the command ended %s after there was room", seconds(after), warning.Text, seconds(ended.Sub(freed))))
}

// TestOwnersStateIsLost in the middle of a deployment: the agent comes back with a new key and the same id, and the deployment is not lost.
func TestOwnersStateIsLost(t *testing.T) {
	fault.NeedLong(t)
	w := whole(t)
	before := w.agentIDs(t)
	c := w.deploy(t, w.stackName(t), w.slow(converges), deployTimeout)
	owner := c.owner(t)
	lost := time.Now()
	must(t, owner.LoseState(t.Context()))
	_, after := c.successor(t, owner, lost, lostLimit)
	ended := c.succeeds(t, converges+lostLimit, "web")
	must(t, w.WaitAgents(t.Context(), wholeTimeout))
	back := time.Since(lost)
	if now := w.agentIDs(t); !slices.Equal(before, now) {
		t.Errorf("the agents were %v and are %v", before, now)
	}
	fault.Report(t, "the owner's state volume is lost in the middle of a deployment", "recovery without a person; no command lost",
		fmt.Sprintf("another went on after %s, ended after %s; the agent was back under its id after %s", seconds(after), seconds(ended.Sub(lost)), seconds(back)))
}
