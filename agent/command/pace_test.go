package command

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/axion/runner-agent/stack"
)

// TestProgressIsPaced: a service flaps a thousand times a second, beside hundreds of others, for a minute.
func TestProgressIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const others, length = 300, time.Minute
		var told []stack.Event
		p := &pace{tell: func(e stack.Event) { told = append(told, e) }}
		seen := func() []stack.Event { // what was told so far; the timer tells, too
			p.mu.Lock()
			defer p.mu.Unlock()
			return slices.Clone(told)
		}
		begun := time.Now()
		p.observe(stack.ObjectChange{Name: "first"})
		for i := range others {
			p.observe(stack.ServiceProgress{Service: fmt.Sprint("other-", i), Running: 1})
		}
		running := uint64(0)
		for ; time.Since(begun) < length; time.Sleep(time.Millisecond) {
			running++
			p.observe(stack.ServiceProgress{Service: "flaps", Running: running})
		}
		most := progressBurst + int(length/progressEvery) + 1
		if n := len(seen()); n > most || n < most-2 {
			t.Errorf("%d told in %v, want %d", n, length, most)
		}
		time.Sleep(time.Second) // what came last is told although nothing follows
		last := map[string]uint64{}
		for _, e := range seen() {
			if s, ok := e.(stack.ServiceProgress); ok {
				last[s.Service] = s.Running
			}
		}
		if len(last) != others+1 || last["flaps"] != running {
			t.Errorf("%d services were told of; the one that flaps is at %d, told %d", len(last), running, last["flaps"])
		}
		for range 2 * progressBurst {
			p.observe(stack.Notice{Text: "a notice"})
		}
		p.observe(stack.ServiceProgress{Service: "flaps", Running: 0})
		before := len(seen())
		p.end()
		latest, ok := told[len(told)-1].(stack.ServiceProgress)
		if n := len(told) - before; n == 0 || !ok || latest.Service != "flaps" || latest.Running != 0 {
			t.Errorf("%d told at the end, the last is %v", n, told[len(told)-1])
		}
	})
}

// TestWaitingStepsAreBounded: more steps than anybody reads.
func TestWaitingStepsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []stack.Event
		p := &pace{tell: func(e stack.Event) { told = append(told, e) }}
		const many = 10 * maxWaitingSteps
		for i := range many {
			p.observe(stack.Notice{Text: fmt.Sprint(i)})
		}
		p.end()
		if n := len(told); n != progressBurst+maxWaitingSteps {
			t.Errorf("%d told", n)
		}
		if last := told[len(told)-1]; last != (stack.Notice{Text: fmt.Sprint(many - 1)}) {
			t.Errorf("the last is %v", last)
		}
	})
}
