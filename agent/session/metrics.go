package session

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/axion/runner-agent/internal/backoff"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// reasonGrace is how long the end of another stream waits for Connect to tell the reason: a plane that ends a session says it there.
const reasonGrace = time.Second

// streamError marks an error of the Metrics stream, as opposed to one of the source of the metrics.
type streamError struct{ error }

func (e streamError) Unwrap() error { return e.error }

// metrics keeps the Metrics stream. A broken stream is a broken session; a source that fails is asked again after a while, and the session goes on.
func (s *session) metrics() error {
	for {
		err := s.streamMetrics()
		var broken streamError
		switch {
		case s.ctx.Err() != nil:
			return nil
		case status.Code(err) == codes.Unimplemented:
			s.client.deps.Log.Info("the plane takes no metrics")
			return nil
		case errors.As(err, &broken):
			backoff.Sleep(s.ctx, reasonGrace)
			return s.explain(broken.error)
		}
		s.client.deps.Log.Warn("the source of metrics failed", "error", err, "retry_in", s.client.cfg.Timing.MetricsRetry)
		backoff.Sleep(s.ctx, s.client.cfg.Timing.MetricsRetry)
	}
}

func (s *session) streamMetrics() error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	stream, err := s.rpc.Metrics(ctx)
	if err != nil {
		return streamError{err}
	}
	cadence := make(chan time.Duration, 1)
	read := make(chan error, 1)
	go func() {
		err := s.readCadence(stream, cadence)
		cancel()
		read <- err
	}()
	var unsent atomic.Bool
	err = s.client.deps.Metrics.Stream(ctx, cadence, func(batch *runnerv1.MetricsBatch) error {
		batch.Containers = first(batch.Containers, maxContainers)
		err := stream.Send(batch)
		if err != nil {
			unsent.Store(true) // a failed Send ends the stream; its reader gets the reason
		}
		return err
	})
	if unsent.Load() || ctx.Err() != nil {
		return streamError{<-read}
	}
	cancel()
	<-read
	if err == nil {
		err = errors.New("it ended")
	}
	return err
}

// readCadence hands on the newest cadence that the plane wants, until the stream ends.
func (s *session) readCadence(stream runnerv1.Runner_MetricsClient, cadence chan time.Duration) error {
	for {
		msg, err := stream.Recv()
		if err != nil {
			return err
		}
		if msg.GetCadence() == nil {
			continue
		}
		d := min(max(msg.GetCadence().AsDuration(), s.client.cfg.Timing.MinHeartbeat), s.client.cfg.Timing.MaxHeartbeat)
		select {
		case <-cadence: // nobody has taken the last one yet
		default:
		}
		cadence <- d // only this goroutine sends: there is room
	}
}
