package variables

import (
	"slices"
	"strings"
	"testing"
)

// The lists are compared with the programs' own in agent/config and cmd/axion-plane.
func TestLists(t *testing.T) {
	all := slices.Concat(Plane(), Agent())
	for _, name := range all {
		if !strings.HasPrefix(name, "AXION_PLANE_") || OfPlane(name) == OfAgent(name) {
			t.Errorf("%s: of the plane %v, of the agent %v", name, OfPlane(name), OfAgent(name))
		}
	}
	if !slices.IsSorted(Plane()) || !slices.IsSorted(Agent()) {
		t.Error("the lists are not sorted")
	}
	if OfPlane("AXION_PLANE_LISSTEN") || OfAgent("AXION_PLANE_ADRESS") {
		t.Error("a misspelt one is known")
	}
}
