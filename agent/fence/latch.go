package fence

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/axion/runner-agent/proto/failure"
)

// latch is what claims have in common: they are lost for good, and their holders show that they are alive.
type latch struct {
	alive   context.Context // ends, with the failure as its cause, when the claim's work does
	end     context.CancelCauseFunc
	lostErr atomic.Pointer[failure.Error]
}

func (l *latch) open() { l.alive, l.end = context.WithCancelCause(context.Background()) }

// until returns a context that ends with ctx, or when the claim's work does, with what why then says as its cause.
func (l *latch) until(ctx context.Context, why func() error) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.alive, func() { cancel(why()) })
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

// keep calls look every second, until ctx ends or the claim's work does.
func (l *latch) keep(ctx context.Context, look func()) {
	ticker := time.NewTicker(noticeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			look()
		case <-l.alive.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}
