package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/rig"
)

const (
	// backMedian and backMost are within what half of the sessions, and nearly all, must be back when the network is.
	backMedian, backMost = 2 * time.Second, 10 * time.Second
	// minOutage is longer than any session outlives, and outages are up to so much longer: a back-off has time to grow.
	minOutage, moreOutage = 12 * time.Second, 20 * time.Second
	// maxAttempts is how many sessions an agent may try in a second while it cannot have one, on average; it begins with some quick ones.
	maxAttempts, quickAttempts = 1.0, 8.0
	// longRounds is how many outages of a kind there are in the long form; each breaks the sessions of all agents.
	longRounds = 6
	// enough is from how many samples on a median is one.
	enough = 20
)

// outage breaks the way between agents and plane and returns how to bring it back. Between the two the time of the outage passes.
type outage struct {
	name    string
	begin   func(context.Context, *world) error
	end     func(context.Context, *world) error
	cleanup func(context.Context, *world) error
}

var outages = []outage{
	{
		name:  "plane cut off",
		begin: func(ctx context.Context, w *world) error { return w.Plane().Cut(ctx, rig.Both) },
		end:   func(ctx context.Context, w *world) error { return w.Plane().Heal(ctx) },
	},
	{
		name:  "plane down",
		begin: func(ctx context.Context, w *world) error { return w.Plane().Kill(ctx) },
		end:   func(ctx context.Context, w *world) error { return w.Plane().Start(ctx) },
	},
	{
		name:  "plane hears and is not heard",
		begin: func(ctx context.Context, w *world) error { return w.Plane().Cut(ctx, rig.Out) },
		end:   func(ctx context.Context, w *world) error { return w.Plane().Heal(ctx) },
	},
	{
		// As by a firewall that forgets its connections: nothing passes for a while, and then only new connections do.
		name: "connections half-open after an outage",
		begin: func(ctx context.Context, w *world) error {
			if _, err := w.Plane().HalfOpen(ctx); err != nil {
				return err
			}
			return w.each(func(n *rig.Node) error { return n.Cut(ctx, rig.Both, w.Plane()) })
		},
		end: func(ctx context.Context, w *world) error {
			return w.each(func(n *rig.Node) error { return n.Heal(ctx) })
		},
		cleanup: func(ctx context.Context, w *world) error { return w.Plane().Heal(ctx) },
	},
	{
		name:  "plane so slow that no session lives",
		begin: func(ctx context.Context, w *world) error { return w.Plane().Slow(ctx, rig.Link{Rate: 8_000}) },
		end:   func(ctx context.Context, w *world) error { return w.Plane().Heal(ctx) },
	},
}

func (w *world) each(f func(*rig.Node) error) error {
	for _, n := range w.Nodes() {
		if err := f(n); err != nil {
			return err
		}
	}
	return nil
}

// TestSessionsComeBack: after each outage of the way to the plane.
func TestSessionsComeBack(t *testing.T) {
	rounds, chosen := 1, outages[:1]
	if fault.Long() {
		rounds, chosen = longRounds, outages
	}
	for _, o := range chosen {
		t.Run(o.name, func(t *testing.T) {
			w := whole(t)
			var back []time.Duration
			attempts := 0.0
			for range rounds {
				times, most := o.round(t, w)
				back, attempts = append(back, times...), max(attempts, most)
			}
			slices.Sort(back)
			median, most := back[len(back)/2], back[(len(back)*99+99)/100-1]
			if len(back) >= enough && median > backMedian {
				t.Errorf("half of the sessions were back after %s, more than %s", median, backMedian)
			}
			if most > backMost {
				t.Errorf("99 %% of the sessions were back after %s, more than %s", most, backMost)
			}
			fault.Report(t, o.name, "session back: p50 <= 2 s, p99 <= 10 s after the network is back; no hot loop",
				fmt.Sprintf("%d sessions: p50 %s, p99 %s, last %s; at most %.2f attempts a second", len(back), seconds(median), seconds(most), seconds(back[len(back)-1]), attempts))
		})
	}
}

