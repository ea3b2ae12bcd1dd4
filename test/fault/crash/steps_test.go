package crash

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/internal/crashpoint"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/stacks"
)

// stage is one command of the sequence that each stack goes through.
type stage struct {
	name    string
	command func(s *stacks.Stack) proto.Message
	marks   map[string]string // what the Swarm holds then
	status  runnerv1.OutcomeStatus
	// steps are those that a crash can be armed for in this stage, "NAME:n" for the nth time.
	steps []string
}

// common are the steps of every command.
var common = []string{
	crashpoint.Received, crashpoint.Journaled, crashpoint.Claimed, crashpoint.Listed, crashpoint.Renewed, crashpoint.Applied, crashpoint.Converged,
	crashpoint.Decided, crashpoint.Recorded, crashpoint.Published, crashpoint.Settled, crashpoint.Writing,
}

const succeeded = runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED

// unplaced are services whose tasks can run nowhere: containers take seconds to start and to end, and add nothing here. A scaling ends with its timeout.
func unplaced(marks map[string]string) map[string]stacks.Service {
	services := stacks.Marked(marks)
	for name, service := range services {
		service.Deploy = never
		services[name] = service
	}
	return services
}

// sequence deploys, updates (one service changed, one made, one pruned, one left alone), scales and removes a stack.
func sequence() []stage {
	one := map[string]string{"a": "1", "b": "1", "same": "x"}
	two := map[string]string{"a": "2", "c": "2", "same": "x"}
	with := func(more ...string) []string { return append(slices.Clone(common), more...) }
	return []stage{
		{
			"deploy", func(s *stacks.Stack) proto.Message { return s.Deploy(0, unplaced(one)) }, one, succeeded,
			with("writing:2", "writing:3", "writing:4", "written", "written:2", "written:3"),
		},
		{
			"update", func(s *stacks.Stack) proto.Message { return s.Deploy(0, unplaced(two)) }, two, succeeded,
			with("writing:2", "writing:3", "written", "written:2", crashpoint.Tombstoned),
		},
		{
			"scale", func(s *stacks.Stack) proto.Message {
				return &runnerv1.ServiceScale{Service: s.Service("a"), Replicas: 1, Timeout: durationpb.New(time.Second)}
			}, two, runnerv1.OutcomeStatus_OUTCOME_STATUS_TIMED_OUT,
			with("written"),
		},
		{
			"remove", func(s *stacks.Stack) proto.Message { return &runnerv1.StackRemove{Stack: s.Name} },
			map[string]string{},
			succeeded,
			slices.DeleteFunc(with("writing:2", crashpoint.Tombstoned, "tombstoned:2", "tombstoned:3"), func(step string) bool {
				return step == crashpoint.Applied // a removal looks again and again until nothing is left
			}),
		},
	}
}

// sweepSteps are reached without a command, when a manager finds what was created too late.
var sweepSteps = []string{crashpoint.Sweeping, crashpoint.Swept}

// TestEveryStep kills the manager that runs a command at each step of the command's life, and at each of its writes. In half of the cases the agent is started
// again, as Swarm would do it; in the other half another manager goes on alone.
func TestEveryStep(t *testing.T) {
	t.Parallel()
	on(t, func(t *testing.T, w *world) {
		reached := &tally{}
		t.Run("at once", func(t *testing.T) {
			for half, name := range []string{"restarted", "taken over"} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					c := w.newCluster(t, 1+half)
					r := &stepRun{cluster: c, takeOver: half == 1, tally: reached}
					for _, round := range r.plan(half) {
						r.round(round)
					}
				})
			}
		})
		for _, step := range crashpoint.Names() {
			if reached.at(step) == 0 {
				t.Errorf("no agent was killed at step %q", step)
			}
		}
		fault.Report(t, "kill -9 of the agent at every step of a command's life: deploy, update, scale, remove, sweep",
			"0 lost, 0 applied twice, final spec = last generation, one outcome an id, head not left applying",
			fmt.Sprintf("%d kills at %d steps; %d commands, each with one outcome (told %d times); %d writes to services, none twice; the slowest deployment was ended %.1f s after the kill",
				reached.kills, len(crashpoint.Names()), reached.commands, reached.told, reached.writes, reached.slowest.Seconds()))
	})
}

// tally counts what the halves of the test saw.
type tally struct {
	mu                            sync.Mutex
	steps                         map[string]int
	kills, commands, told, writes int
	slowest                       time.Duration
}

func (y *tally) add(f func()) {
	y.mu.Lock()
	defer y.mu.Unlock()
	f()
}

func (y *tally) at(step string) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.steps[step]
}

// round is one stack's way: for each stage the step at which the manager is killed; "" means not at all.
type round struct{ stages, sweep []string }

// stepRun is the test on one cluster.
type stepRun struct {
	*cluster
	takeOver bool
	tally    *tally
}

