package command

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// worker does the talking for one command.
type worker struct {
	operator Operator
	cfg      Config
	tell     teller
}

// submit offers the command, always under the same idempotency key, until the plane takes or refuses it. An attempt that got no answer may
// have arrived: the key makes the next one find it.
func (w worker) submit(ctx context.Context, request *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
	giveUp := time.Now().Add(w.cfg.SubmitPatience)
	for attempt := 1; ; attempt++ {
		callCtx, cancel := context.WithTimeout(ctx, w.cfg.SubmitAttempt)
		response, err := w.operator.SubmitCommand(callCtx, request)
		cancel()
		if err == nil {
			return response, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		wait := w.cfg.Backoff(attempt)
		if !transient(err) || (attempt > 1 && time.Now().Add(wait).After(giveUp)) {
			return nil, err
		}
		w.tell(func(o Observer) { o.Retrying(err, wait) })
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// watch follows the command's events until its outcome. A broken stream is opened again behind the last event that was seen.
func (w worker) watch(ctx context.Context, commandID string) (*runnerv1.CommandOutcome, error) {
	if w.cfg.Limit > 0 {
		limited, cancel := context.WithTimeout(ctx, w.cfg.Limit)
		defer cancel()
		outcome, err := w.follow(limited, commandID)
		if err != nil && ctx.Err() == nil && limited.Err() != nil {
			return nil, failure.New(failure.Deadline, "no_outcome", commandID, "command %s has no outcome after %s", commandID, w.cfg.Limit).
				WithHint("it may still run: axionctl events --command " + commandID + " --follow")
		}
		return outcome, err
	}
	return w.follow(ctx, commandID)
}

func (w worker) follow(ctx context.Context, commandID string) (outcome *runnerv1.CommandOutcome, err error) {
	request := &planev1.WatchEventsRequest{CommandId: commandID, Follow: true}
	err = Follow(ctx, w.operator, request, w.cfg, FollowHandler{
		Event: func(record *planev1.EventRecord, message proto.Message) bool {
			w.tell(func(o Observer) { o.Event(record, message) })
			outcome, _ = message.(*runnerv1.CommandOutcome)
			return outcome != nil
		},
		Lost:     func(err error, wait time.Duration) { w.tell(func(o Observer) { o.Lost(err, wait) }) },
		Restored: func() { w.tell(func(o Observer) { o.Restored() }) },
	})
	if err == nil && outcome == nil {
		err = failure.New(failure.Unavailable, "no_outcome", commandID, "the control plane has told all events of command %s, but no outcome", commandID)
	}
	return outcome, err
}
