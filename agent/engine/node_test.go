package engine

import (
	"errors"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

func TestNodeFacts(t *testing.T) {
	worker := system.Info{Name: "w1", Swarm: swarm.Info{NodeID: "n1", LocalNodeState: swarm.LocalNodeStateActive}}
	facts, err := nodeFacts(worker)
	if err != nil || facts.GetRole() != runnerv1.NodeRole_NODE_ROLE_WORKER || facts.GetSwarmClusterId() != "" {
		t.Errorf("worker: %v, %v", facts, err)
	}
	long := system.Info{Name: strings.Repeat("é", maxHostname), NCPU: -1, MemTotal: -1, Swarm: swarm.Info{NodeID: "n1"}}
	if facts, err = nodeFacts(long); err != nil || len(facts.GetHostname()) > maxHostname || facts.GetCpus() != 0 || facts.GetMemoryBytes() != 0 {
		t.Errorf("odd values: %v, %v", facts, err)
	}
}

func TestNotInSwarm(t *testing.T) {
	for name, tc := range map[string]struct {
		info system.Info
		hint string
	}{
		"never joined": {system.Info{Name: "h1", Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}}, "docker swarm init"},
		"locked":       {system.Info{Name: "h1", Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateLocked}}, "docker swarm unlock"},
		"says nothing": {system.Info{Name: "h1"}, "docker swarm init"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := nodeFacts(tc.info)
			f := failure.Of(err)
			if f == nil || f.Class != failure.Conflict || f.Code != "not_in_swarm" || !strings.Contains(f.Message, "h1") || !strings.Contains(f.Hint, tc.hint) {
				t.Errorf("got %#v", f)
			}
			e, w := newEngine(t, "unix:///nowhere.sock")
			e.record(nil, err)
			if !w.has(WarnNotInSwarm) || w.has(WarnUnreachable) || !e.Reachable() {
				t.Error("the warning does not say that the engine answers and the Swarm is missing")
			}
			e.record(&runnerv1.NodeFacts{NodeId: "n1"}, nil)
			if w.has(WarnNotInSwarm) {
				t.Error("the warning stays after the node joined")
			}
		})
	}
}

func TestNodesWithoutLeader(t *testing.T) {
	f := failure.Of(nodesFailure(errors.New("rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online.")))
	if f.Class != failure.Unavailable || f.Code != "no_swarm_leader" {
		t.Errorf("got %#v", f)
	}
}
