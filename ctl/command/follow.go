package command

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

// FollowHandler is told of a stream of events.
type FollowHandler struct {
	// Event takes one event, and its message or nil if this version does not know its type; it returns true to end the stream.
	Event func(*planev1.EventRecord, proto.Message) (done bool)
	// Lost: the stream broke and is opened again after wait.
	Lost func(err error, wait time.Duration)
	// Restored: the stream goes on behind the last event.
	Restored func()
}

// openAfter is how long a stream must be without an error to count as open. A plane that has nothing to tell answers with nothing.
const openAfter = time.Second

// Follow streams events. If the request follows, a stream that breaks is taken up again behind the last event that was seen. It returns nil when
// the handler is done or the plane has told all that was asked for, ctx's error when ctx ends, and the last error when the plane refuses or
// stays away for longer than the patience.
func Follow(ctx context.Context, operator Operator, request *planev1.WatchEventsRequest, cfg Config, handler FollowHandler) error {
	f := follower{operator: operator, request: proto.CloneOf(request), handler: handler, cfg: cfg.withDefaults()}
	for {
		err := f.stream(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errDone), err == nil && ends(request):
			return nil
		case err == nil:
			err = failure.New(failure.Unavailable, "stream_ended", "", "the control plane ended the stream of events")
		}
		if err := f.pause(ctx, err); err != nil {
			return err
		}
	}
}

// ends tells requests whose stream the plane ends when all is told. One that follows everything has no end: the plane went away.
func ends(request *planev1.WatchEventsRequest) bool {
	return !request.GetFollow() || request.GetCommandId() != ""
}

// errDone says that the handler has what it waited for.
var errDone = errors.New("done")

// follower is the state of one Follow.
type follower struct {
	operator Operator
	request  *planev1.WatchEventsRequest // After moves along with the events
	handler  FollowHandler
	cfg      Config

	attempt   int       // failed streams in a row
	lostSince time.Time // zero while a stream is open
}

// stream reads one stream to its end; nil is the plane's regular end.
func (f *follower) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	events, err := f.operator.WatchEvents(ctx, f.request)
	if err != nil {
		cancel()
		return err
	}
	received := make(chan receipt)
	var reader sync.WaitGroup
	reader.Go(func() { read(ctx, events, received) })
	defer reader.Wait()
	defer cancel() // ends the stream, and so the reader, when the handler is done
	quiet := time.NewTimer(openAfter)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-quiet.C:
			f.opened()
		case r := <-received:
			if errors.Is(r.err, io.EOF) {
				return nil
			}
			if r.err != nil {
				return r.err
			}
			f.opened()
			if f.take(r.record) {
				return errDone
			}
		}
	}
}

// receipt is what one Recv returned.
type receipt struct {
	record *planev1.EventRecord
	err    error
}

// read hands on what the stream brings until its end or ctx's.
func read(ctx context.Context, events grpc.ServerStreamingClient[planev1.EventRecord], received chan<- receipt) {
	for {
		record, err := events.Recv()
		select {
		case received <- receipt{record, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// take moves the position along and tells the handler of an event that it has not seen; it returns true if that was the last.
func (f *follower) take(record *planev1.EventRecord) bool {
	if record.GetPosition() <= f.request.GetAfter() {
		return false // seen before the stream broke
	}
	f.request.After = record.GetPosition()
	f.attempt = 0
	return f.handler.Event(record, decode(record))
}

// opened notes that the stream is there: an event came, or no error for a while.
func (f *follower) opened() {
	if !f.lostSince.IsZero() {
		f.handler.Restored()
	}
	f.lostSince = time.Time{}
}

// pause waits before the next stream. It returns err if there shall be none.
func (f *follower) pause(ctx context.Context, err error) error {
	if f.lostSince.IsZero() {
		f.lostSince = time.Now()
	}
	if !f.request.GetFollow() || !transient(err) || time.Since(f.lostSince) > f.cfg.ReconnectPatience {
		return err
	}
	f.attempt++
	wait := f.cfg.Backoff(f.attempt)
	f.handler.Lost(err, wait)
	return sleep(ctx, wait)
}

// decode returns the event's message; nil if this version does not know the type or cannot read it.
func decode(record *planev1.EventRecord) proto.Message {
	message, err := envelope.Envelope{Type: record.GetType(), ContentType: envelope.Protobuf, Data: record.GetData()}.Message()
	if err != nil {
		return nil
	}
	return message
}

// codeForgotten is the plane's word for a position that lies before its oldest event: asking again does not help.
const codeForgotten = "events_forgotten"

// transient tells failures after which the same call may succeed.
func transient(err error) bool {
	f := failure.Of(err)
	return (f.Class == failure.Unavailable || f.Class == failure.Deadline) && f.Code != codeForgotten
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
