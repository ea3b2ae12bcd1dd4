package crash

import (
	"fmt"
	"testing"

	"github.com/axion/runner-agent/internal/crashpoint"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/stacks"
)

// restartSteps are the steps at which the manager that restarts a service is killed; the first ones are the short form's.
var restartSteps = []string{
	crashpoint.Written, crashpoint.Decided,
	crashpoint.Claimed, crashpoint.Listed, crashpoint.Renewed, crashpoint.Writing, crashpoint.Converged, crashpoint.Recorded, crashpoint.Published,
}

// TestServiceRestartedOnce kills the manager that restarts a service, which has no generation; another one is given the command.
func TestServiceRestartedOnce(t *testing.T) {
	t.Parallel()
	on(t, func(t *testing.T, w *world) {
		c := w.newCluster(t, 2)
		r := &stepRun{cluster: c, takeOver: true, tally: &tally{}}
		s := stacks.New(t, c.prefix)
		marks := map[string]string{"a": "1"}
		deployed, generation := c.submit(s.Deploy(0, stacks.Marked(marks)))
		c.succeeds(deployed)
		steps := restartSteps
		if !fault.Long() {
			steps = steps[:2]
		}
		told := 0
		for _, step := range steps {
			before := s.Live()["a"].Spec.TaskTemplate.ForceUpdate
			victim := r.arm(step)
			id, _ := c.submit(&runnerv1.ServiceRestart{Service: s.Service("a")})
			recovery := r.killed(victim, step, "restart")
			c.succeeds(id)
			recovery()
			told += c.oneOutcome(id)
			if after := s.Live()["a"].Spec.TaskTemplate.ForceUpdate; after != before+1 {
				t.Errorf("killed at %q: ForceUpdate went from %d to %d", step, before, after)
			}
		}
		c.atRest(s, deployed, generation, marks)
		fault.Report(t, "ServiceRestart: kill -9 after the write and at other steps, redelivered to another manager", "ForceUpdate +1 exactly",
			fmt.Sprintf("%d restarts, each killed once: +1 each; %d outcomes told, one an id", len(steps), told))
	})
}

// TestScaledDuringDeployment scales a service while its deployment is watched, and kills the manager that watches.
func TestScaledDuringDeployment(t *testing.T) {
	t.Parallel()
	on(t, func(t *testing.T, w *world) {
		c := w.newCluster(t, 2)
		s := stacks.New(t, c.prefix)
		owner, _ := c.owner()
		c.known()
		deployed, _ := c.submit(s.Deploy(0, map[string]stacks.Service{"a": {Mark: "1", Replicas: 1}}))
		c.applied(s, "1")
		scaled, generation := c.submit(&runnerv1.ServiceScale{Service: s.Service("a"), Replicas: 2})
		owner.kill()
		c.succeeds(deployed)
		c.succeeds(scaled)
		c.atRest(s, scaled, generation, map[string]string{"a": "1"})
		if n := stacks.Replicas(s.Live()["a"]); n != 2 {
			t.Errorf("the service is to have %d tasks, want 2", n)
		}
		told := c.oneOutcome(deployed) + c.oneOutcome(scaled)
		writes := c.onceEach(s)
		fault.Report(t, "scale in the middle of a deployment, whose owner is killed", "neither lost nor half-applied",
			fmt.Sprintf("both succeeded (told %d times), 2 tasks wanted, %d writes, none twice", told, writes))
	})
}
