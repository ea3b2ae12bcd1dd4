package fence

import (
	"context"
	"errors"

	"github.com/axion/runner-agent/proto/failure"
)

// Cancel has the command end as cancelled, whoever works on it or nobody yet: its id is put into the stack's head by compare-and-swap. When Cancel has returned nil, the
// command can have no other outcome than that, however often it is delivered and whoever dies - but for one that is superseded by a newer generation. A command that
// has an outcome is refused with CodeDecided. An id that no command ever has does no harm, and is dropped in time.
func (f *Fence) Cancel(ctx context.Context, stack, command string) error {
	api := f.deps.Client()
	sent := false // a change that may have taken effect
	for range swapAttempts {
		at, err := read(ctx, api, stack)
		if err != nil {
			return err
		}
		if at != nil {
			o, decided := at.head.outcome(command)
			switch {
			case decided && sent && o.Status == StatusCancelled:
				return nil
			case decided:
				return failure.New(failure.Conflict, CodeDecided, stack, "command %s has ended already: %s", command, o.Status)
			case at.head.isCancelled(command):
				return nil
			}
		}
		next := f.cancelling(at, stack, command)
		if at, err = f.bury(ctx, api, at); err != nil {
			return err
		}
		if _, err = swap(ctx, api, at, next); !errors.Is(err, errMoved) {
			return err
		}
		sent = true
	}
	return keepsMoving(stack)
}

// cancelling is the head with the cancellation. A stack that has no head gets one that says nothing else.
func (f *Fence) cancelling(at *stored, stack, command string) Head {
	next := Head{Stack: stack, Owner: f.cfg.Owner, Phase: Decided, Removed: f.deps.Now()}
	if at != nil {
		next = at.head.clone()
		if next.Dead {
			next.Epoch++
			next.Dead, next.Removed = false, f.deps.Now()
		}
	}
	next.Cancelled = append(next.Cancelled, command)
	next.Cancelled = next.Cancelled[max(0, len(next.Cancelled)-KeepCancelled):]
	return next
}
