package agent

import (
	"testing"
	"time"

	"github.com/axion/runner-agent/agent/fence"
)

func TestStackGenerations(t *testing.T) {
	removed := time.Unix(1e9, 0)
	heads := []fence.Head{{Stack: "shop", Generation: 3, Epoch: 7}, {Stack: "cancelled", Removed: removed}, {Stack: "gone", Generation: 2, Removed: removed}}
	got := stackGenerations(heads)
	if len(got) != 2 || got[0].GetStack() != "shop" || got[0].GetGeneration() != 3 || got[0].GetEpoch() != 7 || got[0].GetRemovedAt() != nil ||
		got[1].GetStack() != "gone" || !got[1].GetRemovedAt().AsTime().Equal(removed) {
		t.Errorf("told: %v", got)
	}
	if got := stackGenerations(make([]fence.Head, 5)); len(got) != 0 {
		t.Errorf("heads without a generation: %v", got)
	}
	many := make([]fence.Head, maxStacks+1)
	for i := range many {
		many[i].Generation = 1
	}
	if got := stackGenerations(many); len(got) != maxStacks {
		t.Errorf("told %d stacks", len(got))
	}
}