// plan spreads the steps over as few stacks as possible. The short form has each of a stage's steps in one of the halves, and of the steps that come in every
// command only some in each stage; the long form has all in both.
func (r *stepRun) plan(half int) []round {
	queues := make([][]string, len(sequence()))
	for i, s := range sequence() {
		for n, step := range s.steps {
			if fault.Long() || r.short(half, i, n, step) {
				queues[i] = append(queues[i], step)
			}
		}
	}
	sweeps := sweepSteps
	if !fault.Long() {
		sweeps = sweepSteps[half : half+1]
	}
	var rounds []round
	for left := true; left; {
		left = false
		one := round{stages: make([]string, len(queues))}
		for i := range queues {
			if len(queues[i]) > 0 {
				one.stages[i], queues[i], left = queues[i][0], queues[i][1:], true
			}
		}
		if len(sweeps) > 0 {
			one.sweep, sweeps, left = sweeps[:1], sweeps[1:], true
		}
		if left {
			rounds = append(rounds, one)
		}
	}
	return rounds
}

// short says whether the short form has that step: the common ones once, in the stage that their number points to, the writes in each stage once.
func (r *stepRun) short(half, stage, n int, step string) bool {
	if i := slices.Index(common, step); i >= 0 && step != crashpoint.Writing {
		return i%len(sequence()) == stage && i/len(sequence())%2 == half
	}
	return (n+stage)%2 == half
}

// round leads one stack through the sequence.
func (r *stepRun) round(plan round) {
	r.t.Helper()
	s := stacks.New(r.t, r.prefix)
	for i, stage := range sequence() {
		if stage.name == "remove" {
			for _, step := range plan.sweep {
				r.sweep(s, step)
			}
		}
		if i < 2 || plan.stages[i] != "" { // the first two are what the others work on
			r.stage(s, stage, plan.stages[i])
		}
	}
	writes := r.onceEach(s)
	r.tally.add(func() { r.tally.writes += writes })
	s.Remove()
}

// stage has one command done by a manager that is killed at that step, and looks at what has become of it.
func (r *stepRun) stage(s *stacks.Stack, stage stage, step string) {
	r.t.Helper()
	victim := r.arm(step)
	id, generation := r.submit(stage.command(s))
	recovery := r.killed(victim, step, s.Name+" "+stage.name)
	if o := r.await(id); o.message.GetStatus() != stage.status {
		r.t.Errorf("%s at %q: %v", stage.name, step, o.message)
	}
	took := recovery()
	r.atRest(s, id, generation, stage.marks)
	told := r.oneOutcome(id)
	r.tally.add(func() {
		r.tally.commands++
		r.tally.told += told
		if stage.name == "deploy" || stage.name == "update" { // the others wait
			r.tally.slowest = max(r.tally.slowest, took)
		}
	})
}

// sweep kills the manager that removes what an older generation created too late.
func (r *stepRun) sweep(s *stacks.Stack, step string) {
	r.t.Helper()
	before, _ := s.Head()
	marks := s.Marks()
	victim := r.arm(step)
	s.Stale("late", 1)
	recovery := r.killed(victim, step, s.Name+" sweep")
	generation, _ := strconv.ParseUint(before.Generation, 10, 64)
	r.atRest(s, before.Command, generation, marks)
	recovery()
}

// arm restarts the manager that will be given the cluster's topic, so that it is killed at that step.
func (r *stepRun) arm(step string) *manager {
	r.t.Helper()
	victim := r.managers[0]
	for _, m := range r.managers {
		if m.now().agentID > victim.now().agentID { // the group gives its one partition to the last of the members' ids, which begin with the agents'
			victim = m
		}
	}
	if step == "" && victim.alive() {
		return victim
	}
	victim.kill()
	victim.start(step)
	eventually(r.t, "the armed manager to be given the cluster's topic", func() bool {
		if !victim.alive() { // it was killed at once: it had an outcome in its outbox, which it now gets rid of in good order
			r.tally.add(func() { r.tally.kills++ })
			victim.start("")
			eventually(r.t, "the manager's membership", victim.member)
			victim.term()
			victim.gone(endsWithin)
			victim.start(step)
		}
		for _, m := range r.managers {
			if m.now().owns != (m == victim) {
				return false
			}
		}
		return true
	})
	return victim
}

// killed waits until the victim is dead and lets the cluster go on. What it returns tells how long that took.
func (r *stepRun) killed(victim *manager, step, during string) (recovery func() time.Duration) {
	r.t.Helper()
	if step == "" {
		return func() time.Duration { return 0 }
	}
	name, _, _ := strings.Cut(step, ":")
	_, ended := victim.process()
	select {
	case <-ended:
	case <-time.After(patience):
		r.t.Fatalf("%s: step %s was not reached", during, step)
	}
	died := time.Now()
	if got := victim.now().crashed; got != name {
		r.t.Fatalf("%s: the agent crashed at %q, want %q", during, got, name)
	}
	r.tally.add(func() {
		if r.tally.steps == nil {
			r.tally.steps = map[string]int{}
		}
		r.tally.steps[name]++
		r.tally.kills++
	})
	if !r.takeOver {
		victim.start("")
		return func() time.Duration { return time.Since(died) }
	}
	victim.evict()
	return func() time.Duration {
		took := time.Since(died)
		victim.start("")
		eventually(r.t, "the killed manager's return", victim.member)
		return took
	}
}
