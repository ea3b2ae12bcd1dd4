package session

import (
	"time"

	"github.com/axion/runner-agent/internal/backoff"
)

// pace decides how long to wait before the next session.
type pace struct {
	backoff      backoff.Backoff
	healthyAfter time.Duration
	// max bounds the waits, and soon those after an attempt that was no burden for the plane.
	max, soon time.Duration
}

// next returns the wait after a session that was connected for that long (0: not at all). Only a session that lasted begins anew: one that is
// accepted and broken at once must not be tried ten times a second. The wait is never shorter than hint, what the plane asked for.
//
// answered says whether somebody took the connection and then no session came of it: a plane that has too much to do already, or does not want this agent. Only
// then the waits grow long. Where nobody answers, or the network broke a session, an attempt costs nobody anything, and the agent is to be back soon after
// the network is.
func (p *pace) next(connectedFor, hint time.Duration, answered bool) time.Duration {
	if connectedFor >= p.healthyAfter {
		p.backoff.Reset()
	}
	p.backoff.Max = p.soon
	if answered && connectedFor == 0 {
		p.backoff.Max = p.max
	}
	return max(hint, p.backoff.Next())
}
