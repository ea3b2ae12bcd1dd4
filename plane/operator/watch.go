package operator

import (
	"context"

	"google.golang.org/grpc"

	"github.com/axion/runner-agent/plane/ledger"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// maxWatchers is how many calls of WatchEvents may be open at once.
	maxWatchers = 256
	// watchPage is how many events are read from the ledger at once. A slow reader holds one page, nothing more: the ledger is its queue.
	watchPage = 100
)

// WatchEvents streams the stored events and then, if asked, those to come: each once, in the order of their positions.
func (s *Server) WatchEvents(req *planev1.WatchEventsRequest, stream grpc.ServerStreamingServer[planev1.EventRecord]) error {
	select {
	case s.watchers <- struct{}{}:
		defer func() { <-s.watchers }()
	default:
		return s.answer(stream.Context(), "WatchEvents", failure.New(failure.Unavailable, "too_many_watchers", "", "%d calls watch events already", maxWatchers))
	}
	return s.answer(stream.Context(), "WatchEvents", s.watch(stream.Context(), req, stream.Send))
}

func (s *Server) watch(ctx context.Context, req *planev1.WatchEventsRequest, send func(*planev1.EventRecord) error) error {
	w := watcher{server: s, req: req, send: send, after: req.GetAfter()}
	oldest, last, err := s.deps.Ledger.Positions(ctx)
	if err != nil {
		return err
	}
	if req.GetFollow() && req.GetCommandId() == "" && w.after == 0 {
		w.after = last
	}
	if w.after == 0 {
		w.after, w.whole = oldest-1, last // what was forgotten before the beginning is no loss
	}
	if err := w.checkCommand(ctx); err != nil {
		return err
	}
	if !req.GetFollow() {
		_, err := w.drain(ctx, last)
		return err
	}
	for {
		changed := s.deps.Ledger.EventsChanged() // taken before reading: an event that is stored meanwhile wakes us
		ended, err := w.drain(ctx, 0)
		if err != nil || ended {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.server.stopping:
			return failure.New(failure.Unavailable, "plane_shutdown", "", "the plane is shutting down")
		case <-changed:
		}
	}
}

// watcher is one call of WatchEvents.
type watcher struct {
	server *Server
	req    *planev1.WatchEventsRequest
	send   func(*planev1.EventRecord) error
	after  uint64 // position of the last event that was sent or passed over
	whole  uint64 // behind this position nothing had been forgotten when the call began
}

// checkCommand refuses to watch a command of which nothing is known: it would wait for ever. A command that was sent by hand is known by its events.
func (w *watcher) checkCommand(ctx context.Context) error {
	id := w.req.GetCommandId()
	if id == "" {
		return nil
	}
	_, err := w.server.deps.Ledger.Command(ctx, id)
	if failure.ClassOf(err) != failure.Invalid {
		return err
	}
	events, listErr := w.server.deps.Ledger.Events(ctx, ledger.Filter{CommandID: id, Limit: 1})
	if listErr != nil {
		return listErr
	}
	if len(events) == 0 {
		return err
	}
	return nil
}

// drain sends the stored events after w.after, up to the given position (0: all), and reports whether the stream has come to its end: after the outcome of
// the command that is watched, or if that command is closed and its outcome was forgotten.
func (w *watcher) drain(ctx context.Context, upTo uint64) (ended bool, err error) {
	closed, err := w.commandClosed(ctx) // asked before reading: the outcome of a closed command is among what is read
	if err != nil {
		return false, err
	}
	for {
		_, last, err := w.server.deps.Ledger.Positions(ctx)
		if err != nil {
			return false, err
		}
		events, err := w.server.deps.Ledger.Events(ctx, ledger.Filter{
			CommandID: w.req.GetCommandId(), ClusterID: w.req.GetClusterId(), After: w.after, Limit: watchPage,
		})
		if err != nil {
			return false, err
		}
		if err := w.checkNotTooSlow(ctx); err != nil {
			return false, err
		}
		for _, e := range events {
			if upTo != 0 && e.Position > upTo {
				return true, nil
			}
			if err := w.send(record(e)); err != nil {
				return false, err
			}
			w.after = e.Position
			if w.req.GetCommandId() != "" && e.IsOutcomeOf(w.req.GetCommandId()) {
				return true, nil
			}
		}
		if len(events) == 0 {
			w.after = max(w.after, last) // up to there is nothing for this watcher
			return closed, nil
		}
	}
}

func (w *watcher) commandClosed(ctx context.Context) (bool, error) {
	if w.req.GetCommandId() == "" {
		return false, nil
	}
	c, err := w.server.deps.Ledger.Command(ctx, w.req.GetCommandId())
	if failure.ClassOf(err) == failure.Invalid {
		return false, nil
	}
	return err == nil && !c.Open(), err
}

// checkNotTooSlow ends the stream of a reader that is so slow that the ledger has forgotten what it has not read yet: a gap must not go unnoticed.
func (w *watcher) checkNotTooSlow(ctx context.Context) error {
	oldest, _, err := w.server.deps.Ledger.Positions(ctx)
	if err != nil {
		return err
	}
	forgotten := w.after+1 < oldest
	if !forgotten {
		forgotten, err = w.server.deps.Ledger.Forgotten(ctx, w.req.GetClusterId(), max(w.after, w.whole))
		if err != nil {
			return err
		}
	}
	if forgotten {
		return failure.New(failure.Unavailable, "events_forgotten", "", "events after position %d are no longer kept; the oldest has position %d", w.after, oldest).
			WithHint("begin again without a position, and read faster")
	}
	return nil
}

func record(e ledger.Event) *planev1.EventRecord {
	return &planev1.EventRecord{
		Position: e.Position, Id: e.ID, Type: e.Type, ClusterId: e.ClusterID, AgentId: e.AgentID, Subject: e.Subject, CausationId: e.CausationID,
		CorrelationId: e.CorrelationID, Time: timestamp(e.Time), Data: e.Data,
	}
}
