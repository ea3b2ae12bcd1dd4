package crash

import (
	"fmt"
	"testing"

	"github.com/axion/runner-agent/internal/crashpoint"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/stacks"
)

// TestOutboxComesBack kills a manager that has an outcome in its outbox, which nobody has heard. Another one tells the outcome that the head holds; then the first
// comes back.
func TestOutboxComesBack(t *testing.T) {
	on(t, func(t *testing.T, w *world) {
		c := w.newCluster(t, 2)
		r := &stepRun{cluster: c, takeOver: true, tally: &tally{}}
		s := stacks.New(t, c.prefix)
		victim := r.arm(crashpoint.Recorded)
		marks := map[string]string{"a": "1"}
		id, generation := c.submit(s.Deploy(0, stacks.Marked(marks)))
		victim.gone(patience)
		if got := victim.now().crashed; got != crashpoint.Recorded {
			t.Fatalf("the agent crashed at %q", got)
		}
		if n := len(w.events.of(id)); n != 0 {
			t.Skipf("the outcome was told %d times before the kill", n) // the publisher was faster
		}
		victim.evict()
		first := c.succeeds(id)
		victim.start("")
		eventually(t, "the return of the first", victim.member)
		eventually(t, "what the first has in its outbox", func() bool { return len(w.events.of(id)) == 2 })
		told := c.oneOutcome(id)
		second := w.events.of(id)[1]
		if first.source == second.source {
			t.Errorf("both were told by %s", first.source)
		}
		c.atRest(s, id, generation, marks)
		c.onceEach(s)
		fault.Report(t, "node dies with an outcome in its outbox, comes back after its successor's", "one outcome an id, the head's",
			fmt.Sprintf("told %d times, by %s and then by %s: %s", told, first.source, second.source, first.message.GetStatus()))
	})
}
