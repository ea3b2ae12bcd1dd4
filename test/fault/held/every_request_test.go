package held

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/engineproxy"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/stacks"
)

// failing is a service whose tasks end at once, so that Swarm rolls its update back.
var failing = stacks.Service{
	Mark: "2", Replicas: 1, Command: "[exit, \"1\"]",
	Deploy: ", restart_policy: {condition: none}, update_config: {failure_action: rollback, monitor: 20s}, rollback_config: {monitor: 1s}",
}

// healthy is what it was before.
var healthy = stacks.Service{Mark: "1", Replicas: 1, Deploy: failing.Deploy}

// scene is what a manager does while one of its requests is held.
type scene struct {
	name string
	// before is deployed as generation 1, unless it is nil; held is the next generation's deployment, and the one after it is next's.
	before, held, next map[string]stacks.Service
	// every is how many of the requests are left out between two that are held in the short form.
	every int
	// status is how the held command ends when nothing is held.
	status runnerv1.OutcomeStatus
}

func marked(pairs ...string) map[string]stacks.Service {
	services := map[string]stacks.Service{}
	for i := 0; i < len(pairs); i += 2 {
		services[pairs[i]] = stacks.Service{Mark: pairs[i+1]}
	}
	return services
}

func marksOf(services map[string]stacks.Service) map[string]string {
	marks := map[string]string{}
	for name, s := range services {
		marks[name] = s.Mark
	}
	return marks
}

// TestHeldAtEveryRequest holds the owner at each of its requests in turn, from the first look at the stack's head to the removal of old manifests. Meanwhile
// another manager deploys the next generation; then the request goes on.
func TestHeldAtEveryRequest(t *testing.T) {
	t.Parallel()
	for _, sc := range []scene{
		{"deploy", nil, marked("a", "2", "b", "2"), marked("a", "3"), 4, runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED},
		{"prune", marked("a", "1", "b", "1", "c", "1"), marked("a", "2", "c", "1"), marked("b", "3", "c", "1"), 4, runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED},
		{
			"rollback by swarm",
			map[string]stacks.Service{"a": healthy},
			map[string]stacks.Service{"a": failing},
			marked("a", "3"), 80,
			runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK,
		},
	} {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			requests := sc.requests(t)
			step := 1
			if !fault.Long() {
				step = sc.every
			}
			seen := &seen{}
			t.Run("held", func(t *testing.T) {
				for n := 1; n <= len(requests); n += step {
					t.Run(fmt.Sprintf("%d %s", n, strings.ReplaceAll(requests[n-1], "/", "|")), func(t *testing.T) {
						t.Parallel()
						sc.hold(t, n, seen)
					})
				}
			})
			fault.Report(t, "owner held at every request of a "+sc.name+"; successor deploys the next generation; release",
				"services = newest generation; a stale create gone in 10 s; the former owner says \"claim lost\" or the outcome that stands, and writes nothing more",
				fmt.Sprintf("%d of %d requests held: %d times superseded (%d times told as \"claim lost\"), %d times decided before; %d late writes took effect; longest until at rest %.1f s",
					seen.held, len(requests), seen.superseded, seen.lost, seen.decided, seen.landed, seen.rest.Seconds()))
		})
	}
}

// seen counts what became of the held commands.
type seen struct {
	mu                                      sync.Mutex
	held, superseded, lost, decided, landed int
	rest                                    time.Duration
}

// prepare makes the stack and its managers, and deploys what was there before.
func (sc scene) prepare(t *testing.T) (s *stacks.Stack, first, second *manager) {
	t.Helper()
	prefix := engine.Name(t, "axt-held")
	s = stacks.New(t, prefix)
	first, second = newManager(t, "first", prefix, 1), newManager(t, "second", prefix, 2)
	if sc.before != nil {
		first.succeeds("before", s.Deploy(1, sc.before))
	}
	return s, first, second
}

// requests are those of the command when nothing is held.
func (sc scene) requests(t *testing.T) []string {
	t.Helper()
	s, first, _ := sc.prepare(t)
	before := len(first.proxy.Requests())
	if o := first.does("held", s.Deploy(2, sc.held)); o.GetStatus() != sc.status {
		t.Fatalf("undisturbed, the command ends as %v", o)
	}
	return first.proxy.Requests()[before:]
}

func (sc scene) hold(t *testing.T, n int, seen *seen) {
	s, first, second := sc.prepare(t)
	second.sweeps()
	held := first.proxy.Hold("", ".", n)
	done := first.give("held", s.Deploy(2, sc.held))
	if !reached(held, first, "held") {
		t.Skipf("this time there were fewer than %d requests", n) // a look more or less while it waits
	}
	second.succeeds("next", s.Deploy(3, sc.next))
	writes := len(first.serviceWrites())
	held.Land(t)
	o := first.outcome("held")
	<-done
	rest := atRest(t, s, "next", marksOf(sc.next))
	late := first.serviceWrites()[writes:]
	if len(late) > 1 {
		t.Errorf("the former owner went on writing: %v", late)
	}
	seen.mu.Lock()
	defer seen.mu.Unlock()
	seen.held++
	seen.landed += len(late)
	seen.rest = max(seen.rest, rest)
	if strings.Contains(first.told("held"), "claim on stack") {
		seen.lost++
	}
	switch {
	case o.GetStatus() == runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED && o.GetCurrentGeneration() == 3:
		seen.superseded++
	case o.GetStatus() == sc.status && o.GetGeneration() == 2: // it was in the head before the request was held
		seen.decided++
	default:
		t.Errorf("the former owner says %v", o)
	}
}

// reached waits until a request is held, or the command has ended without it.
func reached(held *engineproxy.Held, m *manager, id string) bool {
	m.t.Helper()
	is := false
	until(m.t, patience, "the request to be held", func() bool {
		m.collect()
		m.mu.Lock()
		ended := m.outcomes[id] != nil
		m.mu.Unlock()
		is = held.IsReached()
		return is || ended
	})
	return is
}
