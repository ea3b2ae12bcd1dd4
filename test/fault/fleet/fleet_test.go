package fleet

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/program"
)

const (
	// The fleets: of the short form, of the long one, and the one whose figures are wanted besides.
	fleetShort, fleetLong, fleetLarge = 200, 1000, 5000
	// backWithin is the bound for all agents to be back.
	backWithin = 60 * time.Second
	// rush is how long after the plane's return the agents may come as they like; from then on the rate of connections is bounded.
	rush = 10 * time.Second
	// rateWindow is the window in which connections are counted. A shorter one would count chance.
	rateWindow = 5 * time.Second
	// watched is how long after the rush the rate is watched.
	watched = rateWindow
	// awayLong is the long outage.
	awayLong = 2 * time.Minute
	// attemptsPerMinute is what an agent may try while nobody listens, on average: more is a hot loop.
	attemptsPerMinute = 20
	// connectWithin bounds the first connection of all agents: it is not what is measured.
	connectWithin = 2 * time.Minute
	// look is between two looks at who is back; it bounds the error of the times.
	look = 20 * time.Millisecond
)

// allowed is how many connections n agents may make in a window after the rush: twice the steady rate, which is that of a fleet that uses all the time that it
// has to come back and comes back evenly, n agents in backWithin.
func allowed(n int) int { return int(2 * float64(n) * rateWindow.Seconds() / backWithin.Seconds()) }

// TestPlaneRestarted: the plane ends in order and is started again, then it is killed and started again; in the long form it is also away for two minutes.
func TestPlaneRestarted(t *testing.T) {
	binary := program.Build(t, "axion-plane")
	fault.Alone(t)
	n := fleetShort
	if fault.Long() {
		n = fleetLong
	}
	f := start(t, binary, n)
	t.Run("in order", func(t *testing.T) {
		seen := f.restart(t, f.plane.Stop)
		fault.Report(t, fmt.Sprintf("%d agents, plane restarted in order", n), mustHold(n), seen)
	})
	t.Run("killed", func(t *testing.T) {
		seen := f.restart(t, f.plane.Kill)
		fault.Report(t, fmt.Sprintf("%d agents, plane killed and restarted", n), mustHold(n), seen)
	})
	t.Run("away", func(t *testing.T) {
		fault.NeedLong(t)
		var tried float64
		seen := f.restart(t, func() {
			f.plane.Kill()
			began, before := time.Now(), f.agents.attempts()
			time.Sleep(awayLong)
			tried = float64(f.agents.attempts()-before) / float64(n) / time.Since(began).Minutes()
		})
		if tried > attemptsPerMinute {
			t.Errorf("while the plane was away each agent tried %.1f times a minute", tried)
		}
		fault.Report(t, fmt.Sprintf("%d agents, plane away for %s", n, awayLong), fmt.Sprintf("%s; an agent tries at most %d times a minute", mustHold(n), attemptsPerMinute),
			fmt.Sprintf("%s; %.1f tries a minute", seen, tried))
	})
}

// TestLargeFleet gives the figures of the plane for a fleet that is larger than what is promised, and kills the plane under it.
func TestLargeFleet(t *testing.T) {
	fault.NeedLong(t)
	program.NeedDescriptors(t, 2*fleetLarge)
	binary := program.Build(t, "axion-plane")
	fault.Alone(t)
	f := start(t, binary, fleetLarge)
	seen := f.restart(t, f.plane.Kill)
	fault.Report(t, fmt.Sprintf("%d agents, plane killed and restarted", fleetLarge), mustHold(fleetLarge), seen)
}

func mustHold(n int) string {
	return fmt.Sprintf("all back <= %.0f s; then <= %d connections in %.0f s", backWithin.Seconds(), allowed(n), rateWindow.Seconds())
}

// world is a plane and its fleet.
type world struct {
	plane  *program.Plane
	agents *agents
}

// start starts a plane, connects n agents and reports what they cost the plane.
func start(t *testing.T, binary string, n int) *world {
	t.Helper()
	w := &world{plane: program.NewPlane(t, binary)}
	began := time.Now()
	w.agents = enrol(t, w.plane, n)
	enrolled := time.Since(began)
	none, began := w.agents.sessions(), time.Now()
	w.agents.run(t)
	took := w.agents.back(t, none, began, connectWithin)
	t.Logf("%d agents: enrolled in %.1f s, all at once connected in %.1f s", n, enrolled.Seconds(), took[len(took)-1].Seconds())

	before, began := w.figures(t), time.Now()
	window := rateWindow
	if fault.Long() {
		window = time.Minute // with the registry's notes of who was heard of
	}
	time.Sleep(window)
	after := w.figures(t)
	load := (after.CPU - before.CPU).Seconds() / time.Since(began).Seconds()
	if connected := w.agents.connected(); connected != n {
		t.Errorf("%d of %d agents have a session", connected, n)
	}
	fault.Report(t, fmt.Sprintf("none: %d sessions, a heartbeat each 5 s, metrics each 10 s", n), "figures of the plane",
		fmt.Sprintf("%.1f %% of a core, RSS %d MB, anonymous %d MB (%d KB a session), %d descriptors",
			100*load, after.RSS>>20, after.Anonymous>>20, after.Anonymous>>10/uint64(n), after.Descriptors))
	return w
}

func (w *world) figures(t *testing.T) program.Figures {
	t.Helper()
	f, err := w.plane.Figures()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// restart ends the plane as told, starts it again, and checks that all agents come back in time and in peace.
func (w *world) restart(t *testing.T, end func()) string {
	t.Helper()
	n := len(w.agents.clients)
	before := w.agents.sessions()
	end()
	started := w.plane.Start()
	listens := time.Now()
	took := w.agents.back(t, before, listens, backWithin)
	cpu := w.figures(t).CPU
	until := listens.Add(max(rush+watched, took[n-1]+rateWindow))
	time.Sleep(time.Until(until))
	busiest := w.agents.met.busiest(listens.Add(rush), until, rateWindow)
	if busiest > allowed(n) {
		t.Errorf("%d connections within %s, later than %s after the plane's return: more than %d", busiest, rateWindow, rush, allowed(n))
	}
	if connected := w.agents.connected(); connected != n {
		t.Errorf("%d of %d agents have a session %s later", connected, n, time.Since(listens).Round(time.Second))
	}
	slices.Sort(took)
	return fmt.Sprintf("p50 %.1f s, p99 %.1f s, all %.1f s after the plane listened (%.1f s after its start); %d connections in all, then at most %d in %.0f s; %.1f s of the plane's CPU",
		took[n/2].Seconds(), took[n*99/100].Seconds(), took[n-1].Seconds(), started.Seconds(),
		w.agents.met.between(listens, until), busiest, rateWindow.Seconds(), cpu.Seconds())
}
