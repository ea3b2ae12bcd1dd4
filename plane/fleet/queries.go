package fleet

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// Session is what the fleet knows of a session at one moment.
type Session struct {
	AgentID, ClusterID string
	// ID is the session's own.
	ID string
	// InstanceID and Version are of the agent's process, Peer is its address.
	InstanceID, Version, Peer string
	// NodeID is the Swarm node as the agent told it in Hello; may be empty.
	NodeID string
	// Role is the node's role as it was told last.
	Role runnerv1.NodeRole
	// Since is when the agent connected, LastHeard when it was heard last.
	Since, LastHeard time.Time
	// Heartbeat is the last one; nil before the first. It is shared: do not change it.
	Heartbeat *runnerv1.Heartbeat
	// ClusterTopicAllowed is whether its manager role is confirmed.
	ClusterTopicAllowed bool
}

// Connected reports whether an agent has a live session.
func (f *Fleet) Connected(agentID string) bool {
	_, err := f.live(agentID)
	return err == nil
}

// Session returns an agent's live session.
func (f *Fleet) Session(agentID string) (Session, bool) {
	s, err := f.live(agentID)
	if err != nil {
		return Session{}, false
	}
	return s.snapshot(), true
}

// Sessions returns all live sessions, by cluster and agent id.
func (f *Fleet) Sessions() []Session {
	all := f.all()
	list := make([]Session, 0, len(all))
	for _, s := range all {
		list = append(list, s.snapshot())
	}
	slices.SortFunc(list, func(a, b Session) int {
		return cmp.Or(strings.Compare(a.ClusterID, b.ClusterID), strings.Compare(a.AgentID, b.AgentID))
	})
	return list
}

// Len returns how many agents have a session.
func (f *Fleet) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sessions)
}

// Warnings returns the warnings of an agent's health as it told them last, worst first; nil if it is not connected.
func (f *Fleet) Warnings(agentID string) []*runnerv1.HealthWarning {
	s, ok := f.Session(agentID)
	if !ok {
		return nil
	}
	list := make([]*runnerv1.HealthWarning, 0, len(s.Heartbeat.GetWarnings()))
	for _, w := range s.Heartbeat.GetWarnings() {
		list = append(list, proto.CloneOf(w))
	}
	slices.SortStableFunc(list, func(a, b *runnerv1.HealthWarning) int { return cmp.Compare(b.GetSeverity(), a.GetSeverity()) })
	return list
}

// PickManager returns a connected agent of the cluster that can do what only a manager can: the first of Managers. Failure: unavailable
// no_manager_connected.
func (f *Fleet) PickManager(clusterID string) (agentID string, err error) {
	managers := f.Managers(clusterID, "")
	if len(managers) == 0 {
		return "", failure.New(failure.Unavailable, "no_manager_connected", clusterID, "no manager of cluster %s is connected", clusterID).
			WithHint("a manager counts once its role is confirmed: by another manager, or by the operator for the first one")
	}
	return managers[0], nil
}

// Managers returns the connected agents of the cluster whose manager role is confirmed, the best first: one that runs the command, if a command is named
// and its last heartbeat told so, then one whose engine answers, then the one on the Swarm's leader.
func (f *Fleet) Managers(clusterID, commandID string) []string {
	f.mu.Lock()
	leader := f.leaders[clusterID]
	f.mu.Unlock()
	rank := map[string]int{}
	var ids []string
	for _, s := range f.Sessions() {
		if s.ClusterID != clusterID || s.Role != runnerv1.NodeRole_NODE_ROLE_MANAGER || !s.ClusterTopicAllowed {
			continue
		}
		ids = append(ids, s.AgentID)
		rank[s.AgentID] = managerRank(s, leader)
		if commandID != "" && slices.Contains(s.Heartbeat.GetRunningCommands(), commandID) {
			rank[s.AgentID] += runsIt
		}
	}
	slices.SortStableFunc(ids, func(a, b string) int { return cmp.Compare(rank[b], rank[a]) })
	return ids
}

// runsIt is more than managerRank gives for anything else.
const runsIt = 10

// managerRank says how well a manager serves. An engine that does not answer is worse than one that does not lead.
func managerRank(s Session, leader string) int {
	rank := 1
	if s.Heartbeat == nil || s.Heartbeat.GetEngineReachable() { // not heard yet counts as well
		rank += 2
	}
	if s.NodeID != "" && s.NodeID == leader {
		rank++
	}
	return rank
}

// Disconnect ends an agent's session, if there is one, because it is not welcome any more (class denied, code disconnected). The agent is told the
// reason and comes back with patience; that it is refused then is the registry's affair: withdraw the identity first.
func (f *Fleet) Disconnect(agentID, reason string) {
	f.mu.Lock()
	s := f.sessions[agentID]
	f.mu.Unlock()
	if s != nil {
		s.close(failure.New(failure.Denied, "disconnected", agentID, "the plane has ended the session of agent %s: %s", agentID, cut(reason, maxReasonBytes)))
	}
}

// RefreshClusterTopic asks at once, and not with the next heartbeat, whether an agent may read its cluster's topic, and tells it.
func (f *Fleet) RefreshClusterTopic(agentID string) {
	if s, err := f.live(agentID); err == nil {
		s.records.poke()
	}
}

func (f *Fleet) setLeader(clusterID, nodeID string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leaders[clusterID] = nodeID
}

// all returns the live sessions in no order.
func (f *Fleet) all() []*session {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*session, 0, len(f.sessions))
	for _, s := range f.sessions {
		if s.isLive() {
			list = append(list, s)
		}
	}
	return list
}

func (s *session) snapshot() Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Session{
		AgentID:             s.agentID,
		ClusterID:           s.clusterID,
		ID:                  s.id,
		InstanceID:          s.hello.GetInstanceId(),
		Version:             s.hello.GetAgentVersion(),
		Peer:                s.peer,
		NodeID:              s.hello.GetNode().GetNodeId(),
		Role:                cmp.Or(s.heartbeat.GetRole(), s.hello.GetNode().GetRole()),
		Since:               s.since,
		LastHeard:           s.heard,
		Heartbeat:           s.heartbeat,
		ClusterTopicAllowed: s.allowed.Load(),
	}
}

func (s *session) role() runnerv1.NodeRole { return s.snapshot().Role }
