package identity

import (
	"math/rand/v2"
	"time"
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = time.Minute
)

// backoff is exponential with full jitter: each wait is random between minBackoff and a bound that doubles up to maxBackoff, so that the agents of a
// fleet that failed together do not come back together.
type backoff struct{ bound time.Duration }

func (b *backoff) next() time.Duration {
	b.bound = min(max(2*b.bound, 2*minBackoff), maxBackoff)
	return minBackoff + rand.N(b.bound-minBackoff)
}

func (b *backoff) reset() { b.bound = 0 }
