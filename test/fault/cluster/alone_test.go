package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/rig"
)

// another brings up a rig of its own for a test that needs other nodes or another plane than the shared one. Each has its own name.
func another(t *testing.T, cfg rig.Config) *world {
	t.Helper()
	whole(t) // says whether the machine can have a rig
	w, err := up(t, cfg)
	must(t, err)
	t.Cleanup(func() {
		if err := w.Down(context.Background()); err != nil {
			t.Error(err)
		}
		_ = w.operator.Close()
	})
	w.keepWhole(t)
	return w
}

// certificateLife is that of the agents' certificates in TestCertificateExpiresWhileDown.
const certificateLife = time.Minute

// TestCertificateExpiresWhileDown: a node is off for longer than its certificate lives. It is alone, so nobody is there to vouch for it but its own key.
func TestCertificateExpiresWhileDown(t *testing.T) {
	fault.NeedLong(t)
	w := another(t, rig.Config{Name: rigName + "-life", Nodes: []rig.NodeConfig{{}}, PlaneArgs: []string{"--certificate-life", certificateLife.String()}})
	n := w.Nodes()[0]
	must(t, n.Kill(t.Context()))
	off := time.NewTimer(certificateLife + certificateLife/4)
	defer off.Stop()
	<-off.C
	must(t, n.Start(t.Context()))
	started := time.Now()
	must(t, w.WaitAgents(t.Context(), wholeTimeout))
	back := time.Since(started)
	c := w.deploy(t, w.stackName(t), w.anywhere(), deployTimeout)
	c.succeeds(t, deployTimeout, "web")
	fault.Report(t, "the certificate expires while the node is down", "recovery without a person where that is possible", "back after "+seconds(back)+", and it deploys")
}

// anywhere is a stack that converges soon on any node.
func (w *world) anywhere() string {
	return fmt.Sprintf("version: '3.9'\nservices:\n  web:\n    image: %s\n    deploy: {replicas: 1, endpoint_mode: dnsrr}\n", w.image)
}

// wentBack is what the plane logs as an error when the generations of a stack have gone back.
const wentBack = "a stack's generations went back"

const (
	// swarmState is where an engine keeps the Swarm, and swarmBackup a copy.
	swarmState, swarmBackup = "/var/lib/docker/swarm", "/var/lib/docker/swarm.backup"
)

// TestSwarmIsRestoredFromABackup: the Swarm, with the heads of its stacks, is set back by some generations. One stack is deployed again after it; the other is left
// alone, and the plane has to see it.
func TestSwarmIsRestoredFromABackup(t *testing.T) {
	fault.NeedLong(t)
	w := another(t, rig.Config{Name: rigName + "-backup", Nodes: []rig.NodeConfig{{}}})
	n, ctx := w.Nodes()[0], t.Context()
	stack := w.stackName(t)
	alone := w.stackName(t)
	w.deploy(t, alone, w.small(0), deployTimeout).succeeds(t, deployTimeout, "a", "b")
	var commands []*command
	deploy := func() *command {
		c := w.deploy(t, stack, w.small(len(commands)), deployTimeout)
		commands = append(commands, c)
		return c
	}
	deploy().succeeds(t, deployTimeout, "a", "b")
	deploy().succeeds(t, deployTimeout, "a", "b")
	offline := func(script string) {
		t.Helper()
		must(t, n.KillEngine(ctx))
		_, err := n.Exec(ctx, "sh", "-c", script)
		must(t, err)
		must(t, n.StartEngine(ctx))
		_, err = w.WaitLeader(ctx, wholeTimeout)
		must(t, err)
	}
	offline("rm -rf " + swarmBackup + " && cp -a " + swarmState + " " + swarmBackup)
	deploy().succeeds(t, deployTimeout, "a", "b")
	deploy().succeeds(t, deployTimeout, "a", "b")
	lost := w.deploy(t, alone, w.small(1), deployTimeout)
	lost.succeeds(t, deployTimeout, "a", "b")
	waiting := deploy() // may be anywhere when the Swarm goes back
	restored := time.Now()
	offline("rm -rf " + swarmState + " && mv " + swarmBackup + " " + swarmState)
	o, _ := waiting.outcome(t, deployTimeout)
	must(t, w.WaitAgents(ctx, wholeTimeout))
	last := deploy()
	ended := last.succeeds(t, deployTimeout, "a", "b")
	for _, c := range commands {
		c.outcome(t, deployTimeout)
	}
	must(t, rig.Wait(ctx, wholeTimeout, "the stack that was left alone", func(ctx context.Context) error {
		for _, s := range w.services(t, alone) {
			if at := generationOf(s.Spec.Labels[generationLabel]); at <= lost.generation {
				return fmt.Errorf("service %s is of generation %d", s.Spec.Name, at)
			}
		}
		return nil
	}))
	healed := time.Since(restored)
	logs, err := w.Plane().LogsSince(ctx, restored)
	must(t, err)
	if !strings.Contains(logs, wentBack) {
		t.Error("the plane has raised no alarm")
	}
	for _, s := range w.services(t, alone) {
		if env := s.Spec.TaskTemplate.ContainerSpec.Env; !slices.Contains(env, "G=1") {
			t.Errorf("service %s has the environment %v, which is not what succeeded last", s.Spec.Name, env)
		}
	}
	fault.Report(t, "the Swarm is restored from an old backup", "every command has an outcome; next deployment accepted; alarm where numbers went back",
		fmt.Sprintf("%d commands, each with one outcome (the one in the middle: %s); the next one succeeded %s after the restore; alarm, and what was lost is back under a new generation after %s",
			len(commands), o.GetStatus(), seconds(ended.Sub(restored)), seconds(healed)))
}

// TestThreeEnginesTakeOver: three engine generations in one Swarm; whoever runs a deployment, another takes it over.
func TestThreeEnginesTakeOver(t *testing.T) {
	fault.NeedLong(t)
	w := another(t, rig.Config{Name: rigName + "-engines", Nodes: []rig.NodeConfig{{Release: rig.Bookworm}, {Release: rig.Trixie}, {Release: rig.Forky}, {Role: rig.Worker}}})
	version := func(n *rig.Node) string {
		v, err := n.Client().ServerVersion(t.Context())
		must(t, err)
		return v.Version
	}
	c := w.deploy(t, w.stackName(t), w.slow(converges), deployTimeout)
	owner := c.owner(t)
	from := version(owner)
	lost := time.Now()
	must(t, owner.Kill(t.Context()))
	successor, after := c.successor(t, owner, lost, lostLimit+converges)
	to := version(successor)
	if after > lostLimit {
		t.Errorf("taken over after %s, more than %s", after, lostLimit)
	}
	ended := c.succeeds(t, converges+lostLimit, "web")
	if from == to {
		t.Errorf("both engines are %s", from)
	}
	fault.Report(t, "node lost in a Swarm of three engine generations", "taken over within session timeout + 30 s, ended truthfully",
		fmt.Sprintf("from engine %s to %s after %s, ended after %s", from, to, seconds(after), seconds(ended.Sub(lost))))
}
