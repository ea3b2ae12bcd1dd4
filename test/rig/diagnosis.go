package rig

import (
	"context"
	"fmt"
	"strings"
	"time"
)

const (
	// diagnosisTimeout bounds asking about; some of those asked may be dead.
	diagnosisTimeout = 20 * time.Second
	// engineLines and diagnosisLines are how much is shown of an engine's log and of the others.
	engineLines    = 12
	diagnosisLines = 40
)

// Diagnosis is the end of every log of the rig, for a test that failed. It also works when ctx has ended.
func (r *Rig) Diagnosis(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), diagnosisTimeout)
	defer cancel()
	var b strings.Builder
	section := func(title, text string, err error) {
		fmt.Fprintf(&b, "--- %s\n%s\n", title, strings.TrimSpace(text))
		if err != nil {
			fmt.Fprintf(&b, "(%v)\n", err)
		}
	}
	if r.plane != nil {
		text, err := r.plane.Logs(ctx, diagnosisLines)
		section("plane", text, err)
	}
	for _, n := range r.nodes {
		text, err := n.Logs(ctx, engineLines)
		section("engine of "+n.name, text, err)
		if r.plane == nil {
			continue
		}
		asked, cancel := context.WithTimeout(ctx, askTimeout)
		text, err = n.AgentLogs(asked, diagnosisLines)
		cancel()
		section("agent of "+n.name, text, err)
	}
	return b.String()
}
