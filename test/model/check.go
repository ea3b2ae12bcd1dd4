package model

import (
	"fmt"
	"hash/maphash"
	"runtime/metrics"
	"time"
)

// Search is what to look at and how far.
type Search struct {
	Rules    Rules
	Scenario Scenario
	Faults   Faults

	StopAt     Property         // end the search at the first state that breaks one of these; 0 searches everything
	MaxStates  int              // give up beyond this many states; 0 means no bound but that of an id, 4 billion
	MaxHeap    uint64           // give up beyond this many bytes of heap; 0 means no bound
	OnProgress func(states int) // called now and then
}

// Result is what a search found.
type Result struct {
	States   int // different states seen
	AtRest   int // of them, those in which nothing more happens
	Elapsed  time.Duration
	Heap     uint64 // bytes in use at its end
	Complete bool   // every state within the faults' budgets was seen
	Broken   Property
	Traces   map[Property]Trace // the shortest way to break each; of Ends some way
}

// A state that was seen is kept as a fingerprint of 64 bits and an id, counted in the order in which they were found. Two states that share a fingerprint
// would be taken for one: with 60 million states the chance is 1 in 10,000, and each run has its own hash function.
type fingerprint uint64

// checker is one search.
type checker struct {
	Search
	world
	seed  maphash.Seed
	start State

	seen   map[fingerprint]uint32
	parent []uint32 // by id: the state from which it was first reached
	// The steps that are no faults, by the id of the state that they leave, for the search for a cycle: edges[from[id]:from[id+1]] are where they lead.
	edges []uint32
	from  []uint64

	first  map[Property]uint32 // a state in which, or out of which, the property breaks
	result Result
}

// Run searches all states that can be reached, breadth first. It refuses faults that could have more writes in flight at once than a state holds.
func Run(q Search) (Result, error) {
	// Each crash leaves one behind, and so does a cancellation; one of the two commands can be cancelled.
	if n := managers + int(q.Faults.Crashes) + 1 + len(q.Scenario.InFlight); n > maxInFlight {
		return Result{}, fmt.Errorf("%d crashes in scenario %s may leave %d writes in flight, and a state holds %d", q.Faults.Crashes, q.Scenario.Name, n, maxInFlight)
	}
	if q.Scenario.Ended == undecided {
		q.Scenario.Ended = converged
	}
	c := checker{Search: q, seed: maphash.MakeSeed(), seen: map[fingerprint]uint32{}, first: map[Property]uint32{}}
	c.world = newWorld(q.Rules, &c.Search.Scenario, q.Faults)
	c.start = q.Scenario.initial(q.Faults)
	begun := time.Now()
	c.explore()
	if c.result.Complete {
		c.findCycle()
	}
	c.result.States = len(c.parent)
	c.result.Traces = c.traces()
	c.result.Heap = heapInUse()
	c.result.Elapsed = time.Since(begun)
	return c.result, nil
}

func (c *checker) fingerprint(s *State) fingerprint {
	return fingerprint(maphash.Comparable(c.seed, *s))
}

// add gives a state an id and says whether it is new.
func (c *checker) add(s *State, parent uint32) (id uint32, isNew bool) {
	f := c.fingerprint(s)
	if id, ok := c.seen[f]; ok {
		return id, false
	}
	id = uint32(len(c.parent))
	c.seen[f] = id
	c.parent = append(c.parent, parent)
	return id, true
}

// explore visits the states level by level; only the states of two levels are kept whole.
func (c *checker) explore() {
	level, next := []State{c.start}, []State(nil)
	c.add(&c.start, 0)
	var id uint32 // states are expanded in the order of their ids
	for len(level) > 0 {
		next = next[:0]
		for i := range level {
			s := &level[i]
			c.from = append(c.from, uint64(len(c.edges)))
			moving := false
			steps := c.steps(s)
			for x := range steps {
				t := &steps[x]
				to, isNew := c.add(&t.next, id)
				if isNew {
					next = append(next, t.next)
					c.breaks(c.brokenAnywhere(&t.next), to)
				}
				c.breaks(brokenByStep(t), id)
				if !t.step.Fault {
					moving = true
					c.edges = append(c.edges, to)
				}
			}
			if !moving {
				c.result.AtRest++
				c.breaks(c.brokenAtRest(s, c.Faults.OffsetResets), id)
			}
			id++
			if c.result.Broken&c.StopAt != 0 || c.exhausted() {
				return
			}
		}
		level, next = next, level
	}
	c.from = append(c.from, uint64(len(c.edges)))
	c.result.Complete = true
}

// breaks notes properties that break for the first time.
func (c *checker) breaks(p Property, id uint32) {
	if p&^c.result.Broken == 0 {
		return
	}
	for _, n := range propertyNames {
		if p&^c.result.Broken&n.Property != 0 {
			c.first[n.Property] = id
		}
	}
	c.result.Broken |= p
}

const (
	maxIDs        = 1<<32 - 1
	progressEvery = 1 << 17 // states expanded between two looks at the heap
)

// exhausted says that the search is beyond a bound.
func (c *checker) exhausted() bool {
	n := len(c.parent)
	if n >= maxIDs-1024 || (c.MaxStates > 0 && n > c.MaxStates) {
		return true
	}
	if len(c.from)%progressEvery != 0 {
		return false
	}
	if c.OnProgress != nil {
		c.OnProgress(n)
	}
	return c.MaxHeap > 0 && heapInUse() > c.MaxHeap
}

func heapInUse() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// findCycle looks for steps without faults that lead back to where they began: a schedule under which nothing ever comes to rest. It is a depth-first walk that
// colours each state: white when unseen, grey while it is on the path, black when all behind it is known to end.
func (c *checker) findCycle() {
	const white, grey, black = 0, 1, 2
	colour := make([]uint8, len(c.parent))
	type place struct {
		id   uint32
		edge uint64
	}
	var path []place
	for root := range colour {
		if colour[root] != white {
			continue
		}
		path = append(path[:0], place{uint32(root), c.from[root]})
		colour[root] = grey
		for len(path) > 0 {
			top := &path[len(path)-1]
			if top.edge == c.from[top.id+1] {
				colour[top.id] = black
				path = path[:len(path)-1]
				continue
			}
			to := c.edges[top.edge]
			top.edge++
			switch colour[to] {
			case white:
				colour[to] = grey
				path = append(path, place{to, c.from[to]})
			case grey:
				c.breaks(Ends, to)
				return
			}
		}
	}
}
