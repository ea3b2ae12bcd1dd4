package engine

import (
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/client"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/engineproxy"
)

// noLeader is what a manager of Engine 20.10 answers ten seconds after it has lost its leader, with status 500.
const noLeader = "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online. " +
	"Make sure more than half of the managers are online."

// clock is the real one, put forward by the test.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) forward(d time.Duration) { c.ahead.Add(int64(d)) }

func newEngineAt(t *testing.T, host string, c *clock) (*Engine, *warnings) {
	t.Helper()
	w := &warnings{codes: make(map[string]string)}
	e, err := New(Config{Host: host}, Deps{Log: slog.New(slog.DiscardHandler), Warn: w, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return e, w
}

// failingSince is when the present trouble began; zero if there is none.
func (e *Engine) failingSince() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.leader.failing
}

// TestLeaderGoesAndComesBack: a manager counts as one for 10 s without a leader, or without its engine, and no longer.
func TestLeaderGoesAndComesBack(t *testing.T) {
	_, c := liveEngine(t)
	u, err := client.ParseHostURL(c.DaemonHost())
	if err != nil || u.Scheme != "unix" {
		t.Skipf("the engine is not on a Unix socket: %s", c.DaemonHost())
	}
	for name, tc := range map[string]struct {
		cut  func(t *testing.T) (host string, cut, mend func())
		code string
	}{
		"the swarm has no leader": {func(t *testing.T) (string, func(), func()) {
			proxy := engineproxy.New(t, u.Host)
			var allow func()
			return proxy.Client(t).DaemonHost(), func() { allow = proxy.Refuse("GET", `/nodes/`, http.StatusInternalServerError, noLeader) }, func() { allow() }
		}, WarnNoLeader},
		"the engine is away": {func(t *testing.T) (string, func(), func()) {
			way := newWay(t, c.DaemonHost())
			way.open(t)
			return "unix://" + way.path, way.cut, func() { way.open(t) }
		}, WarnUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, cut, mend := tc.cut(t)
			var clk clock
			e, w := newEngineAt(t, host, &clk)
			if e.Quorum() {
				t.Error("a leader that was never asked for")
			}
			run(t, e)
			eventually(t, "the leader is reached", e.Quorum)

			cut()
			eventually(t, "the first failure", func() bool { return !e.failingSince().IsZero() })
			clk.forward(quorumGrace / 2)
			since := e.failingSince()
			e.probeLeader(t.Context(), clk.now())
			if !e.Quorum() || w.has(WarnNoLeader) || e.failingSince() != since {
				t.Error("five seconds without a leader are an election and no loss")
			}
			changed := e.Changed()
			clk.forward(quorumGrace / 2)
			eventually(t, "the leader is lost", func() bool { return !e.Quorum() })
			<-changed
			eventually(t, "a warning", func() bool { return w.has(tc.code) })
			if !e.Manager() {
				t.Error("it does not know any more that it is a manager")
			}
			if tc.code != WarnNoLeader && w.has(WarnNoLeader) {
				t.Error("an engine that does not answer says nothing about the swarm's leader")
			}

			changed = e.Changed()
			mend()
			eventually(t, "the leader is reached again", e.Quorum)
			<-changed
			eventually(t, "no warning", func() bool { return !w.has(tc.code) && !w.has(WarnNoLeader) })
		})
	}
}

// TestShortLossesDoNotAddUp: each answer of the leader begins the ten seconds anew.
func TestShortLossesDoNotAddUp(t *testing.T) {
	var clk clock
	e, w := newEngineAt(t, "unix:///nowhere.sock", &clk)
	e.record(&runnerv1.NodeFacts{NodeId: "n1", Role: runnerv1.NodeRole_NODE_ROLE_MANAGER}, nil)
	e.recordLeader(clk.now(), nil)
	for range 3 {
		e.recordLeader(clk.now(), http.ErrHandlerTimeout)
		clk.forward(quorumGrace * 9 / 10)
		e.recordLeader(clk.now(), http.ErrHandlerTimeout)
		if !e.Quorum() || w.has(WarnNoLeader) {
			t.Fatal("lost after less than 10 s")
		}
		e.recordLeader(clk.now(), nil)
	}
}

// TestWorkerMissesNoLeader: a manager that is demoted while it has no leader has nothing to warn of any more.
func TestWorkerMissesNoLeader(t *testing.T) {
	var clk clock
	e, w := newEngineAt(t, "unix:///nowhere.sock", &clk)
	e.record(&runnerv1.NodeFacts{NodeId: "n1", Role: runnerv1.NodeRole_NODE_ROLE_MANAGER}, nil)
	e.recordLeader(clk.now(), nil)
	e.recordLeader(clk.now(), http.ErrHandlerTimeout)
	clk.forward(quorumGrace)
	e.recordLeader(clk.now(), http.ErrHandlerTimeout)
	if e.Quorum() || !w.has(WarnNoLeader) {
		t.Fatal("not lost after 10 s")
	}
	e.record(&runnerv1.NodeFacts{NodeId: "n1", Role: runnerv1.NodeRole_NODE_ROLE_WORKER}, nil)
	e.probeLeader(t.Context(), clk.now())
	if e.Quorum() || w.has(WarnNoLeader) {
		t.Error("a worker is warned of a missing leader")
	}
}
