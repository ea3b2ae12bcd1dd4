package crash

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/stacks"
)

const (
	// goesOnWithin is within how much time after the kill of the manager that runs a deployment another one must go on with it.
	goesOnWithin = 3 * time.Second
	// heartbeat is how often the plane hears of an agent; with its first heartbeat as a member the plane knows whom to evict.
	heartbeat = 5 * time.Second
	// never is a deployment whose task can be placed nowhere, and which therefore goes on until its time is over.
	never = `, placement: {constraints: ["node.labels.axt-crash == nowhere"]}`
)

// endless is a deployment that does not converge; it ends after that time.
func endless(s *stacks.Stack, mark string, timeout time.Duration) *runnerv1.StackDeploy {
	d := s.Deploy(0, map[string]stacks.Service{"a": {Mark: mark, Replicas: 1, Deploy: never}})
	d.Options.Timeout = durationpb.New(timeout)
	return d
}

// taken waits until a command has been taken n times, by whomever, and returns when that was.
func (c *cluster) taken(commandID string, n int) time.Time {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("command %s being taken %d times", commandID, n), func() bool { return len(c.events.takenAt(commandID)) >= n })
	return c.events.takenAt(commandID)[n-1]
}

// applied waits until a command's service is there.
func (c *cluster) applied(s *stacks.Stack, mark string) {
	c.t.Helper()
	eventually(c.t, "the service of stack "+s.Name, func() bool { return s.Marks()["a"] == mark })
}

// known waits until the plane has heard of the memberships as they are.
func (c *cluster) known() {
	time.Sleep(heartbeat + 500*time.Millisecond) // nothing tells from outside that a heartbeat was heard
}

// TestOwnerKilled kills the manager that runs a deployment. The plane sees its stream break and takes it out of the group.
func TestOwnerKilled(t *testing.T) {
	on(t, func(t *testing.T, w *world) {
		c := w.newCluster(t, 2)
		s := stacks.New(t, c.prefix)
		owner, _ := c.owner()
		c.known()
		id, generation := c.submit(endless(s, "1", 8*time.Second))
		c.taken(id, 1)
		c.applied(s, "1")
		killed := time.Now()
		owner.kill()
		took := c.taken(id, 2).Sub(killed)
		if took > goesOnWithin {
			t.Errorf("another manager went on after %s, want %s or less", took, goesOnWithin)
		}
		o := c.await(id)
		if o.message.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_TIMED_OUT {
			t.Errorf("a deployment that cannot converge ended as %v", o.message)
		}
		owner.start("")
		eventually(t, "the killed manager's return", owner.member)
		next, generation2 := c.submit(s.Deploy(0, stacks.Marked(map[string]string{"a": "2"})))
		c.succeeds(next)
		c.atRest(s, next, generation2, map[string]string{"a": "2"})
		c.oneOutcome(id)
		c.onceEach(s)
		fault.Report(t, "kill -9 of the manager that runs a deployment", "another one goes on in 3 s or less, and ends it truthfully",
			fmt.Sprintf("taken up after %.2f s; generation %d ended as %s", took.Seconds(), generation, o.message.GetStatus()))
	})
}

