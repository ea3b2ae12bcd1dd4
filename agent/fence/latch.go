package fence

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/axion/runner-agent/proto/failure"
)

// latch is what claims have in common: they are lost for good, and their holders show that they are alive.
type latch struct {
	alive   context.Context // ends, with the failure as its cause, when the claim is lost
	end     context.CancelCauseFunc
	lostErr atomic.Pointer[failure.Error]
}

func (l *latch) open() { l.alive, l.end = context.WithCancelCause(context.Background()) }

// Context returns a context that ends with ctx, or when the claim is lost, with that failure as its cause.
func (l *latch) Context(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.alive, func() { cancel(l.Err()) })
	return ctx, func(cause error) { stop(); cancel(cause) }
}

// Err returns the failure with CodeLost once the claim is lost, and nil before.
func (l *latch) Err() error {
	if err := l.lostErr.Load(); err != nil {
		return err
	}
	return nil
}

// shut loses the claim: whatever is asked of it from now on is refused.
func (l *latch) shut(err *failure.Error) error {
	if l.lostErr.CompareAndSwap(nil, err) {
		l.end(err)
	}
	return l.Err()
}

// keep calls renew every few seconds, until ctx ends or the claim is lost.
func (l *latch) keep(ctx context.Context, renew func()) {
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			renew()
		case <-l.alive.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}
