package operator

import (
	"cmp"
	"context"
	"slices"

	"github.com/axion/runner-agent/plane/registry"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// ListAgents lists the agents by cluster and host name.
func (s *Server) ListAgents(ctx context.Context, req *planev1.ListAgentsRequest) (*planev1.ListAgentsResponse, error) {
	agents, err := s.deps.Registry.Agents(ctx, req.GetClusterId())
	if err != nil {
		return nil, s.answer(ctx, "ListAgents", err)
	}
	alarms, err := s.deps.Ledger.Alarms(ctx, req.GetClusterId())
	if err != nil {
		return nil, s.answer(ctx, "ListAgents", err)
	}
	clusters := alarmWarnings(alarms)
	slices.SortStableFunc(agents, func(a, b registry.Agent) int {
		return cmp.Or(cmp.Compare(a.ClusterID, b.ClusterID), cmp.Compare(a.Facts.GetHostname(), b.Facts.GetHostname()), cmp.Compare(a.ID, b.ID))
	})
	resp := &planev1.ListAgentsResponse{}
	for _, a := range agents {
		m := s.agentMessage(a)
		if w := clusters[a.ClusterID]; w != nil && a.ManagerConfirmed { // one of those that told it
			m.Warnings = append([]*runnerv1.HealthWarning{w}, m.GetWarnings()...)
		}
		resp.Agents = append(resp.Agents, m)
	}
	return resp, nil
}

func (s *Server) agentMessage(a registry.Agent) *planev1.Agent {
	return &planev1.Agent{
		Id: a.ID, ClusterId: a.ClusterID, Node: a.Facts, Version: a.Version, Connected: s.deps.Fleet.Connected(a.ID), LastSeen: timestamp(a.LastSeen),
		EnrolledAt: timestamp(a.EnrolledAt), CertificateNotAfter: timestamp(a.CertificateNotAfter), Warnings: s.deps.Fleet.Warnings(a.ID),
		ManagerConfirmed: a.ManagerConfirmed,
	}
}

// RemoveAgent takes an agent out, in an order in which every failure can be repeated: first its certificates are revoked, so that it cannot come back, then
// its session ends, then what it has on Kafka goes. An agent that was removed already is taken out of Kafka again.
func (s *Server) RemoveAgent(ctx context.Context, req *planev1.RemoveAgentRequest) (*planev1.RemoveAgentResponse, error) {
	agent, err := s.deps.Registry.Agent(ctx, req.GetId())
	if err == nil {
		err = s.deps.Registry.Remove(ctx, agent.ID)
	}
	if err != nil {
		return nil, s.answer(ctx, "RemoveAgent", err)
	}
	s.deps.Fleet.Disconnect(agent.ID, "removed by an operator")
	if err := s.deps.Kafka.Remove(ctx, agent.ClusterID, agent.ID); err != nil {
		f := failure.New(failure.Unavailable, "kafka_unavailable", agent.ID,
			"agent %s is removed and disconnected, but its access to Kafka could not be taken away: %w", agent.ID, err).WithHint("repeat the removal")
		return nil, s.answer(ctx, "RemoveAgent", f)
	}
	s.deps.Log.Info("agent removed", "agent_id", agent.ID, "cluster_id", agent.ClusterID)
	return &planev1.RemoveAgentResponse{}, nil
}

// GetMetrics returns the newest samples.
func (s *Server) GetMetrics(_ context.Context, req *planev1.GetMetricsRequest) (*planev1.GetMetricsResponse, error) {
	batches := s.deps.Fleet.LatestMetrics()
	if id := req.GetAgentId(); id != "" {
		one := map[string]*runnerv1.MetricsBatch{}
		if b, ok := batches[id]; ok {
			one[id] = b
		}
		batches = one
	}
	return &planev1.GetMetricsResponse{Batches: batches}, nil
}