// TestLongDeploymentAndQueue kills the owner of a deployment that takes minutes, behind which 300 commands wait or run.
func TestLongDeploymentAndQueue(t *testing.T) {
	fault.NeedLong(t)
	on(t, func(t *testing.T, w *world) {
		c := w.newCluster(t, 2)
		long := stacks.New(t, c.prefix)
		owner, _ := c.owner()
		c.known()
		id, _ := c.submit(endless(long, "0", 10*time.Minute))
		c.taken(id, 1)
		c.applied(long, "0")
		others := make([]*stacks.Stack, 20)
		for i := range others {
			others[i] = stacks.New(t, c.prefix)
		}
		type sent struct {
			id         string
			generation uint64
			mark       string
		}
		last := map[*stacks.Stack]sent{}
		var behind []string // of the long one's stack
		var all []string
		for i := range 300 {
			s := others[i%len(others)]
			if i%30 == 0 {
				s = long
			}
			mark := fmt.Sprint(i + 1)
			cid, generation := c.submit(s.Deploy(0, stacks.Marked(map[string]string{"a": mark})))
			last[s] = sent{cid, generation, mark}
			if all = append(all, cid); s == long {
				behind = append(behind, cid)
			}
			if i == 150 {
				owner.kill()
			}
		}
		c.taken(id, 2)
		owner.start("")
		eventually(t, "the killed manager's return", owner.member)
		owner, _ = c.owner()
		owner.kill()
		owner.start("")
		within(t, 15*time.Minute, "all outcomes", func() bool {
			for _, cid := range append(all, id) {
				if len(w.events.of(cid)) == 0 {
					return false
				}
			}
			return true
		})
		if got := w.await(id).message.GetStatus(); got != runnerv1.OutcomeStatus_OUTCOME_STATUS_TIMED_OUT {
			t.Errorf("the long deployment ended as %s", got)
		}
		writes := 0
		for s, l := range last {
			c.atRest(s, l.id, l.generation, map[string]string{"a": l.mark})
			writes += c.onceEach(s)
		}
		told := 0
		for _, cid := range append(all, id) {
			told += c.oneOutcome(cid)
		}
		fault.Report(t, "ten-minute deployment and 300 commands behind it, the owner killed twice", "nothing repeated, each command one outcome",
			fmt.Sprintf("%d commands (%d of the same stack), outcomes told %d times, %d writes, none twice", len(all)+1, len(behind), told, writes))
	})
}

// TestCancelledStays kills the owner of a deployment as soon as its cancellation is acknowledged.
func TestCancelledStays(t *testing.T) {
	on(t, func(t *testing.T, w *world) {
		c := w.newCluster(t, 2)
		s := stacks.New(t, c.prefix)
		owner, _ := c.owner()
		id, _ := c.submit(endless(s, "1", 10*time.Minute))
		c.taken(id, 1)
		c.applied(s, "1")
		if _, err := c.operator.CancelCommand(t.Context(), &planev1.CancelCommandRequest{CommandId: id}); err != nil {
			t.Fatal(err)
		}
		owner.kill()
		owner.evict()
		o := c.await(id)
		if o.message.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_CANCELLED {
			t.Errorf("the cancelled deployment ended as %v", o.message)
		}
		owner.start("")
		eventually(t, "the killed manager's return", owner.member)
		next, generation := c.submit(s.Deploy(0, stacks.Marked(map[string]string{"a": "2"})))
		c.succeeds(next)
		c.atRest(s, next, generation, map[string]string{"a": "2"})
		told := c.oneOutcome(id)
		c.onceEach(s)
		fault.Report(t, "cancel, then the owner killed", "stays cancelled", fmt.Sprintf("%s, told %d times, first by %s", o.message.GetStatus(), told, o.source))
	})
}

// TestOperatorRetries: an operator whose request timed out sends it again with its idempotency key.
func TestOperatorRetries(t *testing.T) {
	on(t, func(t *testing.T, w *world) {
		c := w.newCluster(t, 1)
		s := stacks.New(t, c.prefix)
		req := c.request(s.Deploy(0, stacks.Marked(map[string]string{"a": "1"})))
		req.IdempotencyKey = "retry-" + c.id
		ids := map[string]bool{}
		var answer *planev1.SubmitCommandResponse
		const tries = 5
		for i := range tries {
			ctx, cancel := contextWithin(t, i)
			resp, err := c.operator.SubmitCommand(ctx, req)
			cancel()
			if err == nil {
				answer = resp
				ids[resp.GetCommandId()] = true
			}
		}
		if len(ids) != 1 {
			t.Fatalf("%d commands from one request", len(ids))
		}
		c.succeeds(answer.GetCommandId())
		c.atRest(s, answer.GetCommandId(), answer.GetGeneration(), map[string]string{"a": "1"})
		if answer.GetGeneration() != 1 || len(w.events.takenAt(answer.GetCommandId())) != 1 {
			t.Errorf("generation %d, taken %d times", answer.GetGeneration(), len(w.events.takenAt(answer.GetCommandId())))
		}
		fault.Report(t, "operator retries a timed-out request with its idempotency key", "one command",
			fmt.Sprintf("%d tries, %d command, generation %d, %d outcome", tries, len(ids), answer.GetGeneration(), c.oneOutcome(answer.GetCommandId())))
	})
}
