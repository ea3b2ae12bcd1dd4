package progress

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/axion/runner-agent/ctl/document"
	"github.com/axion/runner-agent/ctl/table"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// writeSummary prints how a command ended: a table of its services, every task error in full, those of docker's warnings that were not told
// before, and one sentence. Why it failed is for the caller to say, as the last thing on the screen.
func writeSummary(o Options, outcome *runnerv1.CommandOutcome, r *record) error {
	var out bytes.Buffer
	if services := outcome.GetServices(); len(services) > 0 {
		out.WriteByte('\n')
		if err := servicesTable(services, r.took(outcome)).Write(&out); err != nil {
			return err
		}
	}
	writeSection(&out, "Errors:", errorLines(outcome.GetServices()))
	var warnings []string
	for _, w := range outcome.GetWarnings() {
		if !r.notices[strings.TrimSpace(w)] {
			warnings = append(warnings, table.Clean("  "+w))
		}
	}
	writeSection(&out, "Warnings:", warnings)
	fmt.Fprintf(&out, "\n%s\n", sentence(o.Title, outcome))
	_, err := o.Out.Write(out.Bytes())
	return err
}

func servicesTable(services []*runnerv1.ServiceProgress, took func(string) (time.Duration, bool)) *table.Table {
	t := table.New("SERVICE", "REPLICAS", "STATE", "TIME")
	for _, s := range services {
		duration := "-"
		if d, ok := took(s.GetService()); ok {
			duration = elapsed(d)
		}
		t.Add(s.GetService(), fmt.Sprintf("%d/%d", s.GetRunning(), s.GetDesired()), state(document.State(s.GetState())), duration)
	}
	return t
}

func errorLines(services []*runnerv1.ServiceProgress) []string {
	var lines []string
	for _, s := range services {
		lines = appendTaskErrors(lines, s)
		if s.GetMessage() != "" && !good(s.GetState()) {
			lines = append(lines, table.Clean("  service "+s.GetService()+": "+s.GetMessage()))
		}
	}
	return lines
}

func writeSection(out *bytes.Buffer, title string, lines []string) {
	if len(lines) > 0 {
		fmt.Fprintf(out, "\n%s\n%s\n", title, strings.Join(lines, "\n"))
	}
}

// sentence says in one line how it ended and how long it took.
func sentence(title string, outcome *runnerv1.CommandOutcome) string {
	text := fmt.Sprintf("%s: %s", title, state(document.Status(outcome.GetStatus())))
	if outcome.GetStartedAt() != nil && outcome.GetEndedAt() != nil {
		text += " after " + elapsed(outcome.GetEndedAt().AsTime().Sub(outcome.GetStartedAt().AsTime()))
	}
	if outcome.GetGeneration() != 0 {
		text += fmt.Sprintf(" (generation %d)", outcome.GetGeneration())
	}
	return table.Clean(text)
}
