package fleet_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/axion/runner-agent/agent/session"
	"github.com/axion/runner-agent/plane/fleet"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const instance = "instance-0123456789"

func TestSessionTellsBothSides(t *testing.T) {
	t.Parallel()
	p := newPlane(t, fast).start()
	p.allow(agentID)
	a := p.join(options{beat: func() *runnerv1.Heartbeat {
		return &runnerv1.Heartbeat{
			Role: runnerv1.NodeRole_NODE_ROLE_MANAGER, EngineReachable: true, RunningCommands: []string{"c1"},
			Stacks: []*runnerv1.StackGeneration{{Stack: "web", Generation: 3}},
			Warnings: []*runnerv1.HealthWarning{
				{Code: "low", Severity: runnerv1.HealthSeverity_HEALTH_SEVERITY_LOW},
				{Code: "high", Severity: runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH},
			},
		}
	}})
	if !a.ClusterTopicAllowed() {
		t.Error("Welcome has not allowed the cluster's topic")
	}
	eventually(t, "two heartbeats are answered", func() bool { return a.Stats().HeartbeatsAcked >= 2 })
	s, ok := p.fleet.Session(agentID)
	if !ok || s.NodeID != nodeID || s.ClusterID != clusterID || s.Version != "1.0" || s.Heartbeat.GetStacks()[0].GetGeneration() != 3 {
		t.Errorf("the plane knows %+v", s)
	}
	if w := p.fleet.Warnings(agentID); len(w) != 2 || w[0].GetCode() != "high" {
		t.Errorf("warnings %v, want the worst first", w)
	}
	if st := a.Stats(); st.Connects != 1 || st.RoundTrip <= 0 {
		t.Errorf("stats %+v", st)
	}
	if len(p.seen(fleet.Opened)) != 1 {
		t.Error("no event of the opened session")
	}
}

func TestClusterTopicIsToldWhenItChanges(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	a := p.join(options{})
	changed := a.Changed()
	if a.ClusterTopicAllowed() {
		t.Fatal("nobody has allowed it")
	}
	p.allow(agentID)
	p.fleet.RefreshClusterTopic(agentID)
	receive(t, "the agent learns that it may read the cluster's topic", changed)
	if !a.ClusterTopicAllowed() || !a.Connected() {
		t.Error("the change is something else")
	}
	p.proxy.Refuse(true)
	p.proxy.Cut()
	eventually(t, "the cut is noticed", func() bool { return !a.Connected() })
	if !a.ClusterTopicAllowed() {
		t.Error("the permission must outlive the session: commands go on without the plane")
	}
}

func TestReconnectAfterCut(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	a := p.join(options{})
	for n := uint64(2); n <= 4; n++ {
		p.proxy.Cut()
		eventually(t, "agent is back", func() bool { return a.Stats().Connects == n && a.Connected() && p.fleet.Connected(agentID) })
	}
	eventually(t, "three losses are told", func() bool { return len(p.seen(fleet.Closed)) == 3 })
	for _, e := range p.seen(fleet.Closed) {
		if e.Err == nil {
			t.Error("a cut is no goodbye")
		}
	}
}

func TestHalfOpenIsNoticedByBoth(t *testing.T) {
	t.Parallel()
	p := newPlane(t, fast).start()
	a := p.join(options{})
	p.proxy.Refuse(true) // so that each side has to notice by itself
	p.proxy.HalfOpen()
	eventually(t, "both sides give the session up", func() bool { return !a.Connected() && !p.fleet.Connected(agentID) })
	wantFailure(t, p.seen(fleet.Closed)[0].Err, failure.Unavailable, "heartbeat_missed")
	eventually(t, "the warning says so", func() bool { return a.warn.text(session.WarningUnreachable) != "" })
	p.proxy.Refuse(false)
	eventually(t, "agent is back", func() bool { return a.Connected() && p.fleet.Connected(agentID) })
	if text := a.warn.text(session.WarningUnreachable); text != "" {
		t.Errorf("the warning stays: %s", text)
	}
}

func TestStallShorterThanTheDeadlineBreaksNothing(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	a := p.join(options{})
	p.proxy.Stall()
	answered := make(chan error, 1)
	go func() {
		_, err := p.fleet.Request(t.Context(), agentID, &runnerv1.Request{})
		answered <- err
	}()
	p.proxy.Resume()
	if err := receive(t, "an answer", answered); err != nil {
		t.Fatal(err)
	}
	if n := a.Stats().Connects; n != 1 {
		t.Errorf("%d sessions, want the one", n)
	}
}

