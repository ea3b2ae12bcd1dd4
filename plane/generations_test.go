package plane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/axion/runner-agent/plane/fleet"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

func TestGenerationsComeFromConfirmedManagers(t *testing.T) {
	beat := func(sequence uint64, stacks map[string]uint64) *runnerv1.Heartbeat {
		h := &runnerv1.Heartbeat{Sequence: sequence}
		for stack, n := range stacks {
			h.Stacks = append(h.Stacks, &runnerv1.StackGeneration{Stack: stack, Generation: n})
		}
		return h
	}
	manager := fleet.Session{ID: "s1", AgentID: "a-1", ClusterID: "prod", ClusterTopicAllowed: true, Heartbeat: beat(1, map[string]uint64{"shop": 7})}
	worker := fleet.Session{ID: "s2", AgentID: "a-2", ClusterID: "prod", Heartbeat: beat(1, map[string]uint64{"shop": 99})}
	silent := fleet.Session{ID: "s3", AgentID: "a-3", ClusterID: "prod", ClusterTopicAllowed: true}
	sessions := []fleet.Session{manager, worker, silent}
	var noted []string
	var refuse error
	g := newGenerations(func() []fleet.Session { return sessions }, func(_ context.Context, cluster, stack string, n uint64) error {
		if refuse != nil {
			return refuse
		}
		noted = append(noted, fmt.Sprintf("%s/%s=%d", cluster, stack, n))
		return nil
	}, slog.New(slog.DiscardHandler))
	look := func() []string {
		g.look(t.Context())
		got := noted
		noted = nil
		return got
	}
	if got := look(); !slices.Equal(got, []string{"prod/shop=7"}) {
		t.Errorf("first: %v", got)
	}
	sessions[0].Heartbeat = beat(2, map[string]uint64{"shop": 7})
	if got := look(); len(got) != 0 {
		t.Errorf("nothing new: %v", got)
	}
	refuse = errors.New("the database is away")
	sessions[0].Heartbeat = beat(3, map[string]uint64{"shop": 8})
	look()
	refuse = nil
	if got := look(); !slices.Equal(got, []string{"prod/shop=8"}) {
		t.Errorf("a heartbeat that could not be noted must be looked at again: %v", got)
	}
	refuse = failure.New(failure.Invalid, "generation_too_large", "shop", "too large")
	sessions[0].Heartbeat = beat(4, map[string]uint64{"shop": 9})
	look()
	refuse = nil
	if got := look(); len(got) != 0 {
		t.Errorf("what is not believed is not tried again with the same heartbeat: %v", got)
	}
}
