package soak

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/program"
)

const (
	// deploymentsEnv sets how many commands the long form submits.
	deploymentsEnv = "AXION_SOAK_DEPLOYMENTS"
	// commandsShort and commandsLong are how many are submitted.
	commandsShort, commandsLong = 60, 10_000
	// samplesShort and samplesLong are how often each phase is interrupted for a sample.
	samplesShort, samplesLong = 1, 20
	// soakLimit bounds the long form.
	soakLimit = 3 * time.Hour
	// keptManifests is how many generations' manifests may be kept of a stack: ten, and the last good one.
	keptManifests = 11
	// settleTime is how long the programs are left alone before a sample: connections that were cut are closed, and the garbage is collected.
	settleTime = 2 * time.Second
)

// phase is a part of the run. Whose figures are to be followed must live through it.
type phase struct {
	name                 string
	part                 float64 // of the commands
	killAgent, killPlane bool
	figures              []figure
	of                   func(agent, plane sample) sample
}

var phases = []phase{
	{name: "everything breaks", part: 0.2, killAgent: true, killPlane: true},
	{name: "the agent lives", part: 0.5, killPlane: true, figures: agentFigures, of: func(agent, _ sample) sample { return agent }},
	{name: "the plane lives", part: 0.3, killAgent: true, figures: planeFigures, of: func(_, plane sample) sample { return plane }},
}

// TestSoak: thousands of deployments of changing stacks, faults at random.
func TestSoak(t *testing.T) {
	n, samples := commandsShort, samplesShort
	if fault.Long() {
		n, samples = commandsLong, samplesLong
	}
	if text := os.Getenv(deploymentsEnv); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < commandsShort {
			t.Fatalf("%s is %q, must be a number from %d on", deploymentsEnv, text, commandsShort)
		}
	}
	planeBinary, agentBinary := program.Build(t, "axion-plane"), program.Build(t, "axion-agent")
	fault.Alone(t)
	w := newWorld(t, planeBinary, agentBinary)
	k := &work{w: w, outcomes: map[string]*runnerv1.CommandOutcome{}, statuses: map[runnerv1.OutcomeStatus]int{}}
	began := time.Now()
	happened := map[string]int{}
	var seen []string
	for _, p := range phases {
		seen = append(seen, w.live(t, k, p, int(p.part*float64(n)), samples, began, happened)...)
	}
	took := time.Since(began)
	w.checkOutcomes(t, k)
	w.checkSwarm(t, k)
	broken := make([]string, 0, len(happened))
	for _, name := range slices.Sorted(maps.Keys(happened)) {
		broken = append(broken, fmt.Sprintf("%d times %s", happened[name], name))
	}
	fault.Report(t, fmt.Sprintf("%d deployments of changing stacks in %.0f s: %s", k.done(), took.Seconds(), strings.Join(broken, ", ")),
		"0 lost, one outcome each, the Swarm as the last generations say, <= 11 manifests a stack; goroutines, descriptors, heap flat",
		fmt.Sprintf("%s; %s", k.told(), strings.Join(seen, ", ")))
}

// live works through one phase and returns what its figures were.
func (w *world) live(t *testing.T, k *work, p phase, n, samples int, began time.Time, happened map[string]int) []string {
	t.Helper()
	var series []sample
	for i := range samples {
		stop := w.breaking(t.Context(), w.faults(p.killAgent, p.killPlane))
		err := k.run(t.Context(), n*(i+1)/samples-n*i/samples)
		did, failed := stop()
		for name, times := range did {
			happened[name] += times
		}
		if err := errors.Join(err, failed); err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		time.Sleep(settleTime)
		agent, plane, err := w.measure(t.Context(), k.done())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%6.0f s, %5d commands: agent %3.0f goroutines, %2.0f descriptors, heap %4.1f MB, anonymous %4.1f MB; plane %2.0f descriptors, anonymous %5.1f MB (%s)",
			time.Since(began).Seconds(), k.done(), agent.goroutines, agent.descriptors, agent.heap/mb, agent.anonymous/mb, plane.descriptors, plane.anonymous/mb, p.name)
		if p.of != nil {
			series = append(series, p.of(agent, plane))
		}
		if time.Since(began) > soakLimit {
			t.Errorf("%d commands in %s: it takes too long", k.done(), soakLimit)
			break
		}
	}
	var seen []string
	for _, f := range p.figures {
		text, wrong := f.check(series)
		if wrong != nil {
			t.Errorf("%s: %v", p.name, wrong)
		}
		seen = append(seen, text)
	}
	if len(seen) > 0 {
		seen[0] = p.name + ": " + seen[0]
	}
	return seen
}

// checkOutcomes: each command has exactly one outcome among all the events of the plane, and none that says that something went wrong.
func (w *world) checkOutcomes(t *testing.T, k *work) {
	t.Helper()
	stream, err := w.operator.WatchEvents(t.Context(), &planev1.WatchEventsRequest{ClusterId: cluster})
	if err != nil {
		t.Fatal(err)
	}
	outcomes := map[string]int{}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		outcome, err := outcomeIn(event)
		if err != nil {
			t.Fatal(err)
		}
		if outcome != nil {
			outcomes[event.GetCausationId()]++
		}
	}
	for _, c := range k.commands {
		if outcomes[c.id] != 1 {
			t.Errorf("command %s, generation %d of %s, has %d outcomes", c.id, c.generation, c.stack, outcomes[c.id])
		}
		delete(outcomes, c.id)
		switch o := k.outcomes[c.id]; o.GetStatus() {
		case runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED:
		default:
			t.Errorf("command %s, generation %d of %s, ended as %s: %s", c.id, c.generation, c.stack, o.GetStatus(), o.GetFailure())
		}
	}
	if len(outcomes) > 0 {
		t.Errorf("%d commands that nobody submitted have an outcome", len(outcomes))
	}
}

// checkSwarm: the services are those of each stack's last generation, and what is kept of the stacks is bounded.
func (w *world) checkSwarm(t *testing.T, k *work) {
	t.Helper()
	heads, manifests, err := w.records(t.Context(), w.prefix)
	if err != nil {
		t.Fatal(err)
	}
	for stack, c := range k.last() {
		if o := k.outcomes[c.id]; o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
			t.Errorf("the last command of %s ended as %s: %s", stack, o.GetStatus(), o.GetFailure())
			continue
		}
		services, err := w.services(stack)
		if err != nil {
			t.Fatal(err)
		}
		there := map[string]uint64{}
		for _, s := range services {
			name := strings.TrimPrefix(s.Spec.Name, stack+"_")
			there[name] = *s.Spec.Mode.Replicated.Replicas
			if env := s.Spec.TaskTemplate.ContainerSpec.Env; !slices.Equal(env, []string{"MARK=" + c.key}) {
				t.Errorf("service %s is not of generation %d: %q", s.Spec.Name, c.generation, env)
			}
		}
		if !maps.Equal(there, c.services) {
			t.Errorf("stack %s has %v, generation %d says %v", stack, there, c.generation, c.services)
		}
		if n := len(manifests[stack]); n > keptManifests {
			t.Errorf("%d manifests of stack %s are kept", n, stack)
		}
		if n := len(heads[stack]); n != 1 {
			t.Errorf("stack %s has %d heads", stack, n)
		}
	}
}
