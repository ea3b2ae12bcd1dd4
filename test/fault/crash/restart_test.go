package crash

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/stacks"
)

// handledWithin is within how much time after its start an agent that was killed must have taken the next command.
const handledWithin = time.Second

// TestOnlyAgentRestarted kills the only manager, sends a command, starts it again, and measures how long after its start it has taken the command. Its dead
// predecessor holds the topic until its session ends, unless it is taken out of the group.
func TestOnlyAgentRestarted(t *testing.T) {
	on(t, func(t *testing.T, w *world) {
		c := w.newCluster(t, 1)
		m := c.managers[0]
		s := stacks.New(t, c.prefix)
		rounds := 5
		if fault.Long() {
			rounds = 30
		}
		var took []time.Duration
		for i := range rounds {
			c.owner()
			m.kill()
			marks := map[string]string{"a": fmt.Sprint(i)}
			id, generation := c.submit(s.Deploy(0, stacks.Marked(marks)))
			m.start("")
			c.succeeds(id)
			c.atRest(s, id, generation, marks)
			took = append(took, w.events.takenAt(id)[0].Sub(m.startedAt()))
		}
		slices.Sort(took)
		median, longest := took[len(took)/2], took[len(took)-1]
		if median > handledWithin {
			t.Errorf("the next command was taken %s after the start, at the median; want %s or less", median, handledWithin)
		}
		fault.Report(t, "kill -9 of the only agent, restarted", "next command taken within 1 s of the process's start (median)",
			fmt.Sprintf("p50 %.2f s, longest %.2f s of %d", median.Seconds(), longest.Seconds(), rounds))
	})
}
