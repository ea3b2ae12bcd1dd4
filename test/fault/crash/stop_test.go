package crash

import (
	"fmt"
	"testing"
	"time"

	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/stacks"
)

// endsWithin is how long an agent may take to end.
const endsWithin = 10 * time.Second

// TestStopped asks a manager to end in the middle of a deployment, once, and another one twice.
func TestStopped(t *testing.T) {
	on(t, func(t *testing.T, w *world) {
		c := w.newCluster(t, 2)
		s := stacks.New(t, c.prefix)
		owner, _ := c.owner()
		id, generation := c.submit(endless(s, "1", 8*time.Second))
		c.taken(id, 1)
		c.applied(s, "1")
		asked := time.Now()
		owner.term()
		owner.gone(endsWithin)
		ended := time.Since(asked)
		took := c.taken(id, 2).Sub(asked)
		if took > goesOnWithin {
			t.Errorf("another manager went on %s after the first was asked to end", took)
		}
		if code := owner.exitCode(); code != 0 {
			t.Errorf("the agent ended with code %d", code)
		}
		// The second signal does not let it finish.
		now, _ := c.owner()
		twice := time.Now()
		now.term()
		now.termAgain()
		now.gone(endsWithin)
		atOnce := time.Since(twice)
		if atOnce > time.Second {
			t.Errorf("asked twice, the agent ended after %s", atOnce)
		}
		owner.start("")
		now.start("")
		c.owner()
		o := c.await(id)
		next, generation2 := c.submit(s.Deploy(0, stacks.Marked(map[string]string{"a": "2"})))
		c.succeeds(next)
		c.atRest(s, next, generation2, map[string]string{"a": "2"})
		c.oneOutcome(id)
		c.onceEach(s)
		fault.Report(t, "SIGTERM during a deployment, and twice", "ends within 10 s and leaves the group, a successor goes on at once; twice ends at once",
			fmt.Sprintf("ended after %.2f s, successor went on after %.2f s, ended %.2f s after two signals; generation %d ended as %s",
				ended.Seconds(), took.Seconds(), atOnce.Seconds(), generation, o.message.GetStatus()))
	})
}
