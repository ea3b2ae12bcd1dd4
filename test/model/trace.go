package model

import (
	"fmt"
	"slices"
	"strings"
)

// Trace is a way from the beginning to where a property breaks, one step a line.
type Trace struct {
	Steps []string
	End   string // the state in which it ends
}

// String numbers the steps.
func (t Trace) String() string {
	var b strings.Builder
	for i, s := range t.Steps {
		fmt.Fprintf(&b, "    %2d %s\n", i+1, s)
	}
	fmt.Fprintf(&b, "    => %s\n", t.End)
	return b.String()
}

// traces tells the way to each broken property. States are gone but for their fingerprints, so the way is walked again from the beginning.
func (c *checker) traces() map[Property]Trace {
	traces := map[Property]Trace{}
	for p, id := range c.first {
		t, s := c.walk(c.start, c.pathTo(id))
		switch p {
		case NoLateEffect, NoLateCreate, RollbackStays: // the step out of the state is what breaks it
			t.Steps, s = c.stepThat(t.Steps, s, func(x *transition) bool { return brokenByStep(x)&p != 0 })
		case Ends:
			around, _ := c.walk(s, c.roundTrip(id))
			t.Steps = append(append(t.Steps, "and from here round and round:"), around.Steps...)
		}
		t.End = c.scenario.describe(&s)
		traces[p] = t
	}
	return traces
}

// pathTo is the ids from the first state to this one, without the first.
func (c *checker) pathTo(id uint32) []uint32 {
	var path []uint32
	for ; id != 0; id = c.parent[id] {
		path = append(path, id)
	}
	slices.Reverse(path)
	return path
}

// walk takes the steps that lead from a state through others.
func (c *checker) walk(s State, path []uint32) (Trace, State) {
	var t Trace
	for _, id := range path {
		t.Steps, s = c.stepThat(t.Steps, s, func(x *transition) bool { return c.seen[c.fingerprint(&x.next)] == id })
	}
	return t, s
}

func (c *checker) stepThat(told []string, s State, is func(*transition) bool) ([]string, State) {
	out := c.steps(&s)
	for i := range out {
		if is(&out[i]) {
			return append(told, c.scenario.words(out[i].step)), out[i].next
		}
	}
	return append(told, "(a step that cannot be found again: two states share a fingerprint)"), s
}

// roundTrip is the shortest way from a state back to itself without faults.
func (c *checker) roundTrip(start uint32) []uint32 {
	before := map[uint32]uint32{}
	for queue := []uint32{start}; len(queue) > 0; queue = queue[1:] {
		id := queue[0]
		for _, to := range c.edges[c.from[id]:c.from[id+1]] {
			if _, ok := before[to]; ok {
				continue
			}
			before[to] = id
			if to != start {
				queue = append(queue, to)
				continue
			}
			path := []uint32{start}
			for at := id; at != start; at = before[at] {
				path = append(path, at)
			}
			slices.Reverse(path)
			return path
		}
	}
	return nil
}
