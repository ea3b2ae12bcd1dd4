package session

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// logStreamKey is the metadata key by which the plane knows which OpenLogs a Logs stream answers.
const logStreamKey = "axion-log-stream"

// logs opens a Logs stream for each OpenLogs. Each is a gRPC stream of its own with its own flow control: a reader that does not read stops the source
// of its own log and nothing else.
type logs struct {
	session  *session
	slots    chan struct{}
	refusals chan struct{}

	mu   sync.Mutex
	open map[string]struct{} // stream ids
}

func newLogs(s *session) *logs {
	return &logs{
		session:  s,
		slots:    make(chan struct{}, maxLogStreams),
		refusals: make(chan struct{}, maxLogRefusals),
		open:     make(map[string]struct{}),
	}
}

// accept starts a log stream and returns at once.
func (l *logs) accept(req *runnerv1.OpenLogs) {
	id := req.GetStreamId()
	if id == "" || len(id) > maxIDBytes || !l.add(id) {
		l.session.client.deps.Log.Warn("log stream ignored: its id is not valid or in use", "stream_id", cut(id, maxIDBytes))
		return
	}
	select {
	case l.slots <- struct{}{}:
		l.start(id, l.slots, func(ctx context.Context, send func(*runnerv1.LogBatch) error) error {
			if l.session.client.deps.Logs == nil {
				return failure.New(failure.Invalid, "no_logs", "", "this agent reads no logs")
			}
			return l.session.client.deps.Logs.OpenLogs(ctx, req, send)
		})
		return
	default:
	}
	select {
	case l.refusals <- struct{}{}:
		l.start(id, l.refusals, func(context.Context, func(*runnerv1.LogBatch) error) error {
			return failure.New(failure.Unavailable, "too_many_log_streams", "", "the agent already has %d log streams open", maxLogStreams)
		})
	default: // a flood; the plane's own deadline answers
		l.remove(id)
		l.session.client.deps.Log.Warn("log stream ignored: there are too many", "stream_id", id)
	}
}

type logReader func(ctx context.Context, send func(*runnerv1.LogBatch) error) error

// start runs a log stream and gives its slot back at its end. Its failure is the reader's affair and does not end the session.
func (l *logs) start(id string, slots chan struct{}, read logReader) {
	l.session.client.count.logStreams.Add(1)
	l.session.spawn(func() error {
		defer func() {
			l.session.client.count.logStreams.Add(-1)
			l.remove(id)
			<-slots
		}()
		if err := l.run(id, read); err != nil && l.session.ctx.Err() == nil {
			l.session.client.deps.Log.Debug("log stream broke", "stream_id", id, "error", err)
		}
		return nil
	})
}

func (l *logs) add(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.open[id]; ok {
		return false
	}
	l.open[id] = struct{}{}
	return true
}

func (l *logs) remove(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, id)
}

// run opens the stream, copies the source to it, sends how it ended, and waits until the plane has taken it all.
func (l *logs) run(id string, read logReader) error {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(l.session.ctx, logStreamKey, id))
	defer cancel()
	stream, err := l.session.rpc.Logs(ctx)
	if err != nil {
		return err
	}
	// The plane ends a log stream by saying so or by ending it; both end the source.
	sourceCtx, stopSource := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			control, err := stream.Recv()
			if err != nil || control.GetCancel() {
				stopSource()
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() { cancel(); <-over }()

	b := newBatcher(sourceCtx, stream.Send, l.session.client.cfg.Timing.LogFlush)
	readErr := read(sourceCtx, b.add)
	if err := b.close(); err != nil {
		return err
	}
	last := &runnerv1.LogBatch{End: true}
	if readErr != nil && sourceCtx.Err() == nil {
		last.Failure = failurepb.FromError(readErr)
	}
	stopSource()
	if err := stream.Send(last); err != nil {
		return err
	}
	_ = stream.CloseSend() // never fails
	<-over                 // leaving earlier would throw away what is still on its way to a slow reader
	return nil
}

// lineOverhead is what a line costs beside its text, so that empty lines fill a batch too.
const lineOverhead = 16

// maxLineBytes is the longest line that fits into a batch.
const maxLineBytes = maxLogBatchBytes - lineOverhead

// batcher puts lines together to batches of at most 64 KiB, which wait no longer than the flush time. One goroutine sends; add waits for it, and so
// does the source.
type batcher struct {
	ctx   context.Context
	send  func(*runnerv1.LogBatch) error
	flush time.Duration
	lines chan *runnerv1.LogLine
	done  chan struct{}
	err   error // of send; read it after done
}

func newBatcher(ctx context.Context, send func(*runnerv1.LogBatch) error, flush time.Duration) *batcher {
	b := &batcher{ctx: ctx, send: send, flush: flush, lines: make(chan *runnerv1.LogLine), done: make(chan struct{})}
	go b.run()
	return b
}

// add takes lines in order; a line that is too long for a batch becomes several.
func (b *batcher) add(batch *runnerv1.LogBatch) error {
	for _, line := range batch.GetLines() {
		for rest := line.GetText(); ; {
			piece := rest[:min(len(rest), maxLineBytes)]
			rest = rest[len(piece):]
			select {
			case b.lines <- &runnerv1.LogLine{Source: line.GetSource(), Text: piece}:
			case <-b.done:
				return errors.Join(errors.New("the log stream has ended"), b.err)
			case <-b.ctx.Done():
				return b.ctx.Err()
			}
			if len(rest) == 0 {
				break
			}
		}
	}
	return nil
}

// close sends what is left and returns the error of sending. No add may run or follow.
func (b *batcher) close() error {
	close(b.lines)
	<-b.done
	return b.err
}

func (b *batcher) run() {
	defer close(b.done)
	var batch []*runnerv1.LogLine
	size := 0
	timer := time.NewTimer(b.flush)
	defer timer.Stop()
	timer.Stop()
	flush := func() bool {
		if len(batch) > 0 {
			b.err = b.send(&runnerv1.LogBatch{Lines: batch})
		}
		batch, size = nil, 0
		timer.Stop()
		return b.err == nil
	}
	for {
		select {
		case line, more := <-b.lines:
			cost := len(line.GetText()) + lineOverhead
			if (!more || size+cost > maxLogBatchBytes) && !flush() {
				return
			}
			if !more {
				return
			}
			if len(batch) == 0 {
				timer.Reset(b.flush)
			}
			batch = append(batch, line)
			size += cost
		case <-timer.C:
			if !flush() {
				return
			}
		}
	}
}
