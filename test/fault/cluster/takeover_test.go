package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/rig"
)

const (
	// killedLimit is within what another manager must go on when the agent that runs a deployment is killed.
	killedLimit = 3 * time.Second
	// sessionTimeout is after what Kafka takes a silent member out of its group.
	sessionTimeout = 10 * time.Second
	// lostLimit is within what a command must be taken over when nobody sees its owner die.
	lostLimit = sessionTimeout + 30*time.Second
	// converges is how long the deployments of these tests take: longer than any take-over that is seen, so that all happens in their middle.
	converges = 15 * time.Second
	// deployTimeout is what a deployment is given.
	deployTimeout = 3 * time.Minute
)

// TestOwnersAgentIsKilled: the plane sees the stream break and evicts the member, so that another manager need not wait for Kafka's session timeout.
func TestOwnersAgentIsKilled(t *testing.T) {
	w := whole(t)
	c := w.deploy(t, w.stackName(t), w.slow(converges), deployTimeout)
	owner := c.owner(t)
	killed := time.Now()
	must(t, owner.KillAgent(t.Context()))
	successor, after := c.successor(t, owner, killed, lostLimit)
	if after > killedLimit {
		t.Errorf("%s went on after %s, more than %s", successor.Name(), after, killedLimit)
	}
	ended := c.succeeds(t, converges+lostLimit, "web")
	fault.Report(t, "kill -9 of the manager that runs a deployment", "another one goes on in 3 s or less, and ends it truthfully",
		"went on after "+seconds(after)+", ended after "+seconds(ended.Sub(killed)))
}

// TestOwnerIsLost: nobody sees the owner die; Kafka's session timeout does it, or the agent itself leaves because its engine is gone.
func TestOwnerIsLost(t *testing.T) {
	for _, tc := range []struct {
		name  string
		short bool
		lose  func(*testing.T, *world, *rig.Node) error
	}{
		{"engine killed", true, func(t *testing.T, _ *world, n *rig.Node) error { return n.KillEngine(t.Context()) }},
		{"node lost", false, func(t *testing.T, _ *world, n *rig.Node) error { return n.Kill(t.Context()) }},
		{"node frozen", false, func(t *testing.T, _ *world, n *rig.Node) error {
			t.Cleanup(func() { _ = n.Unpause(context.Background()) })
			return n.Pause(t.Context())
		}},
		{"Swarm cut from it, Kafka reachable", false, func(t *testing.T, w *world, n *rig.Node) error { return n.Cut(t.Context(), rig.Both, w.others(n)...) }},
		{"demoted", false, func(t *testing.T, w *world, n *rig.Node) error {
			t.Cleanup(func() { must(t, w.setRole(context.Background(), n, swarm.NodeRoleManager)) })
			return w.setRole(t.Context(), n, swarm.NodeRoleWorker)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if !tc.short {
				fault.NeedLong(t)
			}
			w := whole(t)
			c := w.deploy(t, w.stackName(t), w.slow(converges), deployTimeout)
			owner := c.owner(t)
			lost := time.Now()
			must(t, tc.lose(t, w, owner))
			_, after := c.successor(t, owner, lost, lostLimit+converges)
			if after > lostLimit {
				t.Errorf("taken over after %s, more than %s", after, lostLimit)
			}
			ended := c.succeeds(t, converges+lostLimit, "web")
			fault.Report(t, tc.name+": the manager that runs a deployment", "the majority's manager takes over within session timeout + 30 s and ends it truthfully",
				"taken over after "+seconds(after)+", ended after "+seconds(ended.Sub(lost)))
		})
	}
}

// TestLeaderIsLost: whoever runs the deployment, it ends.
func TestLeaderIsLost(t *testing.T) {
	fault.NeedLong(t)
	w := whole(t)
	c := w.deploy(t, w.stackName(t), w.slow(converges), deployTimeout)
	owner, leader := c.owner(t), w.leader(t)
	lost := time.Now()
	must(t, leader.Kill(t.Context()))
	ended := c.succeeds(t, converges+lostLimit, "web")
	fault.Report(t, "the Swarm's leader is lost in the middle of a deployment", "the deployment ends truthfully within session timeout + 30 s and its own time",
		fmt.Sprintf("ended after %s (the leader ran it: %t)", seconds(ended.Sub(lost)), owner == leader))
}

