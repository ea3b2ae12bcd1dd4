// Package quorum tells from an engine's error that its Swarm has no leader: more than half of the managers are away, or this one is cut off from them. The
// engine gives such errors no status of their own, so their words decide.
package quorum

import "strings"

// signs are the words of swarmkit's manager/state/raft (errLostQuorum, ErrNoClusterLeader, ErrLostLeadership), and of a call that the engine itself gave up:
// for its first ten seconds a manager without a leader waits for one.
var signs = []string{
	"does not have a leader",
	"no elected cluster leader",
	"node lost leader status",
	"code = DeadlineExceeded",
}

// Missing says whether the engine could not do what was asked because the Swarm has no leader. What was asked may still have been done.
func Missing(err error) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	for _, sign := range signs {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return false
}