func TestPlaneRestart(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	a := p.join(options{})
	p.stop()
	eventually(t, "agent has lost the plane", func() bool { return !a.Connected() })
	if e := p.seen(fleet.Closed); len(e) != 1 || e[0].Lost {
		t.Errorf("closed events %+v, want one that is no loss", e)
	}
	p.start()
	eventually(t, "agent is back", func() bool { return a.Connected() && p.fleet.Connected(agentID) })
}

func TestSameInstanceReplacesItsHalfOpenSession(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	first := p.join(options{instance: instance})
	before, _ := p.fleet.Session(agentID)
	p.proxy.HalfOpen() // neither side knows
	waiting := make(chan error, 1)
	go func() {
		_, err := p.fleet.Request(t.Context(), agentID, &runnerv1.Request{})
		waiting <- err
	}()
	p.join(options{instance: instance})
	eventually(t, "the new session has the place", func() bool {
		now, ok := p.fleet.Session(agentID)
		return ok && now.ID != before.ID
	})
	if !first.Connected() {
		t.Error("the test is void: the old side has noticed")
	}
	wantFailure(t, receive(t, "who waited for the old session is told", waiting), failure.Unavailable, "agent_disconnected")
	eventually(t, "the old one's end is told", func() bool { return len(p.seen(fleet.Closed)) == 1 })
	wantFailure(t, p.seen(fleet.Closed)[0].Err, failure.Conflict, "session_replaced")
}

func TestDuplicateIdentityIsRefusedAndReported(t *testing.T) {
	t.Parallel()
	p := newPlane(t, fast).start()
	first := p.join(options{instance: instance})
	clone := p.agent(options{instance: "another-0123456789"})
	eventually(t, "it is reported", func() bool { return len(p.seen(fleet.Duplicate)) > 0 })
	e := p.seen(fleet.Duplicate)[0]
	if e.Session.InstanceID != instance || e.OtherInstance != "another-0123456789" || e.OtherPeer == "" {
		t.Errorf("reported %+v", e)
	}
	eventually(t, "the clone says why", func() bool { return clone.warn.text(session.WarningRefused) != "" })
	if clone.Connected() || clone.Stats().Connects != 0 || first.Stats().Connects != 1 {
		t.Error("the clone got in, or the first one out")
	}
	first.stop()
	eventually(t, "the other one has the place once it is free", clone.Connected)
}

// A process that dies without a word leaves a session behind that nobody has noticed yet; the new process waits for its end, and nobody cries clone.
func TestRestartAfterSilentDeathIsNoDuplicate(t *testing.T) {
	t.Parallel()
	p := newPlane(t, fast).start()
	p.wire(p.ca.Client(agentID, clusterID)).welcomed() // and never heard of again
	p.proxy.HalfOpen()
	fresh := p.agent(options{instance: "another-0123456789"})
	eventually(t, "the new process gets in", fresh.Connected)
	if e := p.seen(fleet.Duplicate); len(e) != 0 {
		t.Errorf("reported %+v", e)
	}
}

func TestGoodbyeOfTheAgent(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	a := p.join(options{})
	a.stop()
	eventually(t, "the plane knows", func() bool { return !p.fleet.Connected(agentID) && len(p.seen(fleet.Closed)) == 1 })
	if e := p.seen(fleet.Closed)[0]; e.Err != nil || e.Lost {
		t.Errorf("closed with %+v, want a goodbye", e)
	}
}

func TestLostStreamIsTold(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	p.join(options{beat: func() *runnerv1.Heartbeat {
		return &runnerv1.Heartbeat{Members: []*runnerv1.GroupMember{{Group: "runner.shop", MemberId: "m1"}}}
	}})
	eventually(t, "a heartbeat", func() bool { s, _ := p.fleet.Session(agentID); return s.Heartbeat != nil })
	p.proxy.Cut()
	eventually(t, "the loss is told", func() bool { return len(p.seen(fleet.Closed)) == 1 })
	if e := p.seen(fleet.Closed)[0]; !e.Lost || e.Session.Heartbeat.GetMembers()[0].GetMemberId() != "m1" {
		t.Errorf("got %+v", e)
	}
}

