package plane

import (
	"context"
	"slices"

	"github.com/axion/runner-agent/plane/broker"
	"github.com/axion/runner-agent/plane/registry"
	"github.com/axion/runner-agent/proto/failure"
)

// directory tells whose commands a topic carries and which cluster an agent belongs to.
type directory struct{ registry *registry.Registry }

// Owner implements deadletters.Directory.
func (d directory) Owner(ctx context.Context, topic string) (clusterID, agentID string, ok bool, err error) {
	id, ok := broker.CommandTopicID(topic)
	if !ok {
		return "", "", false, nil
	}
	if broker.IsAgentID(id) {
		clusterID, ok, err = d.Cluster(ctx, id)
		return clusterID, id, ok, err
	}
	clusters, err := d.registry.Clusters(ctx)
	return id, "", slices.ContainsFunc(clusters, func(c registry.Cluster) bool { return c.ID == id }), err
}

// Cluster implements deadletters.Directory.
func (d directory) Cluster(ctx context.Context, agentID string) (clusterID string, ok bool, err error) {
	agent, err := d.registry.Agent(ctx, agentID)
	if failure.ClassOf(err) == failure.Invalid {
		return "", false, nil // no such agent
	}
	return agent.ClusterID, err == nil && !agent.Removed, err
}

// swarms tells the Swarm of each cluster.
func swarms(r *registry.Registry) func(context.Context) (map[string]string, error) {
	return func(ctx context.Context) (map[string]string, error) {
		clusters, err := r.Clusters(ctx)
		ids := make(map[string]string, len(clusters))
		for _, c := range clusters {
			ids[c.ID] = c.SwarmID
		}
		return ids, err
	}
}
