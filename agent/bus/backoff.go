package bus

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff waits a random time below a limit that doubles with each failure ("full jitter").
type backoff struct {
	base, ceiling time.Duration
	limit         time.Duration
}

// wait sleeps. It returns false when ctx ends first.
func (b *backoff) wait(ctx context.Context) bool {
	b.limit = min(max(b.limit*2, b.base), b.ceiling)
	timer := time.NewTimer(rand.N(b.limit) + time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// reset begins anew.
func (b *backoff) reset() { b.limit = 0 }
