package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

const (
	// swarmPort is where managers listen for each other and for workers.
	swarmPort = "2377"
	// joinTimeout bounds one node's joining.
	joinTimeout = 60 * time.Second
	// askTimeout bounds a question to one manager; one without a majority lets a question wait.
	askTimeout = 3 * time.Second
)

// makeSwarm has the first node make the Swarm and the others join it, one after the other: a manager that joins changes the majority.
func (r *Rig) makeSwarm(ctx context.Context) error {
	first := r.nodes[0]
	if _, err := first.client.SwarmInit(ctx, swarm.InitRequest{ListenAddr: "0.0.0.0:" + swarmPort, AdvertiseAddr: first.address.String(), DefaultAddrPool: []string{swarmPool}, SubnetSize: 24}); err != nil {
		return first.failed("make a Swarm on", err)
	}
	info, err := first.client.SwarmInspect(ctx)
	if err != nil {
		return first.failed("inspect the Swarm on", err)
	}
	for _, n := range r.nodes[1:] {
		token := info.JoinTokens.Manager
		if n.role == Worker {
			token = info.JoinTokens.Worker
		}
		join := swarm.JoinRequest{
			ListenAddr: "0.0.0.0:" + swarmPort, AdvertiseAddr: n.address.String(), JoinToken: token, RemoteAddrs: []string{net.JoinHostPort(first.address.String(), swarmPort)},
		}
		// A manager that joined a moment ago may not be ready to add another.
		if err := Wait(ctx, joinTimeout, n.name+" to join the Swarm", func(ctx context.Context) error { return n.join(ctx, join) }); err != nil {
			return err
		}
	}
	return r.WaitNodes(ctx, joinTimeout)
}

func (n *Node) join(ctx context.Context, request swarm.JoinRequest) error {
	info, err := n.client.Info(ctx)
	if err != nil {
		return err
	}
	switch info.Swarm.LocalNodeState {
	case swarm.LocalNodeStateActive:
		return nil
	case swarm.LocalNodeStateInactive:
		return n.client.SwarmJoin(ctx, request)
	default:
		return fmt.Errorf("it is %s: %s", info.Swarm.LocalNodeState, info.Swarm.Error)
	}
}

// Leader is the Swarm's leader, as a majority of the managers see it. It fails while there is none, as during an election.
func (r *Rig) Leader(ctx context.Context) (*Node, error) {
	managers := r.Managers()
	type answer struct {
		leader string
		err    error
	}
	answers := make(chan answer, len(managers)) // all at once: one without a majority takes its time
	for _, m := range managers {
		go func() {
			leader, err := m.leader(ctx)
			answers <- answer{leader, err}
		}()
	}
	votes := map[string]int{}
	var failures []error
	for range managers {
		a := <-answers
		if a.err != nil {
			failures = append(failures, a.err)
			continue
		}
		votes[a.leader]++
	}
	for name, count := range votes {
		if n := r.Node(name); n != nil && count > len(managers)/2 {
			return n, nil
		}
	}
	return nil, fmt.Errorf("rig %s: no majority of the managers sees a leader: %v: %w", r.name, votes, errors.Join(failures...))
}

// leader is the host name of the Swarm's leader as this manager sees it.
func (n *Node) leader(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	nodes, err := n.client.NodeList(ctx, swarm.NodeListOptions{})
	if err != nil {
		return "", n.failed("list the nodes on", err)
	}
	for _, m := range nodes {
		if m.ManagerStatus != nil && m.ManagerStatus.Leader {
			return m.Description.Hostname, nil
		}
	}
	return "", n.failed("find the leader on", errors.New("there is none"))
}

// WaitLeader waits until the Swarm has a leader and returns it.
func (r *Rig) WaitLeader(ctx context.Context, limit time.Duration) (leader *Node, err error) {
	err = Wait(ctx, limit, "a leader of the Swarm of rig "+r.name, func(ctx context.Context) error {
		leader, err = r.Leader(ctx)
		return err
	})
	return leader, err
}

// WaitNodes waits until the Swarm's leader sees those nodes (none: all) ready, and managers reachable.
func (r *Rig) WaitNodes(ctx context.Context, limit time.Duration, nodes ...*Node) error {
	if len(nodes) == 0 {
		nodes = r.nodes
	}
	return Wait(ctx, limit, "the nodes of rig "+r.name, func(ctx context.Context) error {
		leader, err := r.Leader(ctx)
		if err != nil {
			return err
		}
		list, err := leader.client.NodeList(ctx, swarm.NodeListOptions{})
		if err != nil {
			return err
		}
		ready := map[string]bool{}
		for _, s := range list {
			ready[s.Description.Hostname] = s.Status.State == swarm.NodeStateReady && (s.ManagerStatus == nil || s.ManagerStatus.Reachability == swarm.ReachabilityReachable)
		}
		for _, n := range nodes {
			if !ready[n.name] {
				return fmt.Errorf("%s is not ready", n.name)
			}
		}
		return nil
	})
}
