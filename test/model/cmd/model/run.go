package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/axion/runner-agent/test/model"
)

type options struct {
	noCancel  bool
	maxHeap   uint64 // bytes
	maxStates int
	first     bool
	traces    bool
}

// They end the program with status 1, so that a script sees what a person reads.
var (
	errBroken     = errors.New("a property that the protocol promises is broken")
	errIncomplete = errors.New("a bound ended the search before it had seen every state")
)

func run(variant, scenario string, f model.Faults, o options) error {
	if variant == "list" || scenario == "list" {
		list()
		return nil
	}
	v, ok := model.VariantByName(variant)
	if !ok {
		return fmt.Errorf("no variant %q (-variant list names them)", variant)
	}
	scenarios := model.Scenarios()
	if scenario != "all" {
		s, ok := model.ScenarioByName(scenario)
		if !ok {
			return fmt.Errorf("no scenario %q (-scenario list names them)", scenario)
		}
		scenarios = []model.Scenario{s}
	}
	debug.SetGCPercent(30) // the state table is most of the heap, and it only grows
	broken, complete := false, true
	fmt.Printf("variant %s: %s; %s\n", v.Name, v.About, f)
	for _, s := range scenarios {
		s.NoCancel = o.noCancel
		r, err := model.Run(model.Search{
			Rules: v.Rules, Scenario: s, Faults: f, MaxHeap: o.maxHeap, MaxStates: o.maxStates, StopAt: stopAt(o.first),
			OnProgress: func(n int) { fmt.Fprintf(os.Stderr, "\r%s: %.1f million states", s.Name, float64(n)/1e6) },
		})
		if err != nil {
			return err
		}
		fmt.Fprint(os.Stderr, "\r\033[K")
		fmt.Println(r.Line(s.Name))
		if o.traces {
			fmt.Print(r.Counterexamples())
		}
		complete = complete && r.Complete
		broken = broken || r.Broken&model.Promised != 0
		debug.FreeOSMemory()
	}
	switch {
	case broken:
		return errBroken
	case !complete:
		return errIncomplete
	}
	return nil
}

func stopAt(first bool) model.Property {
	if first {
		return model.Promised
	}
	return 0
}

func list() {
	fmt.Println("variants:")
	for _, v := range model.Variants() {
		fmt.Printf("  %-28s %s\n", v.Name, v.About)
		for _, w := range v.Shows {
			fmt.Printf("  %28s breaks %s in %s; %s\n", "", w.Breaks, w.Scenario, w.Faults)
		}
	}
	fmt.Println("scenarios (0 is what is there, unless said otherwise):")
	for _, s := range model.Scenarios() {
		fmt.Printf("  %-28s %s\n", s.Name, s.About)
	}
}
