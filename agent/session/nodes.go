package session

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// watchNodes sends the Swarm's nodes at the beginning of the session and whenever they have changed.
func (s *session) watchNodes() error {
	var told *runnerv1.NodeList
	tick := time.NewTicker(s.client.cfg.Timing.NodesEvery)
	defer tick.Stop()
	for {
		list := s.listNodes()
		if list != nil && !proto.Equal(list, told) {
			s.send(&runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Nodes{Nodes: list}})
			told = list
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return nil
		}
	}
}

// listNodes returns the nodes sorted by id, so that the same nodes in another order are no change; nil if there is nothing to tell.
func (s *session) listNodes() *runnerv1.NodeList {
	ctx, cancel := s.within(nodesTimeout)
	defer cancel()
	list, err := s.client.deps.Nodes(ctx)
	if err != nil {
		s.client.deps.Log.Debug("the Swarm's nodes cannot be listed", "error", err)
		return nil
	}
	if list == nil {
		return nil
	}
	nodes := slices.Clone(list.GetNodes())
	slices.SortFunc(nodes, func(a, b *runnerv1.SwarmNode) int { return strings.Compare(a.GetNodeId(), b.GetNodeId()) })
	return &runnerv1.NodeList{SwarmClusterId: list.GetSwarmClusterId(), Nodes: first(nodes, maxNodes)}
}