// TestTakeOverOfAFailingRollout: the successor finds a roll-out that fails, or Swarm's rollback at work, and must tell the one outcome: rolled back.
func TestTakeOverOfAFailingRollout(t *testing.T) {
	fault.NeedLong(t)
	for name, begun := range map[string]func(*runnerv1.ServiceProgress) bool{
		"while it fails": func(p *runnerv1.ServiceProgress) bool {
			return p.GetState() == runnerv1.ServiceState_SERVICE_STATE_PENDING
		},
		"while Swarm itself rolls it back": func(p *runnerv1.ServiceProgress) bool {
			return p.GetState() == runnerv1.ServiceState_SERVICE_STATE_ROLLING_BACK
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := whole(t)
			stack := w.stackName(t)
			good := w.deploy(t, stack, w.rolling("healthy"), deployTimeout)
			good.succeeds(t, deployTimeout, "web")
			bad := w.deploy(t, stack, w.rolling("unhealthy"), deployTimeout)
			e, err := bad.wait(t.Context(), wholeTimeout, "the point of the roll-out", func(e event) bool {
				p, ok := e.message.(*runnerv1.CommandProgress)
				return ok && p.GetService() != nil && begun(p.GetService())
			})
			must(t, err)
			owner, err := w.AgentNode(t.Context(), e.agentID)
			must(t, err)
			killed := time.Now()
			must(t, owner.KillAgent(t.Context()))
			_, after := bad.successor(t, owner, killed, lostLimit)
			o, _ := bad.outcome(t, deployTimeout)
			if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK {
				t.Errorf("the outcome is %s: %v", o.GetStatus(), o.GetFailure())
			}
			good.isDeployed(t, "web") // the spec, with its label, is the one from before: nobody "repaired" it
			for _, s := range w.services(t, stack) {
				if s.UpdateStatus == nil || s.UpdateStatus.State != swarm.UpdateStateRollbackCompleted {
					t.Errorf("the service's update is %+v", s.UpdateStatus)
				}
			}
			fault.Report(t, "the owner's agent is killed "+name, "rolls back, told as such, not \"repaired\"", "taken over after "+seconds(after)+", told as "+o.GetStatus().String())
		})
	}
}

// rolling is a stack whose update Swarm rolls back when its tasks are not healthy. The rollback takes a while too.
func (w *world) rolling(mode string) string {
	return fmt.Sprintf(`
version: "3.9"
services:
  web:
    image: %s
    command: [%s]
    healthcheck: {test: [CMD, /testimage, health], interval: 2s, timeout: 2s, retries: 3}
    deploy:
      replicas: 3
      endpoint_mode: dnsrr
      placement: {constraints: [node.role == worker]}
      update_config: {parallelism: 1, monitor: 20s, failure_action: rollback}
      rollback_config: {parallelism: 1, delay: 4s, monitor: 2s}
`, w.image, mode)
}

// TestEngineIsRestarted during a deployment: the owner's, and that of the node with the tasks.
func TestEngineIsRestarted(t *testing.T) {
	fault.NeedLong(t)
	for _, whose := range []string{"the owner's engine", "the tasks' engine"} {
		t.Run(whose, func(t *testing.T) {
			w := whole(t)
			c := w.deploy(t, w.stackName(t), w.slow(converges), deployTimeout)
			node := c.owner(t)
			if whose == "the tasks' engine" {
				node = w.Workers()[0]
			}
			restarted := time.Now()
			must(t, node.RestartEngine(t.Context()))
			o, ended := c.outcome(t, deployTimeout)
			c.isDeployed(t, "web")
			if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED && o.GetFailure().GetCode() == "" {
				t.Errorf("it ended as %s without a typed failure", o.GetStatus())
			}
			fault.Report(t, whose+" is restarted during a deployment", "goes on, or ends with a typed error; nothing half-told",
				fmt.Sprintf("%s %s after %s", o.GetStatus(), o.GetFailure().GetCode(), seconds(ended.Sub(restarted))))
		})
	}
}

// others are all nodes but that one.
func (w *world) others(n *rig.Node) []rig.Peer {
	var peers []rig.Peer
	for _, other := range w.Nodes() {
		if other != n {
			peers = append(peers, other)
		}
	}
	return peers
}

// setRole promotes or demotes a node, by a manager other than it.
func (w *world) setRole(ctx context.Context, n *rig.Node, role swarm.NodeRole) error {
	by := w.Managers()[0]
	if by == n {
		by = w.Managers()[1]
	}
	info, err := n.Client().Info(ctx)
	if err != nil {
		return err
	}
	return rig.Wait(ctx, wholeTimeout, "the new role of "+n.Name(), func(ctx context.Context) error { // the node's version moves by itself
		node, _, err := by.Client().NodeInspectWithRaw(ctx, info.Swarm.NodeID)
		if err != nil {
			return err
		}
		node.Spec.Role = role
		return by.Client().NodeUpdate(ctx, node.ID, node.Version, node.Spec)
	})
}
