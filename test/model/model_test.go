package model

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/counterexamples.txt anew")

// bounds are the budgets under which all is searched here; the command takes larger ones.
var bounds = []Faults{
	{Rebalances: 1, Crashes: 1},
	{Rebalances: 1, OffsetResets: 1},
	{Crashes: 1, Ambiguous: 1, OldLists: 1},
	{Rebalances: 1, Rollbacks: 1},
	{Rebalances: 1, Cuts: 1},
	{Crashes: 1, Cancels: 1},
}

func search(t *testing.T, q Search) Result {
	t.Helper()
	r, err := Run(q)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func scenario(t *testing.T, name string) Scenario {
	t.Helper()
	s, ok := ScenarioByName(name)
	if !ok {
		t.Fatalf("no scenario %q", name)
	}
	return s
}

// TestProtocolHolds searches every scenario completely. What the protocol does not promise must be found as well: a late create, wherever a position creates
// a service that a later one does not want, or wants again.
func TestProtocolHolds(t *testing.T) {
	lateCreate := []string{"stale-create", "drop-and-return-late"}
	for _, f := range bounds {
		for _, s := range Scenarios() {
			t.Run(fmt.Sprintf("%s/%s", s.Name, f), func(t *testing.T) {
				t.Parallel()
				r := search(t, Search{Rules: Protocol(), Scenario: s, Faults: f})
				t.Log(r.Line(s.Name))
				if !r.Complete || r.AtRest == 0 {
					t.Errorf("searched %d states, %d of them at rest, complete: %t", r.States, r.AtRest, r.Complete)
				}
				if r.Broken&Promised != 0 {
					t.Errorf("broken: %s\n%s", r.Broken, r.Counterexamples())
				}
				if late := r.Broken&NoLateCreate != 0; late != slices.Contains(lateCreate, s.Name) {
					t.Errorf("a late create was found: %t\n%s", late, r.Counterexamples())
				}
			})
		}
	}
}

// TestEachRuleIsNeeded takes the rules out, one variant after the other: the search must find what breaks, and nothing of the kind with the rule in force.
// The shortest ways there are kept in testdata/counterexamples.txt, to be read.
func TestEachRuleIsNeeded(t *testing.T) {
	var told strings.Builder
	type place struct {
		scenario string
		faults   Faults
	}
	held := map[place]bool{}
	for _, v := range Variants() {
		for _, w := range v.Shows {
			s := scenario(t, w.Scenario)
			r := search(t, Search{Rules: v.Rules, Scenario: s, Faults: w.Faults, StopAt: w.Breaks})
			trace, ok := r.Traces[w.Breaks]
			if !ok {
				t.Errorf("%s: %s still holds in %s with %s (%d states)", v.Name, w.Breaks, s.Name, w.Faults, r.States)
				continue
			}
			if at := (place{s.Name, w.Faults}); !held[at] {
				held[at] = true
				if r := search(t, Search{Rules: Protocol(), Scenario: s, Faults: w.Faults, StopAt: Promised}); !r.Complete {
					t.Errorf("with all rules %s breaks in %s with %s as well", r.Broken, s.Name, w.Faults)
				}
			}
			fmt.Fprintf(&told, "%s (%s)\n  in %s (%s), %s, %s is broken: %s\n%s\n", v.Name, v.About, s.Name, s.About, w.Faults, w.Breaks, w.Breaks.Text(), trace)
		}
	}
	const golden = "testdata/counterexamples.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(told.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if told.String() != string(want) {
		t.Errorf("%s is stale (go test ./test/model -update); now:\n%s", golden, told.String())
	}
	t.Log("\n" + told.String())
}

// TestEveryVariantIsWitnessed: a rule that nobody shows to be needed is not covered.
func TestEveryVariantIsWitnessed(t *testing.T) {
	for _, v := range Variants()[1:] {
		if len(v.Shows) == 0 && !v.Spare {
			t.Errorf("no search shows what %s breaks", v.Name)
		}
	}
}

// TestSpareRulesAreSpare: what is said to break nothing by itself does not, or its place in the documentation is wrong.
func TestSpareRulesAreSpare(t *testing.T) {
	for _, v := range Variants() {
		if !v.Spare {
			continue
		}
		for _, s := range Scenarios() {
			if r := search(t, Search{Rules: v.Rules, Scenario: s, Faults: Faults{Rebalances: 1}}); r.Broken&Promised != 0 {
				t.Errorf("%s breaks %s in %s; make it a witness\n%s", v.Name, r.Broken, s.Name, r.Counterexamples())
			}
		}
	}
}

// exact searches with whole states instead of fingerprints.
func exact(s Scenario, f Faults, visit func(*State, []transition)) int {
	w := newWorld(Protocol(), &s, f)
	first := s.initial(f)
	seen := map[State]bool{first: true}
	for queue := []State{first}; len(queue) > 0; queue = queue[1:] {
		out := w.steps(&queue[0])
		visit(&queue[0], out)
		for _, t := range out {
			if !seen[t.next] {
				seen[t.next] = true
				queue = append(queue, t.next)
			}
		}
	}
	return len(seen)
}

