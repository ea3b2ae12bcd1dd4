package session

import "time"

// backoff decides how long to wait before the next session: full jitter, a random part of a ceiling that doubles with each failure. Full and not
// partial, because the agents of a whole fleet lose their plane at the same moment.
type backoff struct {
	min, max     time.Duration // the ceiling's first and last value
	healthyAfter time.Duration
	random       func() float64 // [0, 1)
	failures     int
}

// next returns the wait after a session that was connected for that long (0: not at all). Only a session that lasted begins anew: one that is
// accepted and broken at once must not be tried ten times a second. The wait is never shorter than hint, what the plane asked for.
func (b *backoff) next(connectedFor, hint time.Duration) time.Duration {
	if connectedFor >= b.healthyAfter {
		b.failures = 0
	}
	ceiling := b.min
	for i := 0; i < b.failures && ceiling < b.max; i++ {
		ceiling *= 2
	}
	ceiling = min(ceiling, b.max)
	b.failures++
	return max(hint, time.Duration(b.random()*float64(ceiling)))
}