func TestHeartbeatStretch(t *testing.T) {
	t.Parallel()
	p := newPlane(t, fast).start()
	var beats atomic.Int64
	a := p.join(options{beat: func() *runnerv1.Heartbeat { beats.Add(1); return &runnerv1.Heartbeat{} }})
	p.fleet.SetHeartbeatInterval(calm)
	eventually(t, "the agent hears of it", func() bool { return a.Stats().HeartbeatsAcked >= 2 })
	eventually(t, "the beats slow down", func() bool {
		before := beats.Load()
		time.Sleep(4 * fast) // measured time, not a wait for something: at the old pace at least three beats fall into it
		return beats.Load()-before <= 1
	})
	if n := a.Stats().Connects; n != 1 || !p.fleet.Connected(agentID) {
		t.Errorf("%d sessions; the longer interval counts on both sides", n)
	}
}

func TestDisconnect(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	a := p.join(options{})
	p.mu.Lock()
	p.revoked[agentID] = failure.New(failure.Denied, "revoked", agentID, "the certificate of agent %s is revoked", agentID)
	p.mu.Unlock()
	p.fleet.Disconnect(agentID, "removed by the operator")
	if p.fleet.Connected(agentID) {
		t.Error("still connected")
	}
	eventually(t, "the agent says why it is refused", func() bool {
		return a.warn.text(session.WarningRefused) == "the plane at "+p.proxy.Addr()+" refuses this agent: the certificate of agent "+agentID+" is revoked"
	})
	if n := a.Stats().Connects; n != 1 {
		t.Errorf("%d sessions after the revocation", n-1)
	}
}

func TestRegistryMayRefuse(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	a := p.agent(options{node: &runnerv1.NodeFacts{NodeId: "foreign"}})
	eventually(t, "the agent says why", func() bool { return a.warn.text(session.WarningRefused) != "" })
	if p.fleet.Connected(agentID) || a.Stats().Connects != 0 {
		t.Error("it got in")
	}
}

func TestPromotionIsNoted(t *testing.T) {
	t.Parallel()
	p := newPlane(t, fast).start()
	var role atomic.Int32
	role.Store(int32(runnerv1.NodeRole_NODE_ROLE_WORKER))
	p.join(options{
		node: &runnerv1.NodeFacts{NodeId: nodeID, Hostname: "h1", Role: runnerv1.NodeRole_NODE_ROLE_WORKER},
		beat: func() *runnerv1.Heartbeat { return &runnerv1.Heartbeat{Role: runnerv1.NodeRole(role.Load())} },
	})
	role.Store(int32(runnerv1.NodeRole_NODE_ROLE_MANAGER))
	var last *runnerv1.NodeFacts
	eventually(t, "the new role is noted", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		last = p.touched[len(p.touched)-1]
		return last.GetRole() == runnerv1.NodeRole_NODE_ROLE_MANAGER
	})
	if last.GetHostname() != "h1" || len(p.touched) != 2 {
		t.Errorf("noted %v, %d times", last, len(p.touched))
	}
}

// That an agent was taken out of the registry ends its session even if nobody disconnects it.
func TestRegistryMayChangeItsMind(t *testing.T) {
	t.Parallel()
	p := newPlane(t, fast)
	p.config.Timing.TouchEvery = time.Millisecond
	p.start()
	a := p.join(options{})
	p.mu.Lock()
	p.removed = true
	p.mu.Unlock()
	eventually(t, "the agent is refused", func() bool { return a.warn.text(session.WarningRefused) != "" && !p.fleet.Connected(agentID) })
}

