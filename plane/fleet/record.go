package fleet

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// records keeps the loop of a session away from the store: the loop puts, one goroutine takes. Only the newest list of nodes counts.
type records struct {
	mu     sync.Mutex
	nodes  *runnerv1.NodeList
	signal chan struct{}
}

func newRecords() *records { return &records{signal: make(chan struct{}, 1)} }

// put leaves a list of nodes to be written down.
func (r *records) put(nodes *runnerv1.NodeList) {
	r.mu.Lock()
	r.nodes = nodes
	r.mu.Unlock()
	r.poke()
}

// poke says that the agent was heard.
func (r *records) poke() {
	select {
	case r.signal <- struct{}{}:
	default:
	}
}

func (r *records) take() *runnerv1.NodeList {
	r.mu.Lock()
	defer r.mu.Unlock()
	nodes := r.nodes
	r.nodes = nil
	return nodes
}

// record writes down what the loop has heard, until the session ends.
func (s *session) record() {
	touched := time.Now()
	role := s.hello.GetNode().GetRole()
	for {
		select {
		case <-s.done:
			return
		case <-s.records.signal:
		}
		if nodes := s.records.take(); nodes != nil {
			s.setNodes(nodes)
		}
		s.refresh()
		if facts := s.newFacts(role); facts != nil || time.Since(touched) >= s.fleet.cfg.Timing.TouchEvery {
			touched = time.Now()
			if err := s.touch(context.Background(), facts, ""); err != nil {
				s.touchFailed(err)
				continue
			}
			if facts != nil {
				role = facts.GetRole()
			}
		}
	}
}

// newFacts returns the node's facts if its role has changed since it was noted; nil otherwise.
func (s *session) newFacts(noted runnerv1.NodeRole) *runnerv1.NodeFacts {
	role := s.role()
	if s.hello.GetNode() == nil || role == noted || role == runnerv1.NodeRole_NODE_ROLE_UNSPECIFIED {
		return nil
	}
	facts := proto.CloneOf(s.hello.GetNode())
	facts.Role = role
	return facts
}

func (s *session) touch(ctx context.Context, facts *runnerv1.NodeFacts, version string) error {
	ctx, cancel := context.WithTimeout(ctx, s.fleet.cfg.Timing.Record)
	defer cancel()
	return s.fleet.deps.Touch(ctx, s.agentID, facts, version)
}

// touchFailed ends a session whose agent has no place here any more. That the store is away is no reason to.
func (s *session) touchFailed(err error) {
	if class := failure.ClassOf(err); class == failure.Denied || class == failure.Conflict {
		s.close(err)
		return
	}
	s.fleet.deps.Log.Warn("agent cannot be noted", "agent_id", s.agentID, "error", err)
}

func (s *session) setNodes(nodes *runnerv1.NodeList) {
	ctx, cancel := context.WithTimeout(context.Background(), s.fleet.cfg.Timing.Record)
	defer cancel()
	if err := s.fleet.deps.SetNodes(ctx, s.clusterID, s.agentID, nodes); err != nil {
		if failure.ClassOf(err) == failure.Conflict { // its node has gone to another Swarm: nothing that it tells is of this cluster
			s.close(err)
			return
		}
		s.fleet.deps.Log.Warn("node list not taken", "agent_id", s.agentID, "cluster_id", s.clusterID, "error", err)
		return
	}
	s.refresh()
	if !s.allowed.Load() { // only a confirmed manager is believed
		return
	}
	for _, n := range nodes.GetNodes() {
		if n.GetLeader() {
			s.fleet.setLeader(s.clusterID, n.GetNodeId())
		}
	}
}

// refresh asks whether the agent may read its cluster's topic, and tells the agent at once if that has changed: as an answer to the heartbeat that it
// last sent.
func (s *session) refresh() {
	ctx, cancel := context.WithTimeout(context.Background(), s.fleet.cfg.Timing.Record)
	defer cancel()
	allowed := s.fleet.deps.ClusterTopicAllowed(ctx, s.agentID)
	if s.allowed.Swap(allowed) == allowed {
		return
	}
	s.mu.Lock()
	sequence := s.heartbeat.GetSequence()
	s.mu.Unlock()
	s.send(&runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_HeartbeatAck{
		HeartbeatAck: &runnerv1.HeartbeatAck{Sequence: sequence, ClusterTopicAllowed: allowed},
	}})
}
