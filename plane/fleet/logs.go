package fleet

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// logStreamKey is the metadata key in which an agent names the OpenLogs that its Logs stream answers.
const logStreamKey = "axion-log-stream"

// logStream joins a reader (StreamLogs) with an agent's Logs stream.
type logStream struct {
	session *session
	arrived chan struct{}           // closed by the handler when the agent's stream is there
	batches chan *runnerv1.LogBatch // from the handler; unbuffered, so that a slow reader holds the agent's stream up
	broken  chan error              // from the handler: the stream has ended; room for one
	left    chan struct{}           // closed by the reader
	claimed bool                    // a Logs stream has taken it; guarded by Fleet.mu
}

// StreamLogs opens a log on an agent and calls send with the lines in order until the log ends (nil), the reader's ctx ends, send fails, or something
// breaks. The stream id is chosen here. send may be slow: it holds up only its own log. Failures: unavailable agent_not_connected, agent_disconnected,
// too_many_log_streams, log_stream_not_opened and log_stream_broken; invalid log_batch_too_large; and whatever the agent tells.
func (f *Fleet) StreamLogs(ctx context.Context, agentID string, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
	s, err := f.live(agentID)
	if err != nil {
		return err
	}
	if err := s.takeLogSlot(); err != nil {
		return err
	}
	defer s.releaseLogSlot()
	open = proto.CloneOf(open)
	open.StreamId = newID()
	l := &logStream{
		session: s,
		arrived: make(chan struct{}),
		batches: make(chan *runnerv1.LogBatch),
		broken:  make(chan error, 1),
		left:    make(chan struct{}),
	}
	f.mu.Lock()
	f.logs[open.GetStreamId()] = l
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.logs, open.GetStreamId())
		f.mu.Unlock()
		close(l.left)
	}()
	s.send(&runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_OpenLogs{OpenLogs: open}})
	if err := l.await(ctx, f.cfg.Timing.OpenLogs); err != nil {
		return err
	}
	return l.forward(ctx, send)
}

// await waits for the agent's stream.
func (l *logStream) await(ctx context.Context, patience time.Duration) error {
	late := time.NewTimer(patience)
	defer late.Stop()
	agentID := l.session.agentID
	select {
	case <-l.arrived:
		return nil
	case <-ctx.Done():
		return failure.Of(ctx.Err())
	case <-l.session.done:
		return l.session.gone()
	case <-late.C:
		return failure.New(failure.Unavailable, "log_stream_not_opened", agentID, "agent %s has not opened the log stream within %s", agentID, patience)
	}
}

// forward hands batches to the reader until one says that it is the last.
func (l *logStream) forward(ctx context.Context, send func(*runnerv1.LogBatch) error) error {
	agentID := l.session.agentID
	for {
		select {
		case batch := <-l.batches:
			if size := textSize(batch); size > maxLogBatchBytes {
				return failure.New(failure.Invalid, "log_batch_too_large", agentID, "agent %s sent %d bytes of log at once, more than %d", agentID, size, maxLogBatchBytes)
			}
			if len(batch.GetLines()) > 0 {
				if err := send(&runnerv1.LogBatch{Lines: batch.GetLines()}); err != nil {
					return err
				}
			}
			if batch.GetEnd() || batch.GetFailure() != nil {
				return failurepb.ToError(batch.GetFailure())
			}
		case err := <-l.broken:
			return failure.New(failure.Unavailable, "log_stream_broken", agentID, "the log stream of agent %s broke: %w", agentID, err)
		case <-ctx.Done():
			return failure.Of(ctx.Err())
		case <-l.session.done:
			return l.session.gone()
		}
	}
}

func textSize(batch *runnerv1.LogBatch) (n int) {
	for _, line := range batch.GetLines() {
		n += len(line.GetText())
	}
	return n
}

// Logs is an agent's log stream: it finds the reader by the stream's id and hands it the batches.
func (f *Fleet) Logs(stream runnerv1.Runner_LogsServer) error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.wg.Done()
	s, err := f.liveOn(stream.Context())
	if err != nil {
		return failurepb.Status(err)
	}
	l, err := f.claimLogs(stream.Context(), s)
	if err != nil {
		return failurepb.Status(err)
	}
	close(l.arrived)
	f.wg.Go(func() { // ends with the stream, after this handler
		for {
			batch, err := stream.Recv()
			if err != nil {
				l.broken <- err
				return
			}
			select {
			case l.batches <- batch:
			case <-l.left:
				return
			}
		}
	})
	select {
	case <-l.left:
	case <-stream.Context().Done():
		return nil
	}
	// The agent may be in the middle of a line: say it in words, the end of the stream follows.
	if err := stream.Send(&runnerv1.LogControl{Cancel: true}); err != nil {
		return fmt.Errorf("end log stream: %w", err)
	}
	return nil
}

// claimLogs finds the reader for whom a Logs stream was opened. Each is found once, and only by the agent that was asked.
func (f *Fleet) claimLogs(ctx context.Context, s *session) (*logStream, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	ids := md.Get(logStreamKey)
	if len(ids) != 1 {
		return nil, failure.New(failure.Invalid, "no_log_stream_id", "", "the metadata has no %s", logStreamKey)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.logs[ids[0]]
	if l == nil || l.session != s || l.claimed {
		return nil, failure.New(failure.Invalid, "no_such_log_stream", "", "nobody waits for that log stream")
	}
	l.claimed = true
	return l, nil
}

func (s *session) takeLogSlot() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.logStreams >= maxLogStreams {
		return failure.New(failure.Unavailable, "too_many_log_streams", s.agentID, "agent %s has %d log streams open already", s.agentID, maxLogStreams)
	}
	s.logStreams++
	return nil
}

func (s *session) releaseLogSlot() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logStreams--
}