// What an agent tells is not of this cluster any more when its node has gone to another Swarm.
func TestNodesOfAnotherSwarmEndTheSession(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err  error
		ends bool
	}{
		"another Swarm":        {failure.New(failure.Conflict, "swarm_mismatch", clusterID, "another Swarm"), true},
		"an unconfirmed agent": {failure.New(failure.Denied, "node_not_confirmed", agentID, "not confirmed"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t, calm)
			p.noNodes = tc.err
			p.start()
			p.join(options{nodes: func(context.Context) (*runnerv1.NodeList, error) {
				return &runnerv1.NodeList{SwarmClusterId: "swarm", Nodes: []*runnerv1.SwarmNode{{NodeId: nodeID}}}, nil
			}})
			eventually(t, "the nodes are told", func() bool {
				p.mu.Lock()
				defer p.mu.Unlock()
				return len(p.nodes) > 0
			})
			if !tc.ends {
				if !p.fleet.Connected(agentID) {
					t.Error("its session ended")
				}
				return
			}
			eventually(t, "its session ends", func() bool { return len(p.seen(fleet.Closed)) > 0 })
			wantFailure(t, p.seen(fleet.Closed)[0].Err, failure.Conflict, "swarm_mismatch")
		})
	}
}

func TestNodesAreToldWhenTheyChange(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	p.allow(agentID)
	p.allow("a-two")
	var looks atomic.Int64
	var second atomic.Bool
	list := func(context.Context) (*runnerv1.NodeList, error) {
		looks.Add(1)
		nodes := []*runnerv1.SwarmNode{{NodeId: "n2"}, {NodeId: nodeID, Leader: true}}
		if looks.Load()%2 == 0 {
			slices.Reverse(nodes) // another order is no change
		}
		if second.Load() {
			nodes = []*runnerv1.SwarmNode{{NodeId: "n2", Leader: true}, {NodeId: nodeID}}
		}
		return &runnerv1.NodeList{SwarmClusterId: "swarm", Nodes: nodes}, nil
	}
	p.join(options{nodes: list})
	p.join(options{id: "a-two", node: &runnerv1.NodeFacts{NodeId: "n2", Role: runnerv1.NodeRole_NODE_ROLE_MANAGER}})
	manager := func(want string) func() bool {
		return func() bool { got, err := p.fleet.PickManager(clusterID); return err == nil && got == want }
	}
	eventually(t, "the leader's agent is picked", manager(agentID))
	eventually(t, "the nodes are looked at again and again", func() bool { return looks.Load() > 6 })
	p.mu.Lock()
	told := len(p.nodes)
	p.mu.Unlock()
	if told != 1 {
		t.Errorf("the same nodes were told %d times", told)
	}
	second.Store(true)
	eventually(t, "the new leader's agent is picked", manager("a-two"))
}

func TestPickManager(t *testing.T) {
	t.Parallel()
	p := newPlane(t, fast).start()
	_, err := p.fleet.PickManager(clusterID)
	wantFailure(t, err, failure.Unavailable, "no_manager_connected")

	p.join(options{id: "a-unconfirmed"})
	p.join(options{id: "a-worker", node: &runnerv1.NodeFacts{NodeId: "n2", Role: runnerv1.NodeRole_NODE_ROLE_WORKER}})
	p.allow("a-worker")
	_, err = p.fleet.PickManager(clusterID)
	wantFailure(t, err, failure.Unavailable, "no_manager_connected")

	p.allow("a-blind")
	p.join(options{id: "a-blind", beat: func() *runnerv1.Heartbeat { return &runnerv1.Heartbeat{} }})
	p.allow("a-good")
	p.join(options{id: "a-good"})
	eventually(t, "the manager whose engine answers is picked", func() bool {
		got, err := p.fleet.PickManager(clusterID)
		return err == nil && got == "a-good"
	})

	p.allow("a-busy")
	p.join(options{id: "a-busy", beat: func() *runnerv1.Heartbeat { return &runnerv1.Heartbeat{RunningCommands: []string{"c-1"}} }})
	eventually(t, "one whose engine does not answer comes last", func() bool {
		return slices.Equal(p.fleet.Managers(clusterID, "c-2"), []string{"a-good", "a-blind", "a-busy"})
	})
	if got := p.fleet.Managers(clusterID, "c-1"); !slices.Equal(got, []string{"a-busy", "a-good", "a-blind"}) {
		t.Errorf("the manager that runs the command comes first: %v", got)
	}
}

func TestShutdownSpreadsTheHerd(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm)
	p.start()
	a := p.join(options{})
	p.stop()
	eventually(t, "the agent is told", func() bool { return !a.Connected() })
	wantFailure(t, p.seen(fleet.Closed)[0].Err, failure.Unavailable, "plane_shutdown")
	if p.fleet.Connected(agentID) {
		t.Error("a closed fleet has sessions")
	}
}
