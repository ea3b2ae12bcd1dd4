package command

import (
	"bytes"
	"context"
	"maps"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// stepTime is how long a step of a command's life may take that has no time of its own, such as one attempt to claim its stack.
	stepTime = time.Minute
	// hungAfter is how long after the end of its time a step counts as hung.
	hungAfter = 2 * time.Minute
	// endAfter is how much later the process ends itself, so that another manager goes on.
	endAfter = 5 * time.Minute
	// hungEvery is how often the watchdog looks.
	hungEvery = 5 * time.Second
	// maxStackBytes bounds the goroutines' stacks that are logged of a hung command.
	maxStackBytes = 16 << 10

	codeHung = "command_hung"
	// labelCommand marks the goroutines that work on a command.
	labelCommand = "command_id"
)

// pulse says by when a command is to have come to its next step. Waiting - for another's claim, for a broker - is a step with each attempt; only who does not come
// back from one hangs.
type pulse struct {
	mu   sync.Mutex
	step string
	due  time.Time // zero while nothing is to be expected
	told bool      // that the step hangs
}

// expect begins a step that is over by due.
func (p *pulse) expect(step string, due time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.due, p.told = step, due, false
}

// rest says that nothing is to be expected for now.
func (p *pulse) rest() { p.expect("", time.Time{}) }

// late is for how long the step has been overdue, and whether that is told for the first time.
func (p *pulse) late(now time.Time) (step string, by time.Duration, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.due.IsZero() || now.Sub(p.due) <= hungAfter {
		return "", 0, false
	}
	first, p.told = !p.told, true
	return p.step, now.Sub(p.due), first
}

// Watch looks after commands whose handler does not come back, until ctx ends. Such a one is told as a warning and in the log, with where it hangs; when it still hangs some
// minutes later Watch returns an error, and the process is to end: a new one, or another manager, takes the command up.
func (r *Runner) Watch(ctx context.Context) error {
	ticker := time.NewTicker(hungEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := r.lookForHung(); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// lookForHung is one look.
func (r *Runner) lookForHung() error {
	r.mu.Lock()
	all := slices.Collect(maps.Keys(r.alive))
	r.mu.Unlock()
	now := r.deps.Now()
	var hung []string
	var end error
	for _, c := range all {
		step, by, first := c.pulse.late(now)
		if step == "" {
			continue
		}
		hung = append(hung, c.envelope.ID)
		if first {
			c.log.Error("command hangs", "step", step, "late", by.Round(time.Second).String(), "stacks", stacksOf(c.envelope.ID))
		}
		if by > hungAfter+endAfter {
			end = failure.New(failure.Internal, codeHung, c.envelope.ID, "command %s hangs: %q should have ended %s ago; the agent ends so that another one takes it up",
				c.envelope.ID, step, by.Round(time.Second))
		}
	}
	if len(hung) == 0 {
		r.deps.Warn.Clear(codeHung)
		return nil
	}
	slices.Sort(hung)
	r.deps.Warn.Set(codeHung, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "A command hangs",
		"command "+strings.Join(hung, ", ")+" does not come to an end; the log says where it hangs; the agent restarts itself if that lasts")
	return end
}

// labelled runs f with its goroutine, and those that it starts, marked as the command's.
func labelled(ctx context.Context, id string, f func()) {
	pprof.Do(ctx, pprof.Labels(labelCommand, id), func(context.Context) { f() })
}

// stacksOf are the stacks of the goroutines that work on a command.
func stacksOf(id string) string {
	var all bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&all, 1); err != nil { // a buffer takes everything: cannot happen
		return err.Error()
	}
	mark := strconv.Quote(labelCommand) + ":" + strconv.Quote(id)
	var of []string
	for _, one := range strings.Split(all.String(), "\n\n") {
		if strings.Contains(one, mark) {
			of = append(of, one)
		}
	}
	text := strings.Join(of, "\n\n")
	return text[:min(len(text), maxStackBytes)]
}
