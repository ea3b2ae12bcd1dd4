package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/rig"
)

const (
	// flapping is how long sessions are broken again and again, one every flapEvery, each for flapFor.
	flapping  = 5 * time.Minute
	flapEvery = 3 * time.Second
	flapFor   = 500 * time.Millisecond
	// evicted is what the plane logs for each eviction.
	evicted = "evicted a member from its group"
)

// maxEvictions is how many evictions there may be in a cluster in that time: the pause after the first is 10 s and doubles.
func maxEvictions(within time.Duration) int {
	n := 0
	for at, pause := time.Duration(0), 10*time.Second; at <= within; at, pause = at+pause, 2*pause {
		n++
	}
	return n
}

// TestFlappingSessions: Kafka is healthy, but the agents' sessions with the plane are reset again and again, those of the managers by turns. Each reset looks
// like an agent that died.
func TestFlappingSessions(t *testing.T) {
	fault.NeedLong(t)
	w := whole(t)
	c := w.deploy(t, w.stackName(t), w.slow(time.Minute), flapping)
	c.owner(t)
	plane, managers := w.Plane(), w.Managers()
	started := time.Now()
	tick := time.NewTicker(flapEvery)
	defer tick.Stop()
	flaps := 0
	for ; time.Since(started) < flapping; flaps++ {
		must(t, plane.RefusePort(t.Context(), rig.PlanePort, managers[flaps%len(managers)]))
		healed := time.After(flapFor)
		<-healed
		must(t, plane.Heal(t.Context()))
		<-tick.C
	}
	ended := c.succeeds(t, deployTimeout, "web")
	logs, err := plane.LogsSince(t.Context(), started)
	must(t, err)
	count, allowed := strings.Count(logs, evicted), maxEvictions(time.Since(started))
	if count > allowed {
		t.Errorf("%d evictions, more than %d", count, allowed)
	}
	if broke := strings.Count(logs, "stream_broken"); broke == 0 {
		t.Error("no session broke: the test tests nothing")
	}
	fault.Report(t, fmt.Sprintf("gRPC flapping for %s, Kafka healthy", flapping), "evictions within their limit; the deployment ends",
		fmt.Sprintf("%d resets, %d evictions of %d allowed; the deployment of 60 s ended %s after the first", flaps, count, allowed, seconds(ended.Sub(started))))
}
