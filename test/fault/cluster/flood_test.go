package cluster

import (
	"fmt"
	"sync"
	"testing"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/fault"
)

const (
	// floodStacks and floodGenerations are how many small deployments there are: each stack is deployed again and again.
	floodStacks, floodGenerations = 10, 6
	// floodTimeout is what each of them is given, waiting included.
	floodTimeout = 5 * time.Minute
)

// TestLeaderIsLostInAFlood: requests of many deployments are on their way through the leader when it dies; some were committed and not answered. A claim whose
// renewal was such a request is not lost, and a service whose creation was must not be created again.
func TestLeaderIsLostInAFlood(t *testing.T) {
	fault.NeedLong(t)
	w := whole(t)
	commands := make([][]*command, floodStacks)
	names := make([]string, floodStacks)
	for i := range names {
		names[i] = w.stackName(t)
	}
	for g := range floodGenerations {
		for i, name := range names {
			commands[i] = append(commands[i], w.deploy(t, name, w.small(g), floodTimeout))
		}
	}
	// In the middle: half of the stacks have had a first outcome.
	for _, of := range commands[:floodStacks/2] {
		of[0].outcome(t, floodTimeout)
	}
	leader := w.leader(t)
	lost := time.Now()
	must(t, leader.Kill(t.Context()))
	var mu sync.Mutex
	statuses := map[string]int{}
	var last time.Time
	for _, of := range commands {
		for _, c := range of {
			o, seen := c.outcome(t, floodTimeout)
			mu.Lock()
			statuses[o.GetStatus().String()]++
			if seen.After(last) {
				last = seen
			}
			mu.Unlock()
			if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
				t.Errorf("generation %d of %s ended as %s: %v", c.generation, c.stack, o.GetStatus(), o.GetFailure())
			}
		}
		of[floodGenerations-1].isDeployed(t, "a", "b")
	}
	fault.Report(t, "the Swarm's leader is killed in a flood of small deployments", "no false \"claim lost\", no second create; each command has one outcome",
		fmt.Sprintf("%d commands: %v, the last %s after the leader's death", floodStacks*floodGenerations, statuses, seconds(last.Sub(lost))))
}

// small is a stack that has converged as soon as it is written, different in each generation.
func (w *world) small(generation int) string {
	service := fmt.Sprintf("{image: %s, command: [sleep], environment: {G: \"%d\"}, deploy: {replicas: 0, endpoint_mode: dnsrr}}", w.image, generation)
	return "version: '3.9'\nservices:\n  a: " + service + "\n  b: " + service + "\n"
}
