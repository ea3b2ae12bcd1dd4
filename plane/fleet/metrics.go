package fleet

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failurepb"
)

// Metrics is an agent's stream of samples. It ends with the agent's session, or when the agent opens another one.
func (f *Fleet) Metrics(stream runnerv1.Runner_MetricsServer) error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.wg.Done()
	s, err := f.liveOn(stream.Context())
	if err != nil {
		return failurepb.Status(err)
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	s.replaceMetrics(cancel)
	if err := stream.Send(&runnerv1.MetricsControl{Cadence: durationpb.New(f.cfg.MetricsCadence)}); err != nil {
		return err
	}
	read := make(chan error, 1)
	f.wg.Go(func() { // ends with the stream, after this handler
		for {
			batch, err := stream.Recv()
			if err != nil {
				read <- err
				return
			}
			if ctx.Err() != nil {
				return
			}
			s.keepMetrics(batch)
		}
	})
	select {
	case <-ctx.Done():
	case <-read:
	case <-s.done: // Connect says why
	}
	return nil
}

// LatestMetrics returns the newest batch of each connected agent that has sent one, by agent id. The batches are shared: do not change them.
func (f *Fleet) LatestMetrics() map[string]*runnerv1.MetricsBatch {
	latest := make(map[string]*runnerv1.MetricsBatch)
	for _, s := range f.all() {
		s.mu.Lock()
		if s.metrics != nil {
			latest[s.agentID] = s.metrics
		}
		s.mu.Unlock()
	}
	return latest
}

func (s *session) replaceMetrics(cancel context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.endMetrics != nil {
		s.endMetrics()
	}
	s.endMetrics = cancel
}

// keepMetrics keeps a batch until the next one or the session's end.
func (s *session) keepMetrics(batch *runnerv1.MetricsBatch) {
	batch.Containers = first(batch.GetContainers(), maxContainers)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metrics = batch
}
