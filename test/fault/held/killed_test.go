package held

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/stacks"
)

// landsAfter is how long after its sender's death a write takes effect.
func landsAfter() time.Duration {
	if fault.Long() {
		return 15 * time.Second
	}
	return 3 * time.Second
}

// TestKilledWithAWriteOnItsWay kills the owner while one of its writes is on its way. Another manager ends the command and deploys the next generation, and only
// then does the write take effect.
func TestKilledWithAWriteOnItsWay(t *testing.T) {
	t.Parallel()
	var cases, accepted atomic.Int64
	t.Run("held", func(t *testing.T) {
		for name, tc := range map[string]struct {
			held, next   map[string]stacks.Service
			method, path string
			nth          int
		}{
			"update":                      {marked("a", "2", "b", "1"), marked("a", "3", "b", "1"), "POST", `/services/[^/]+/update`, 1},
			"update, and back":            {marked("a", "2", "b", "1"), marked("a", "1", "b", "1"), "POST", `/services/[^/]+/update`, 1},
			"second update":               {marked("a", "2", "b", "2"), marked("a", "3", "b", "1"), "POST", `/services/[^/]+/update`, 2},
			"creation":                    {marked("a", "1", "b", "1", "c", "2"), marked("a", "1", "b", "3"), "POST", `/services/create`, 1},
			"creation, of the same again": {marked("a", "1", "b", "1", "c", "2"), marked("a", "1", "b", "1", "c", "2"), "POST", `/services/create`, 1},
			"tombstone":                   {marked("a", "1"), marked("a", "1", "b", "3"), "POST", `/services/[^/]+/update`, 1},
			"removal after its tombstone": {marked("a", "1"), marked("a", "1", "b", "3"), "DELETE", `/services/`, 1},
			"claim":                       {marked("a", "2"), marked("a", "3", "b", "3"), "POST", `/configs/[^/]+/update`, 1},
			"claim renewed after a list":  {marked("a", "2"), marked("a", "3", "b", "3"), "POST", `/configs/[^/]+/update`, 2},
			"outcome":                     {marked("a", "2"), marked("a", "3", "b", "3"), "POST", `/configs/[^/]+/update`, 4},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				prefix := engine.Name(t, "axt-held")
				s := stacks.New(t, prefix)
				first, second := newManager(t, "first", prefix, 1), newManager(t, "second", prefix, 2).sweeps()
				first.succeeds("before", s.Deploy(1, marked("a", "1", "b", "1")))
				held := first.proxy.Hold(tc.method, tc.path, tc.nth)
				first.give("held", s.Deploy(2, tc.held))
				held.Reached(t)
				first.dies()
				died := time.Now()
				second.succeeds("held", s.Deploy(2, tc.held))
				second.succeeds("next", s.Deploy(3, tc.next))
				ids := idsOf(s)
				time.Sleep(landsAfter() - time.Since(died)) // the fault itself
				if status := held.Land(t); status < 300 {
					accepted.Add(1)
				}
				atRest(t, s, "next", marksOf(tc.next))
				if now := idsOf(s); fmt.Sprint(now) != fmt.Sprint(ids) {
					t.Errorf("the services are others than before the write took effect: %v, then %v", ids, now)
				}
				cases.Add(1)
			})
		}
	})
	fault.Report(t, "kill -9 of the owner with a write on its way, which lands "+landsAfter().String()+" later, between tombstone and removal too",
		"services = newest generation, new ids live, head not left applying",
		fmt.Sprintf("%d writes held, %d of them accepted when they landed", cases.Load(), accepted.Load()))
}

func idsOf(s *stacks.Stack) map[string]string {
	ids := map[string]string{}
	for name, service := range s.Live() {
		ids[name] = service.ID
	}
	return ids
}

