package rig

import (
	"context"
	"fmt"
	"time"
)

// pollInterval is how often Wait asks.
const pollInterval = 100 * time.Millisecond

// Wait calls f until it returns nil, and fails with f's last error when the limit has passed or ctx ends. The context that f gets ends then too.
func Wait(ctx context.Context, limit time.Duration, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	started := time.Now()
	var last error
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // an error that only says that time is up says less than the one before
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %.1f s for %s: %w", time.Since(started).Seconds(), what, last)
		case <-time.After(pollInterval):
		}
	}
}
