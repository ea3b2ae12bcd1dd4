package engine

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// WarnNoLeader is set while this node is a manager whose engine has reached no leader of its Swarm for quorumGrace.
const WarnNoLeader = "no_swarm_leader"

const (
	// quorumGrace is how long a manager may be without a leader and still count as one that can work: an election takes a few seconds.
	quorumGrace = 10 * time.Second
	// probeInterval is between two questions for the leader, and probeTimeout bounds each: a manager that has just lost its leader answers after ten seconds
	// or not at all.
	probeInterval = 3 * time.Second
	probeTimeout  = 3 * time.Second
)

// leadership is what is known of the way to the Swarm's leader. Engine.mu guards it.
type leadership struct {
	// quorum is what Quorum returns.
	quorum bool
	// failing is when the first of the questions was asked that have failed since the last answer; zero if the last one was answered.
	failing time.Time
}

// Quorum says whether this node is a manager that can reach its Swarm's leader, or could less than 10 s ago. It is false before the leader was first reached,
// and while the engine does not answer. A change closes the channel of Changed.
func (e *Engine) Quorum() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.leader.quorum
}

// watchLeader asks for the leader again and again, until ctx ends.
func (e *Engine) watchLeader(ctx context.Context) {
	for ctx.Err() == nil {
		changed := e.Changed()
		asked := e.now()
		e.probeLeader(ctx, asked)
		wait := time.NewTimer(probeInterval)
		select {
		case <-changed: // another role, or the engine went or came
			wait.Stop()
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
	}
}

// probeLeader asks once, if this node is a manager, and records the answer.
func (e *Engine) probeLeader(ctx context.Context, asked time.Time) {
	node, manager := e.knownManager()
	if !manager {
		e.recordWorker()
		return
	}
	probing, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	// A node is one small object, and every manager gets it from the leader.
	_, _, err := e.Client().NodeInspectWithRaw(probing, node)
	switch {
	case ctx.Err() != nil:
		return // says nothing about the Swarm
	case errdefs.IsNotFound(err):
		err = nil // the leader has answered
	case err != nil && strings.Contains(err.Error(), "not a swarm manager"):
		if _ = e.refresh(ctx); !e.Manager() {
			e.recordWorker()
			return
		}
	}
	e.recordLeader(asked, err)
}

// knownManager returns this node's id and whether it is a manager, as last heard.
func (e *Engine) knownManager() (node string, manager bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.facts.GetNodeId(), e.facts.GetRole() == runnerv1.NodeRole_NODE_ROLE_MANAGER
}

// Manager says whether this node is a manager, as last heard; it asks nobody.
func (e *Engine) Manager() bool {
	_, manager := e.knownManager()
	return manager
}

// recordWorker: who is no manager has no leader to reach, and misses none.
func (e *Engine) recordWorker() {
	e.mu.Lock()
	e.setQuorum(false)
	e.leader.failing = time.Time{}
	e.mu.Unlock()
	e.warn.Clear(WarnNoLeader)
}

// recordLeader keeps the outcome of one question that was asked at that time.
func (e *Engine) recordLeader(asked time.Time, err error) {
	e.mu.Lock()
	had, reachable := e.leader.quorum, e.reachable
	if err == nil {
		e.leader.failing = time.Time{}
		e.setQuorum(true)
		e.mu.Unlock()
		e.warn.Clear(WarnNoLeader)
		if !had {
			e.log.Info("the swarm's leader is reached")
		}
		return
	}
	if e.leader.failing.IsZero() {
		e.leader.failing = asked
	}
	since := e.leader.failing
	lost := e.now().Sub(since) >= quorumGrace
	if lost {
		e.setQuorum(false)
	}
	e.mu.Unlock()
	switch {
	case !reachable:
		e.warn.Clear(WarnNoLeader) // the engine's own warning says what is wrong
	case lost:
		e.warn.Set(WarnNoLeader, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "No Swarm leader",
			fmt.Sprintf("this manager has not reached its swarm's leader since %s (%v); it leaves the cluster's commands to other managers until it does; bring more than half of the swarm's "+
				"managers back, or this node's network", since.UTC().Format(time.RFC3339), err))
	}
	if lost && had {
		e.log.Warn("the swarm's leader is out of reach", "since", since, "error", err)
	}
}

// setQuorum tells a change to whoever watches. It needs mu.
func (e *Engine) setQuorum(quorum bool) {
	if e.leader.quorum == quorum {
		return
	}
	e.leader.quorum = quorum
	close(e.changed)
	e.changed = make(chan struct{})
}
