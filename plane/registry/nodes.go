package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// maxNodes bounds a node list, as the contract says.
const maxNodes = 10_000

// SetNodes replaces what is known of the nodes of a cluster's Swarm by the list of a confirmed manager, and confirms as managers exactly those agents
// whose nodes it calls managers. It returns the agents for which that changed. Failures: denied node_not_confirmed, if the reporter is no confirmed
// manager; conflict swarm_mismatch; invalid bad_node_list, also when the list does not name the reporter's node as a manager.
func (r *Registry) SetNodes(ctx context.Context, clusterID, reporterAgentID string, list *runnerv1.NodeList) (changed []Agent, err error) {
	managers, err := checkNodeList(list)
	if err != nil {
		return nil, err
	}
	err = r.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := checkReporter(ctx, tx, clusterID, reporterAgentID, managers); err != nil {
			return err
		}
		cluster, err := clusterByID(ctx, tx, clusterID)
		if err != nil {
			return fmt.Errorf("read cluster %s: %w", clusterID, err)
		}
		if err := checkSwarm(cluster, list.GetSwarmClusterId()); err != nil {
			return err
		}
		if err := learnSwarm(ctx, tx, cluster, list.GetSwarmClusterId()); err != nil {
			return err
		}
		if err := writeNodes(ctx, tx, clusterID, managers); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE clusters SET nodes_at = $1 WHERE id = $2`, r.now().UnixNano(), clusterID); err != nil {
			return err
		}
		changed, err = confirmManagers(ctx, tx, clusterID, managers)
		return err
	})
	if err != nil {
		return nil, err
	}
	return changed, nil
}

// checkNodeList returns, by node id, whether a node is a manager.
func checkNodeList(list *runnerv1.NodeList) (map[string]bool, error) {
	bad := func(format string, args ...any) (map[string]bool, error) {
		return nil, failure.New(failure.Invalid, "bad_node_list", "node list", "node list: "+format, args...)
	}
	if n := len(list.GetNodes()); n == 0 || n > maxNodes {
		return bad("it has %d nodes, 1 to %d are allowed", n, maxNodes)
	}
	if !nodePattern.MatchString(list.GetSwarmClusterId()) {
		return bad("the swarm cluster id %q is not one of a swarm", cut(list.GetSwarmClusterId()))
	}
	managers := make(map[string]bool, len(list.GetNodes()))
	for _, n := range list.GetNodes() {
		if !nodePattern.MatchString(n.GetNodeId()) {
			return bad("the node id %q is not one of a swarm", cut(n.GetNodeId()))
		}
		managers[n.GetNodeId()] = n.GetRole() == runnerv1.NodeRole_NODE_ROLE_MANAGER
	}
	return managers, nil
}

func checkReporter(ctx context.Context, q querier, clusterID, agentID string, managers map[string]bool) error {
	reporter, err := agentByID(ctx, q, agentID)
	if err != nil {
		return err
	}
	if reporter.ClusterID != clusterID || reporter.Removed || !reporter.ManagerConfirmed {
		return failure.New(failure.Denied, "node_not_confirmed", agentID, "agent %s is not a confirmed manager of cluster %s", agentID, clusterID)
	}
	if !managers[reporter.NodeID] {
		return failure.New(failure.Invalid, "bad_node_list", agentID, "node list of agent %s: it does not name the agent's own node %s as a manager", agentID, reporter.NodeID)
	}
	return nil
}

// writeNodes writes only what differs: the same list comes with every session.
func writeNodes(ctx context.Context, tx *sql.Tx, clusterID string, managers map[string]bool) error {
	type node struct {
		id      string
		manager bool
	}
	rows, err := tx.QueryContext(ctx, `SELECT node_id, manager FROM swarm_nodes WHERE cluster_id = $1`, clusterID)
	if err != nil {
		return err
	}
	known, err := collect(rows, func(row scanner) (node, error) {
		var n node
		var manager int
		err := row.Scan(&n.id, &manager)
		n.manager = manager != 0
		return n, err
	})
	if err != nil {
		return err
	}
	same := make(map[string]bool, len(known))
	for _, n := range known {
		manager, listed := managers[n.id]
		if same[n.id] = listed && manager == n.manager; same[n.id] {
			continue
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM swarm_nodes WHERE cluster_id = $1 AND node_id = $2`, clusterID, n.id); err != nil {
			return err
		}
	}
	for id, manager := range managers {
		if same[id] {
			continue
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO swarm_nodes (cluster_id, node_id, manager) VALUES ($1, $2, $3)`, clusterID, id, toInt(manager)); err != nil {
			return err
		}
	}
	return nil
}

// confirmManagers makes the agents' confirmation agree with the list and returns those for which it changed.
func confirmManagers(ctx context.Context, tx *sql.Tx, clusterID string, managers map[string]bool) ([]Agent, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+agentColumns+` FROM agents a WHERE a.cluster_id = $1 AND a.removed_at = 0 ORDER BY a.id`, clusterID)
	if err != nil {
		return nil, err
	}
	agents, err := collect(rows, scanAgent)
	if err != nil {
		return nil, err
	}
	var changed []Agent
	for _, a := range agents {
		if a.ManagerConfirmed == managers[a.NodeID] {
			continue
		}
		a.ManagerConfirmed = managers[a.NodeID]
		if _, err := tx.ExecContext(ctx, `UPDATE agents SET manager_confirmed = $1 WHERE id = $2`, toInt(a.ManagerConfirmed), a.ID); err != nil {
			return nil, err
		}
		changed = append(changed, a)
	}
	return changed, nil
}

func nodeInList(ctx context.Context, q querier, clusterID, nodeID string) (listed, error) {
	var manager int
	err := q.QueryRowContext(ctx, `SELECT manager FROM swarm_nodes WHERE cluster_id = $1 AND node_id = $2`, clusterID, nodeID).Scan(&manager)
	if errors.Is(err, sql.ErrNoRows) {
		return listed{}, nil
	}
	if err != nil {
		return listed{}, fmt.Errorf("read node %s of cluster %s: %w", nodeID, clusterID, err)
	}
	return listed{member: true, manager: manager != 0}, nil
}

func hasConfirmedManager(ctx context.Context, q querier, clusterID string) (bool, error) {
	var n int
	err := q.QueryRowContext(ctx, `SELECT COUNT(*) FROM agents WHERE cluster_id = $1 AND removed_at = 0 AND manager_confirmed = 1`, clusterID).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("count the managers of cluster %s: %w", clusterID, err)
	}
	return n > 0, nil
}

// checkSwarm refuses a node of another Swarm. A worker does not know its Swarm's id and sends none.
func checkSwarm(cluster Cluster, swarmID string) error {
	if swarmID == "" || cluster.SwarmID == "" || swarmID == cluster.SwarmID {
		return nil
	}
	return failure.New(failure.Conflict, "swarm_mismatch", cluster.ID,
		"cluster %s is swarm %s, and this node belongs to swarm %s", cluster.ID, cluster.SwarmID, swarmID).
		WithHint("make a token for another cluster; or, if the swarm was made anew, first remove the cluster's old agents with `axionctl agents rm`")
}

// learnSwarm keeps the Swarm's id when it is told for the first time.
func learnSwarm(ctx context.Context, tx *sql.Tx, cluster Cluster, swarmID string) error {
	if swarmID == "" || cluster.SwarmID != "" {
		return nil
	}
	if _, err := tx.ExecContext(ctx, `UPDATE clusters SET swarm_id = $1 WHERE id = $2`, swarmID, cluster.ID); err != nil {
		return fmt.Errorf("keep the swarm id of cluster %s: %w", cluster.ID, err)
	}
	return nil
}

func toInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