func TestFingerprintsLoseNothing(t *testing.T) {
	s, f := scenario(t, "identical"), Faults{Rebalances: 1, Crashes: 1}
	want := exact(s, f, func(*State, []transition) {})
	if r := search(t, Search{Rules: Protocol(), Scenario: s, Faults: f}); r.States != want {
		t.Errorf("%d states by fingerprint, %d in truth", r.States, want)
	}
}

// TestEverythingHappens: each kind of step is taken in some scenario, so that none holds its property only because nothing moves.
func TestEverythingHappens(t *testing.T) {
	want := []string{
		"kafka assigns the partition to m0", "kafka assigns the partition to m1", "kafka loses the committed offset",
		"swarm carries out update", "swarm refuses update", "swarm carries out tombstone", "swarm refuses tombstone",
		"swarm carries out removal", "swarm refuses removal", "swarm carries out create", "swarm refuses create",
		"swarm ends the roll-out of b", "swarm rolls back b", "swarm refuses update", "swarm carries out update: and answers with an error",
		"swarm lets the engine of m0 fall behind", "m0 lists the services, and gets the older list",
		"m1 claims", "m1 takes: the head knows its outcome", "m1 takes: the head is at a later one; superseded",
		"m1 may not claim: the claim is of a newer group generation", "m1 finds its claim lost: the renewal fails",
		"an operator has cancelled", "m1 finds cancelled", "m1 notices that it is cancelled:", "m1 has no time left for",
		"m1 ends without a write: cancelled", "m1 ends without a write: expired", "m1 decides the outcome of: cancelled", "m1 decides the outcome of: cut short", "m1 has written all of", "m1 decides the outcome of: rolled back", "m1 decides the outcome of: converged",
		"m1 begins the sweep of: the services are not as the head says", "m1 begins the sweep of: an earlier sweep has not ended", "m1 ends the sweep of",
		"m1 commits the offset of", "m1 may not commit the offset of", "m1 notices that it left the consumer group", "m1 crashes and restarts while writing",
		"m1 claims: it takes effect, and is answered with an error",
	}
	happened := map[string]bool{}
	for name, f := range map[string]Faults{
		"drop-and-return-late": {Crashes: 1},
		"scale":                {OldLists: 1},
		"remove-in-roll-out":   {Rebalances: 1, Rollbacks: 1},
		"identical":            {Rebalances: 1, Crashes: 1},
		"back":                 {Rebalances: 1, Cuts: 1, Cancels: 1},
		"overtaken":            {Rebalances: 1, OffsetResets: 1, Ambiguous: 1},
	} {
		exact(scenario(t, name), f, func(_ *State, out []transition) {
			for i := range out {
				happened[kindOfStep(out[i].step)] = true
			}
		})
	}
	for _, w := range want {
		if !happened[w] {
			t.Errorf("%q never happens", w)
		}
	}
	if t.Failed() {
		t.Log(strings.Join(slices.Sorted(maps.Keys(happened)), "\n"))
	}
}

func kindOfStep(t Step) string {
	who := map[actor]string{kafka: "kafka", swarm: "swarm", operator: "an operator"}[t.Who]
	if who == "" {
		who = fmt.Sprintf("m%d", t.Who)
	}
	text := who + " " + t.Does
	if t.Write.Kind != noWrite {
		text += " " + kindNames[t.Write.Kind]
	}
	if t.Note != "" && t.Who != kafka {
		text += ": " + t.Note
	}
	return text
}

func TestSearchBounds(t *testing.T) {
	s := scenario(t, "back")
	if r := search(t, Search{Rules: Protocol(), Scenario: s, Faults: bounds[0], MaxStates: 1000}); r.Complete || r.States > 2000 {
		t.Errorf("with a bound of 1000 states: %d, complete: %t", r.States, r.Complete)
	}
	if _, err := Run(Search{Rules: Protocol(), Scenario: s, Faults: Faults{Crashes: 4}}); err == nil {
		t.Error("more writes in flight than a state holds were accepted")
	}
	for _, s := range Scenarios() {
		if len(s.History) > maxHistory || s.last() != s.Start+2 {
			t.Errorf("%s: %d commands in its history, %d of them before its start", s.Name, len(s.History), s.Start+1)
		}
	}
}

// TestOrderOfWritesInFlightDoesNotMatter: the same requests on their way are the same state.
func TestOrderOfWritesInFlightDoesNotMatter(t *testing.T) {
	one := Write{Kind: createService, Service: serviceB, Label: 1, By: orphan, Current: true}
	two := Write{Kind: updateService, Service: serviceA, Label: 1, By: 0, Current: true}
	var x, y State
	x.send(one)
	x.send(two)
	y.send(two)
	y.send(Write{Kind: updateService, Service: serviceB, Label: 1, By: orphan}) // can never take effect, and nobody waits
	y.send(one)
	x.canonical()
	y.canonical()
	if x != y {
		t.Errorf("two forms of one state:\n%+v\n%+v", x.InFlight, y.InFlight)
	}
}