// TestKilledInTheSweep kills a manager while it removes what was created too late, at each of the sweep's writes; another one goes on, then the write lands.
func TestKilledInTheSweep(t *testing.T) {
	t.Parallel()
	var cases atomic.Int64
	var longest atomic.Int64
	t.Run("held", func(t *testing.T) {
		for name, tc := range map[string]struct {
			method, path string
			nth          int
		}{
			"claim":                      {"POST", `/configs/[^/]+/update`, 1},
			"claim renewed after a list": {"POST", `/configs/[^/]+/update`, 2},
			"tombstone":                  {"POST", `/services/[^/]+/update`, 1},
			"removal":                    {"DELETE", `/services/`, 1},
			"end":                        {"POST", `/configs/[^/]+/update`, 3},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				prefix := engine.Name(t, "axt-held")
				s := stacks.New(t, prefix)
				first, second := newManager(t, "first", prefix, 1), newManager(t, "second", prefix, 2)
				first.succeeds("before", s.Deploy(1, marked("a", "1", "b", "1")))
				first.succeeds("last", s.Deploy(2, marked("a", "2")))
				held := first.proxy.Hold(tc.method, tc.path, tc.nth)
				s.Stale("b", 1)
				first.sweeps()
				held.Reached(t)
				first.dies()
				second.sweeps()
				took := atRest(t, s, "last", map[string]string{"a": "2"})
				longest.Store(max(longest.Load(), int64(took)))
				second.succeeds("next", s.Deploy(3, marked("a", "3", "b", "3")))
				ids := idsOf(s)
				held.Land(t)
				atRest(t, s, "next", map[string]string{"a": "3", "b": "3"})
				if now := idsOf(s); fmt.Sprint(now) != fmt.Sprint(ids) {
					t.Errorf("the services are others than before the write took effect: %v, then %v", ids, now)
				}
				cases.Add(1)
			})
		}
	})
	fault.Report(t, "crash inside the sweep, at each of its writes, which lands after the next generation's outcome",
		"another manager sweeps within 10 s; services = newest generation, new ids live, head not left applying",
		fmt.Sprintf("%d writes held; swept by another manager after %.1f s at the latest", cases.Load(), time.Duration(longest.Load()).Seconds()))
}

// TestSleeper: a manager sleeps with a generation while fifteen newer ones run and prune; what is delivered again then is superseded or has the outcome that it had.
func TestSleeper(t *testing.T) {
	t.Parallel()
	const newest = 17
	prefix := engine.Name(t, "axt-held")
	s := stacks.New(t, prefix)
	sleeper, second := newManager(t, "sleeper", prefix, 1), newManager(t, "second", prefix, 2).sweeps()
	stranger := newManager(t, "stranger", prefix, 3)
	services := func(generation int) map[string]stacks.Service {
		mark := fmt.Sprint(generation)
		return marked("a", mark, fmt.Sprintf("only%d", generation), mark) // each generation prunes one of the generation before
	}
	id := func(generation int) string { return fmt.Sprintf("c%d", generation) }
	sleeper.succeeds(id(1), s.Deploy(1, services(1)))
	held := sleeper.proxy.Hold("POST", `/services/[^/]+/update`, 1)
	done := sleeper.give(id(2), s.Deploy(2, services(2)))
	held.Reached(t)
	for g := 3; g <= newest; g++ {
		second.succeeds(id(g), s.Deploy(uint64(g), services(g)))
	}
	held.Land(t)
	superseded := func(who *manager, command string, o *runnerv1.CommandOutcome, current uint64) {
		if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED || o.GetCurrentGeneration() != current {
			t.Errorf("%s: command %s: %v", who.name, command, o)
		}
	}
	slept := sleeper.outcome(id(2)) // it may have found out before it was woken: it renews its claim every few seconds
	superseded(sleeper, id(2), slept, slept.GetCurrentGeneration())
	if by := slept.GetCurrentGeneration(); by < 3 || by > newest {
		t.Errorf("the sleeper was superseded by %d", by)
	}
	<-done
	atRest(t, s, id(newest), marksOf(services(newest)))
	writes := len(second.serviceWrites()) + len(sleeper.serviceWrites()) + len(stranger.serviceWrites())
	replayed := 0
	for g := 2; g <= newest; g++ { // the whole topic again, to one that has never seen it
		o := stranger.does(id(g), s.Deploy(uint64(g), services(g)))
		if replayed++; g < newest-fencedOutcomes+1 {
			superseded(stranger, id(g), o, newest)
		} else if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED || o.GetGeneration() != uint64(g) {
			t.Errorf("command %s was told as succeeded, and is now told as %v", id(g), o)
		}
	}
	for g := 3; g <= newest; g++ { // and to the one that has done it
		second.forget(id(g))
		if o := second.does(id(g), s.Deploy(uint64(g), services(g))); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
			t.Errorf("command %s was told as succeeded, and is now told as %v", id(g), o)
		}
		replayed++
	}
	atRest(t, s, id(newest), marksOf(services(newest)))
	if n := len(second.serviceWrites()) + len(sleeper.serviceWrites()) + len(stranger.serviceWrites()); n != writes {
		t.Errorf("%d writes by commands that were delivered again", n-writes)
	}
	stranger.succeeds("removal", &runnerv1.StackRemove{Stack: s.Name, Generation: newest + 1})
	superseded(stranger, "an old one", stranger.does("old", s.Deploy(5, services(5))), newest+1)
	atRest(t, s, "removal", map[string]string{})
	fault.Report(t, "sleeper with generation n while n+1 ... n+15 run and prune; replay after 10 generations; old deploy redelivered after a remove",
		"superseded; nothing resurrected; first outcome stands",
		fmt.Sprintf("%d commands delivered again, none of which wrote; the sleeper was superseded by %d", replayed, slept.GetCurrentGeneration()))
}