// round is one outage. It returns when each agent's session was back after its end, and the most attempts a second that an agent made in it.
func (o outage) round(t *testing.T, w *world) (back []time.Duration, attempts float64) {
	t.Helper()
	ctx := t.Context()
	before := w.attempts(t)
	began := time.Now()
	must(t, o.begin(ctx, w))
	length := minOutage + rand.N(moreOutage)
	if !fault.Long() {
		length = minOutage
	}
	wait := time.NewTimer(length - time.Since(began))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	for name, n := range w.attempts(t) {
		made := n - before[name]
		if made > quickAttempts+maxAttempts*length.Seconds() {
			t.Errorf("the agent of %s has tried %v sessions within %s", name, made, length)
		}
		attempts = max(attempts, made/length.Seconds())
	}
	ending := time.Now()
	must(t, o.end(ctx, w))
	ended := time.Now() // an agent may be back before the last of it
	opened := map[string]time.Time{}
	agents := w.agentIDs(t)
	must(t, rig.Wait(ctx, wholeTimeout, "the sessions", func(ctx context.Context) error {
		logs, err := w.Plane().LogsSince(ctx, ending)
		if err != nil {
			return err
		}
		for line := range strings.Lines(logs) {
			if id, at, ok := sessionOpen(line); ok && opened[id].IsZero() {
				opened[id] = at
			}
		}
		for _, id := range agents {
			if opened[id].IsZero() {
				return fmt.Errorf("agent %s has none; %d agents have", id, len(opened))
			}
		}
		return nil
	}))
	for _, id := range agents {
		back = append(back, max(opened[id].Sub(ended), 0))
	}
	if o.cleanup != nil {
		must(t, o.cleanup(ctx, w))
	}
	must(t, w.WaitAgents(ctx, wholeTimeout))
	return back, attempts
}

// sessionOpen reads the plane's log line of an agent's new session.
func sessionOpen(line string) (agentID string, at time.Time, ok bool) {
	if !strings.Contains(line, `msg="session open"`) {
		return "", time.Time{}, false
	}
	for field := range strings.FieldsSeq(line) {
		if text, found := strings.CutPrefix(field, "time="); found {
			at, _ = time.Parse(time.RFC3339Nano, text)
		}
		if text, found := strings.CutPrefix(field, "agent_id="); found {
			agentID = text
		}
	}
	return agentID, at, agentID != "" && !at.IsZero()
}

func (w *world) agentIDs(t *testing.T) []string {
	t.Helper()
	agents, err := w.Agents(t.Context())
	must(t, err)
	var ids []string
	for _, a := range agents {
		ids = append(ids, a.GetId())
	}
	return ids
}

// attempts is how many sessions each node's agent has tried.
func (w *world) attempts(t *testing.T) map[string]float64 {
	t.Helper()
	all := map[string]float64{}
	for _, n := range w.Nodes() {
		count, err := n.AgentMetric(t.Context(), "axion_agent_session_attempts_total")
		must(t, err)
		all[n.Name()] = count
	}
	return all
}

// TestHalfOpenSessionsAreNoticed: only the connections of the moment are dead, and nobody is told. What is seen is how soon the agents find out.
func TestHalfOpenSessionsAreNoticed(t *testing.T) {
	fault.NeedLong(t)
	w := whole(t)
	var back []time.Duration
	for range 5 {
		agents := w.agentIDs(t)
		began := time.Now()
		if _, err := w.Plane().HalfOpen(t.Context()); err != nil {
			t.Fatal(err)
		}
		opened := map[string]bool{}
		must(t, rig.Wait(t.Context(), wholeTimeout, "new sessions", func(ctx context.Context) error {
			logs, err := w.Plane().LogsSince(ctx, began)
			if err != nil {
				return err
			}
			for line := range strings.Lines(logs) {
				if id, at, ok := sessionOpen(line); ok && !opened[id] {
					opened[id] = true
					back = append(back, at.Sub(began))
				}
			}
			if len(opened) < len(agents) {
				return fmt.Errorf("%d of %d agents have one", len(opened), len(agents))
			}
			return nil
		}))
		must(t, w.Plane().Heal(t.Context()))
		must(t, w.WaitAgents(t.Context(), wholeTimeout))
	}
	slices.Sort(back)
	if last := back[len(back)-1]; last > backMost {
		t.Errorf("a dead connection was noticed after %s", last)
	}
	fault.Report(t, "connections half-open, new ones work", "noticed without a word and back within 10 s",
		fmt.Sprintf("%d sessions: p50 %s, last %s after the connection died", len(back), seconds(back[len(back)/2]), seconds(back[len(back)-1])))
}
