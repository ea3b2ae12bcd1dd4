package quorum

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestMissing(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want bool
	}{
		"nothing":                {nil, false},
		"no quorum":              {errors.New("Error response from daemon: rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online."), true},
		"no leader yet":          {errors.New("rpc error: code = Unavailable desc = raft: no elected cluster leader"), true},
		"stepped down meanwhile": {fmt.Errorf("update: %w", errors.New("raft: failed to process the request: node lost leader status")), true},
		"the engine gave up":     {errors.New("rpc error: code = DeadlineExceeded desc = context deadline exceeded"), true},
		"the caller gave up":     {context.DeadlineExceeded, false},
		"something else":         {errors.New("rpc error: code = Unknown desc = update out of sequence"), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Missing(tc.err); got != tc.want {
				t.Errorf("%v: %t", tc.err, got)
			}
		})
	}
}
