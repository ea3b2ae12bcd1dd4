package operator

import (
	"context"
	"strings"

	"github.com/axion/runner-agent/proto/failure"
)

// maxNamed is how many clusters a failure names.
const maxNamed = 10

// cluster returns the cluster that is meant: the named one if it exists, else the only one.
func (s *Server) cluster(ctx context.Context, id string) (string, error) {
	clusters, err := s.deps.Registry.Clusters(ctx)
	if err != nil {
		return "", err
	}
	var ids []string
	for _, c := range clusters {
		if c.ID == id {
			return id, nil
		}
		ids = append(ids, c.ID)
	}
	switch {
	case len(ids) == 0:
		return "", invalid("no_cluster", id, "the plane knows no cluster").
			WithHint("make a join token with `axionctl token create --cluster NAME` and start agents with it")
	case id != "":
		return "", invalid("no_such_cluster", id, "there is no cluster %q", shorten(id)).WithHint("the plane knows " + list(ids))
	case len(ids) > 1:
		return "", invalid("ambiguous_cluster", "", "the plane knows %d clusters, and the request names none", len(ids)).WithHint("name one of " + list(ids))
	}
	return ids[0], nil
}

// agent returns the agent's cluster; an agent that was removed does not count.
func (s *Server) agent(ctx context.Context, id string) (clusterID string, err error) {
	a, err := s.deps.Registry.Agent(ctx, id)
	if err != nil {
		return "", err
	}
	if a.Removed {
		return "", invalid("agent_removed", id, "agent %s was removed", id)
	}
	return a.ClusterID, nil
}

// session returns a connected agent: the named one, else a manager of the cluster that is meant.
func (s *Server) session(ctx context.Context, agentID, clusterID string) (string, error) {
	if agentID == "" {
		id, err := s.cluster(ctx, clusterID)
		if err != nil {
			return "", err
		}
		return s.deps.Fleet.PickManager(id)
	}
	have, err := s.agent(ctx, agentID)
	if err != nil {
		return "", err
	}
	if clusterID != "" && clusterID != have {
		return "", invalid("wrong_cluster", agentID, "agent %s belongs to cluster %s, not to %q", agentID, have, shorten(clusterID))
	}
	if !s.deps.Fleet.Connected(agentID) {
		return "", failure.New(failure.Unavailable, "agent_not_connected", agentID, "agent %s is not connected", agentID).
			WithHint("see when it was last seen with `axionctl agents`")
	}
	return agentID, nil
}

func list(ids []string) string {
	if len(ids) > maxNamed {
		return strings.Join(ids[:maxNamed], ", ") + ", …"
	}
	return strings.Join(ids, ", ")
}

// shorten keeps a caller's text short where it is quoted.
func shorten(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