// fencedOutcomes is how many commands' outcomes a head holds.
const fencedOutcomes = 10

// TestTakeOverDuringARollback: the owner dies in the middle of a rollout that fails; Swarm rolls it back by itself.
func TestTakeOverDuringARollback(t *testing.T) {
	t.Parallel()
	var states sync.Map
	t.Run("killed", func(t *testing.T) {
		for _, state := range []string{"updating", "rollback_started", "rollback_completed"} {
			t.Run(state, func(t *testing.T) {
				t.Parallel()
				prefix := engine.Name(t, "axt-held")
				s := stacks.New(t, prefix)
				first, second := newManager(t, "first", prefix, 1), newManager(t, "second", prefix, 2).sweeps()
				first.succeeds("before", s.Deploy(1, map[string]stacks.Service{"a": healthy}))
				order := s.Deploy(2, map[string]stacks.Service{"a": failing})
				first.give("rollout", order)
				at := ""
				until(t, patience, "the rollout to be "+state, func() bool {
					a := s.Live()["a"]
					if a.UpdateStatus == nil {
						return false
					}
					at = string(a.UpdateStatus.State)
					return rank(at) >= rank(state)
				})
				first.dies()
				writes := len(first.serviceWrites())
				if o := second.does("rollout", order); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK {
					t.Errorf("the successor says %v", o)
				}
				atRest(t, s, "rollout", map[string]string{"a": "1"})
				if n := len(second.serviceWrites()); n != 0 || len(first.serviceWrites()) != writes {
					t.Errorf("the successor wrote %d times", n)
				}
				states.Store(at, true)
			})
		}
	})
	var seen []string
	states.Range(func(at, _ any) bool { seen = append(seen, at.(string)); return true })
	slices.Sort(seen)
	fault.Report(t, "take-over during a rollout that fails; Swarm's own rollback running", "rolls back, told as such, not \"repaired\"",
		fmt.Sprintf("taken over in the states %v; rolled back each time, no write by the successor", seen))
}

// rank orders the states of an update that fails.
func rank(state string) int {
	return slices.Index([]string{"updating", "rollback_started", "rollback_completed"}, state)
}

// TestAnswersLost: the engine does what it is asked for, and the connection breaks before it can say so - what a Swarm leader's death between commit and answer
// looks like - at each of the writes of a deployment, an update and a removal.
func TestAnswersLost(t *testing.T) {
	t.Parallel()
	prefix := engine.Name(t, "axt-held")
	// The writes of an undisturbed run say how many there are.
	probe := newManager(t, "probe", prefix, 1)
	plan := func(s *stacks.Stack) []proto.Message {
		return []proto.Message{
			s.Deploy(1, marked("a", "1", "b", "1", "same", "x")), s.Deploy(2, marked("a", "2", "c", "2", "same", "x")),
			&runnerv1.StackRemove{Stack: s.Name, Generation: 3},
		}
	}
	for i, order := range plan(stacks.New(t, prefix)) {
		probe.succeeds(fmt.Sprint("probe", i), order)
	}
	writes := len(probe.proxy.Writes())
	step := 1
	if !fault.Long() {
		step = 4
	}
	var lost, told atomic.Int64
	t.Run("lost", func(t *testing.T) {
		for n := 1; n <= writes; n += step {
			t.Run(fmt.Sprint(n), func(t *testing.T) {
				t.Parallel()
				prefix := engine.Name(t, "axt-held")
				s := stacks.New(t, prefix)
				m := newManager(t, "m", prefix, 1)
				dropped := m.proxy.DropAnswer("POST|DELETE", ".", n)
				for i, order := range plan(s) {
					id := fmt.Sprint("c", i)
					m.succeeds(id, order)
					if strings.Contains(m.told(id), "claim on stack") {
						told.Add(1)
						t.Errorf("a false loss of the claim: %s", m.told(id))
					}
				}
				if !dropped.IsReached() {
					t.Errorf("there were fewer than %d writes", n)
				}
				lost.Add(1)
				made := map[string]int{}
				for _, w := range m.serviceWrites() {
					var spec swarm.ServiceSpec
					if strings.HasSuffix(w.Path, "/services/create") && json.Unmarshal(w.Body, &spec) == nil {
						made[spec.Name]++
					}
				}
				for name, times := range made {
					if times != 1 {
						t.Errorf("service %s was created %d times", name, times)
					}
				}
				atRest(t, s, "c2", map[string]string{})
			})
		}
	})
	fault.Report(t, "answer lost between commit and answer, at each write of a deployment, an update with a prune, and a removal", "no false \"claim lost\", no second create",
		fmt.Sprintf("%d of %d answers lost; %d false losses of a claim, no second creation; each command succeeded", lost.Load(), writes, told.Load()))
}
