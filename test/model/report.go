package model

import (
	"fmt"
	"strings"
)

// String tells budgets, without those that are zero.
func (f Faults) String() string {
	var parts []string
	for _, b := range []struct {
		n    uint8
		name string
	}{
		{f.Rebalances, "rebalances"}, {f.Crashes, "crashes"}, {f.OffsetResets, "offset resets"}, {f.Ambiguous, "ambiguous answers"}, {f.OldLists, "old lists"}, {f.Rollbacks, "rollbacks by Swarm"}, {f.Cuts, "commands cut short"}, {f.Cancels, "cancellations"},
	} {
		if b.n > 0 {
			parts = append(parts, fmt.Sprintf("%s up to %d", b.name, b.n))
		}
	}
	if len(parts) == 0 {
		return "no faults"
	}
	return strings.Join(parts, ", ")
}

// Line is a result in one line.
func (r Result) Line(name string) string {
	how := "complete"
	if !r.Complete {
		how = "NOT complete"
	}
	return fmt.Sprintf("%-22s %9d states, %7d at rest, %6.1f s, %5d MiB, %s; broken: %s", name, r.States, r.AtRest, r.Elapsed.Seconds(), r.Heap>>20, how, r.Broken)
}

// Counterexamples are the shortest ways to what is broken.
func (r Result) Counterexamples() string {
	var b strings.Builder
	for _, n := range propertyNames {
		if t, ok := r.Traces[n.Property]; ok {
			fmt.Fprintf(&b, "  %s is broken: %s\n%s", n.short, n.text, t)
		}
	}
	return b.String()
}
