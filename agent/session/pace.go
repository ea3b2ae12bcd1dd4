package session

import (
	"time"

	"github.com/axion/runner-agent/internal/backoff"
)

// pace decides how long to wait before the next session.
type pace struct {
	backoff      backoff.Backoff
	healthyAfter time.Duration
}

// next returns the wait after a session that was connected for that long (0: not at all). Only a session that lasted begins anew: one that is
// accepted and broken at once must not be tried ten times a second. The wait is never shorter than hint, what the plane asked for.
func (p *pace) next(connectedFor, hint time.Duration) time.Duration {
	if connectedFor >= p.healthyAfter {
		p.backoff.Reset()
	}
	return max(hint, p.backoff.Next())
}
