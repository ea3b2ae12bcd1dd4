package fence

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/axion/runner-agent/test/engineproxy"
)

// TestSleeper: the owner of generation 2 sleeps in the middle of a request while fifteen newer generations run and prune, and wakes up.
func TestSleeper(t *testing.T) {
	for name, hold := range map[string]struct{ method, path string }{
		"with its claim on the way":    {"POST", `/configs/.*/update`},
		"with its manifest on the way": {"POST", `/configs/create`},
		"with its list on the way":     {"GET", `/services\?`},
		"with an update on the way":    {"POST", `/services/[^/]+/update`},
		"with a creation on the way":   {"POST", `/services/create`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			proxy := engineproxy.New(t, engineSocket)
			sleeper, other := r.manager("sleeper", 1, proxy.Client(t)), r.manager("other", 1, r.api)
			other.fence.cfg.SkipUnchanged = true
			other.deploy("c1", 1, services{"a": "1", "b": "1"})
			held := proxy.Hold(hold.method, hold.path, 1)
			old := r.command("c2", 2, services{"a": "2", "b": "1", "c": "2"})
			old.GroupGeneration = 1
			done := make(chan error, 1)
			go func() {
				c, _, err := sleeper.fence.Claim(t.Context(), old)
				if err == nil {
					defer c.Release()
					err = sleeper.apply(t.Context(), c, services{"a": "2", "b": "1", "c": "2"})
				}
				done <- err
			}()
			held.Reached(t)
			other.group = 2
			for generation := uint64(3); generation <= 17; generation++ {
				other.deploy(fmt.Sprint("c", generation), generation, services{"a": fmt.Sprint(generation), "b": "1"})
			}
			held.Land(t)
			if err := <-done; !isLost(err) {
				wantCode(t, err, CodeSuperseded)
			}
			if err := other.fence.round(t.Context(), 2, true); err != nil {
				t.Fatal(err)
			}
			state := r.state()
			if state["a"] != "17 17/1" || !strings.HasPrefix(state["b"], "1 ") || len(state) != 2 {
				t.Errorf("services are %v", state)
			}
			// Whoever it is delivered to knows what became of it; its outcome is not in the head any more, but its generation is enough.
			for _, m := range []*manager{sleeper, other} {
				_, _, err := m.fence.Claim(t.Context(), old)
				wantCode(t, err, CodeSuperseded)
			}
			if o, _, err := other.fence.Look(t.Context(), r.stack, "c17"); err != nil || o == nil || o.Status != StatusSucceeded {
				t.Errorf("the newest is %v, %v", o, err)
			}
			// A manifest that came too late goes with the next outcome.
			other.deploy("c18", 18, services{"a": "18", "b": "1"})
			names, err := manifests(t.Context(), r.api, r.stack)
			if err != nil || len(names) != KeepManifests {
				t.Errorf("%d manifests, %v", len(names), err)
			}
			for _, name := range names {
				if !slices.Contains(r.head().Manifests, name) {
					t.Errorf("manifest %s is left behind", name)
				}
			}
		})
	}
}
