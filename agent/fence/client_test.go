package fence

import (
	"testing"

	"github.com/docker/docker/api/types/swarm"
)

// TestTombstoneStopsRollback: a tombstone that Swarm's own rollback could take off would protect nobody.
func TestTombstoneStopsRollback(t *testing.T) {
	f := &fenced{claim: &Claim{label: "3/1"}}
	for action, want := range map[string]string{
		swarm.UpdateFailureActionRollback: swarm.UpdateFailureActionPause,
		swarm.UpdateFailureActionPause:    swarm.UpdateFailureActionPause,
		swarm.UpdateFailureActionContinue: swarm.UpdateFailureActionContinue,
	} {
		spec := swarm.ServiceSpec{UpdateConfig: &swarm.UpdateConfig{FailureAction: action, Parallelism: 2}}
		marked := f.tombstone(spec)
		if marked.Labels[LabelTombstone] != "3/1" || marked.UpdateConfig.FailureAction != want || marked.UpdateConfig.Parallelism != 2 {
			t.Errorf("%s: %+v", action, marked.UpdateConfig)
		}
		if spec.UpdateConfig.FailureAction != action || spec.Labels != nil {
			t.Errorf("%s: the listed spec was changed", action)
		}
	}
	if marked := f.tombstone(swarm.ServiceSpec{}); marked.UpdateConfig != nil {
		t.Error("a service without update settings pauses by default and keeps none")
	}
}
