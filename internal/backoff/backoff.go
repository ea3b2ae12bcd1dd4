// Package backoff spaces out attempts that fail: the waits grow exponentially, with full jitter. Full and not partial, because what fails for one agent - a
// plane, a broker - fails for a whole fleet at the same moment, and a fleet must not come back at the same moment.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff gives the waits between attempts: each is random between Floor and a ceiling that doubles from First to Max. It belongs to one goroutine.
type Backoff struct {
	// Floor is the shortest wait; it may be 0.
	Floor time.Duration
	// First is the first wait's ceiling, Max that of the last ones.
	First, Max time.Duration
	// Random returns numbers in [0, 1); nil means math/rand/v2.
	Random func() float64

	ceiling time.Duration // of the wait before; 0 at the beginning
}

// Next returns the wait after one more failure.
func (b *Backoff) Next() time.Duration {
	random := b.Random
	if random == nil {
		random = rand.Float64
	}
	b.ceiling = min(max(2*b.ceiling, b.First), b.Max)
	return b.Floor + time.Duration(random()*float64(max(b.ceiling-b.Floor, 0)))
}

// Wait waits after one more failure. It returns false if ctx ends first.
func (b *Backoff) Wait(ctx context.Context) bool { return Sleep(ctx, b.Next()) }

// Reset begins anew, after a success.
func (b *Backoff) Reset() { b.ceiling = 0 }

// Sleep waits for d. It returns false if ctx ends first.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
