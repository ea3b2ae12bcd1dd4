package engine

import (
	"context"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/internal/quorum"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// maxNodes is how many nodes a NodeList may name.
const maxNodes = 10_000

// Bounds of the contract's NodeFacts, in bytes.
const (
	maxHostname = 253
	maxKernel   = 128
	maxVersion  = 64
	maxAddress  = 64
	maxPlatform = 32
)

// Node returns what the engine said about this node at most 30 s ago, or longer ago while the engine is away. The message is the caller's own.
// Failures: unavailable engine_unreachable if it has never answered, conflict not_in_swarm.
func (e *Engine) Node(ctx context.Context) (*runnerv1.NodeFacts, error) {
	if !e.fresh() {
		if err := e.refresh(ctx); err != nil && ctx.Err() != nil {
			return nil, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.facts == nil {
		return nil, e.lastErr
	}
	return proto.CloneOf(e.facts), nil
}

// fresh says whether what is known is new enough not to ask again.
func (e *Engine) fresh() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	limit := refreshInterval + callTimeout // Run's own refresh comes first
	if e.lastErr != nil {
		limit = retryInterval
	}
	return !e.asked.IsZero() && e.now().Sub(e.asked) < limit
}

// Nodes returns the Swarm's nodes, sorted by id, if this node is a manager, and nil if it is a worker. Failures: as Node's; unavailable no_swarm_leader
// if the managers have lost their quorum.
func (e *Engine) Nodes(ctx context.Context) (*runnerv1.NodeList, error) {
	facts, err := e.Node(ctx)
	if err != nil {
		return nil, err
	}
	if facts.GetRole() != runnerv1.NodeRole_NODE_ROLE_MANAGER {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	nodes, err := e.Client().NodeList(ctx, swarm.NodeListOptions{})
	if err != nil {
		return nil, nodesFailure(err)
	}
	list := &runnerv1.NodeList{SwarmClusterId: facts.GetSwarmClusterId()}
	for _, n := range nodes[:min(len(nodes), maxNodes)] {
		list.Nodes = append(list.Nodes, swarmNode(n))
	}
	slices.SortFunc(list.Nodes, func(a, b *runnerv1.SwarmNode) int { return strings.Compare(a.GetNodeId(), b.GetNodeId()) })
	return list, nil
}

func nodesFailure(err error) error {
	if quorum.Missing(err) {
		return failure.New(failure.Unavailable, WarnNoLeader, "", "list the nodes of the swarm: %w", err).
			WithHint("bring more than half of the swarm's managers back")
	}
	return failure.New(failure.Unavailable, "nodes_unknown", "", "list the nodes of the swarm: %w", err)
}

func swarmNode(n swarm.Node) *runnerv1.SwarmNode {
	return &runnerv1.SwarmNode{
		NodeId:       n.ID,
		Hostname:     n.Description.Hostname,
		Role:         role(n.Spec.Role == swarm.NodeRoleManager),
		Leader:       n.ManagerStatus != nil && n.ManagerStatus.Leader,
		State:        string(n.Status.State),
		Availability: string(n.Spec.Availability),
	}
}

// nodeFacts takes the facts from the engine's /info.
func nodeFacts(info system.Info) (*runnerv1.NodeFacts, error) {
	if info.Swarm.NodeID == "" {
		return nil, notInSwarm(info)
	}
	facts := &runnerv1.NodeFacts{
		NodeId:        info.Swarm.NodeID,
		Hostname:      cut(info.Name, maxHostname),
		Role:          role(info.Swarm.ControlAvailable),
		Address:       cut(info.Swarm.NodeAddr, maxAddress),
		EngineVersion: cut(info.ServerVersion, maxVersion),
		Os:            cut(info.OSType, maxPlatform),
		Architecture:  cut(info.Architecture, maxPlatform),
		Kernel:        cut(info.KernelVersion, maxKernel),
		Cpus:          uint32(max(info.NCPU, 0)),
		MemoryBytes:   uint64(max(info.MemTotal, 0)),
	}
	if info.Swarm.Cluster != nil {
		facts.SwarmClusterId = info.Swarm.Cluster.ID
	}
	return facts, nil
}

func notInSwarm(info system.Info) error {
	state := string(info.Swarm.LocalNodeState)
	if state == "" {
		state = string(swarm.LocalNodeStateInactive)
	}
	f := failure.New(failure.Conflict, WarnNotInSwarm, info.Name, "node %s belongs to no swarm (its swarm state is %q)", info.Name, state)
	if info.Swarm.LocalNodeState == swarm.LocalNodeStateLocked {
		return f.WithHint("unlock it with `docker swarm unlock`")
	}
	return f.WithHint("run `docker swarm init` or `docker swarm join` on it")
}

func role(manager bool) runnerv1.NodeRole {
	if manager {
		return runnerv1.NodeRole_NODE_ROLE_MANAGER
	}
	return runnerv1.NodeRole_NODE_ROLE_WORKER
}

func sameFacts(a, b *runnerv1.NodeFacts) bool {
	return proto.Equal(a, b)
}

// cut shortens what the engine says to the contract's bound.
func cut(s string, n int) string {
	return strings.ToValidUTF8(s[:min(len(s), n)], "")
}
