package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

func ping() *runnerv1.Request {
	return &runnerv1.Request{Command: &runnerv1.Request_Ping{Ping: &runnerv1.Ping{}}}
}

func TestRequestsRunAtOnceAndAreBounded(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	release := make(chan struct{})
	var running, done atomic.Int64
	p.join(options{handler: func(ctx context.Context, _ *runnerv1.Request) *runnerv1.Response {
		running.Add(1)
		select {
		case <-release:
		case <-ctx.Done():
		}
		done.Add(1)
		return &runnerv1.Response{}
	}})
	const atOnce = 16
	answers := make(chan error, 2*atOnce)
	ask := func() {
		_, err := p.fleet.Request(t.Context(), agentID, ping())
		answers <- err
	}
	for range atOnce {
		go ask()
	}
	eventually(t, "all run at the same time", func() bool { return running.Load() == atOnce })
	_, err := p.fleet.Request(t.Context(), agentID, ping())
	wantFailure(t, err, failure.Unavailable, "too_many_requests")
	close(release)
	for range atOnce {
		if err := receive(t, "an answer", answers); err != nil {
			t.Error(err)
		}
	}
	if n := done.Load(); n != atOnce {
		t.Errorf("%d done", n)
	}
}

func TestRequestFailures(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm)
	p.config.Timing.RequestGrace = 50 * time.Millisecond
	p.start()
	_, err := p.fleet.Request(t.Context(), agentID, ping())
	wantFailure(t, err, failure.Unavailable, "agent_not_connected")

	started := make(chan struct{}, 8)
	p.join(options{handler: func(ctx context.Context, req *runnerv1.Request) *runnerv1.Response {
		if req.GetContainerKill() != nil {
			return &runnerv1.Response{Failure: failurepb.FromError(failure.New(failure.Invalid, "no_such_container", "x", "no such container: x"))}
		}
		if req.GetContainerStop() != nil { // does not keep to its time
			ctx = t.Context()
		}
		started <- struct{}{}
		<-ctx.Done()
		return nil
	}})
	t.Run("the command's own", func(t *testing.T) {
		answer, err := p.fleet.Request(t.Context(), agentID, &runnerv1.Request{Command: &runnerv1.Request_ContainerKill{ContainerKill: &runnerv1.ContainerKill{Container: "x"}}})
		wantFailure(t, err, failure.Invalid, "no_such_container")
		if answer.GetFailure() == nil {
			t.Error("the answer is lost")
		}
	})
	t.Run("its timeout, kept by the agent", func(t *testing.T) {
		req := ping()
		req.Timeout = durationpb.New(100 * time.Millisecond)
		_, err := p.fleet.Request(t.Context(), agentID, req)
		wantFailure(t, err, failure.Deadline, "deadline_exceeded")
	})
	t.Run("its timeout, kept by the plane", func(t *testing.T) {
		_, err := p.fleet.Request(t.Context(), agentID, &runnerv1.Request{
			Timeout: durationpb.New(100 * time.Millisecond),
			Command: &runnerv1.Request_ContainerStop{ContainerStop: &runnerv1.ContainerStop{Container: "x"}},
		})
		wantFailure(t, err, failure.Deadline, "request_timeout")
	})
	t.Run("the caller leaves", func(t *testing.T) {
		for len(started) > 0 {
			<-started
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-started; cancel() }()
		_, err := p.fleet.Request(ctx, agentID, ping())
		wantFailure(t, err, failure.Unavailable, "cancelled")
	})
}

// source is a LogSource made of a function.
type source func(ctx context.Context, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error

func (f source) OpenLogs(ctx context.Context, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
	return f(ctx, open, send)
}

func line(format string, args ...any) *runnerv1.LogBatch {
	return &runnerv1.LogBatch{Lines: []*runnerv1.LogLine{{Source: runnerv1.LogSource_LOG_SOURCE_STDOUT, Text: fmt.Appendf(nil, format, args...)}}}
}

func service(name string) *runnerv1.OpenLogs {
	return &runnerv1.OpenLogs{Target: &runnerv1.OpenLogs_Service{Service: name}}
}

func TestLogsArriveWhole(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	const lines = 5000
	huge := strings.Repeat("x", 200<<10)
	p.join(options{logs: source(func(_ context.Context, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
		for i := range lines {
			if err := send(line("%s %d\n", open.GetService(), i)); err != nil {
				return err
			}
		}
		if err := send(line("%s\n", huge)); err != nil {
			return err
		}
		return failure.New(failure.Conflict, "log_driver", "web", "the log driver of web cannot be read")
	})})
	var want, got strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "web %d\n", i)
	}
	want.WriteString(huge + "\n")
	batches := 0
	err := p.fleet.StreamLogs(t.Context(), agentID, service("web"), func(b *runnerv1.LogBatch) error {
		batches++
		size := 0
		for _, l := range b.GetLines() {
			got.Write(l.GetText())
			size += len(l.GetText())
		}
		if size > 64<<10 || b.GetEnd() {
			t.Errorf("batch of %d bytes, end %v", size, b.GetEnd())
		}
		return nil
	})
	wantFailure(t, err, failure.Conflict, "log_driver")
	if got.String() != want.String() {
		t.Errorf("%d bytes came, want %d", got.Len(), want.Len())
	}
	if batches > 200 {
		t.Errorf("%d batches for %d lines: nothing was put together", batches, lines)
	}
}

func TestLogsEndQuietly(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	p.join(options{logs: source(func(_ context.Context, _ *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
		return send(line("only\n"))
	})})
	n := 0
	if err := p.fleet.StreamLogs(t.Context(), agentID, service("web"), func(*runnerv1.LogBatch) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d batches, %v", n, err)
	}
}

// flood writes lines until it is stopped, and counts.
type flood struct {
	sent, stopped atomic.Int64
}

func (f *flood) OpenLogs(ctx context.Context, _ *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
	defer f.stopped.Add(1)
	text := strings.Repeat("x", 1023) + "\n"
	for {
		if err := send(line("%s", text)); err != nil {
			return err
		}
		f.sent.Add(1)
	}
}

func TestSlowLogReaderHoldsNothingElseUp(t *testing.T) {
	t.Parallel()
	p := newPlane(t, 500*time.Millisecond).start()
	logs := &flood{}
	a := p.join(options{logs: logs})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 { // several, so that their windows add up
		wg.Go(func() {
			err := p.fleet.StreamLogs(ctx, agentID, service("web"), func(*runnerv1.LogBatch) error {
				<-ctx.Done() // a reader that has stopped reading
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	}
	last := int64(-1)
	eventually(t, "the sources are held up", func() bool {
		was := last
		last = logs.sent.Load()
		time.Sleep(20 * time.Millisecond)
		return last > 0 && last == was
	})
	before := a.Stats().HeartbeatsAcked
	eventually(t, "heartbeats go on", func() bool { return a.Stats().HeartbeatsAcked >= before+4 })
	if _, err := p.fleet.Request(t.Context(), agentID, ping()); err != nil {
		t.Errorf("request: %v", err)
	}
	if st := a.Stats(); st.Connects != 1 || st.LogStreams != 4 {
		t.Errorf("stats %+v", st)
	}
	cancel()
	wg.Wait()
	eventually(t, "the sources end when the readers have left", func() bool { return logs.stopped.Load() == 4 && a.Stats().LogStreams == 0 })
	if n := a.Stats().Connects; n != 1 {
		t.Errorf("%d sessions", n)
	}
}

func TestLogFailures(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	ignore := func(*runnerv1.LogBatch) error { return nil }
	wantFailure(t, p.fleet.StreamLogs(t.Context(), agentID, service("web"), ignore), failure.Unavailable, "agent_not_connected")

	logs := &flood{}
	a := p.join(options{logs: logs})
	full := errors.New("the reader's disk is full")
	if err := p.fleet.StreamLogs(t.Context(), agentID, service("web"), func(*runnerv1.LogBatch) error { return full }); !errors.Is(err, full) {
		t.Errorf("got %v, want the reader's own error", err)
	}
	eventually(t, "the source ends", func() bool { return logs.stopped.Load() == 1 })

	broken := make(chan error, 1)
	var first atomic.Bool
	go func() {
		broken <- p.fleet.StreamLogs(t.Context(), agentID, service("web"), func(*runnerv1.LogBatch) error { first.Store(true); return nil })
	}()
	eventually(t, "lines come", first.Load)
	p.proxy.Cut()
	err := receive(t, "the reader is told of the cut", broken)
	if f := failure.Of(err); f.Class != failure.Unavailable || (f.Code != "agent_disconnected" && f.Code != "log_stream_broken") {
		t.Errorf("got %+v", f)
	}
	eventually(t, "the source ends with the session", func() bool { return logs.stopped.Load() == 2 })
	eventually(t, "agent is back", func() bool { return a.Stats().Connects == 2 })
}

func TestLogStreamsAreBounded(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	a := p.join(options{logs: source(func(ctx context.Context, _ *runnerv1.OpenLogs, _ func(*runnerv1.LogBatch) error) error {
		<-ctx.Done()
		return ctx.Err()
	})})
	const most = 32
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range most {
		wg.Go(func() { _ = p.fleet.StreamLogs(ctx, agentID, service("web"), nil) })
	}
	eventually(t, "all are open", func() bool { return a.Stats().LogStreams == most })
	wantFailure(t, p.fleet.StreamLogs(t.Context(), agentID, service("web"), nil), failure.Unavailable, "too_many_log_streams")
	cancel()
	wg.Wait()
	eventually(t, "all are closed", func() bool { return a.Stats().LogStreams == 0 })
}

// sampler is a MetricsSource that sends a batch whenever the test wants one.
type sampler struct {
	cadence chan time.Duration
	batches chan *runnerv1.MetricsBatch
}

func (s *sampler) Stream(ctx context.Context, cadence <-chan time.Duration, send func(*runnerv1.MetricsBatch) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case d := <-cadence:
			s.cadence <- d
		case b := <-s.batches:
			if b == nil {
				return errors.New("the cgroups cannot be read")
			}
			if err := send(b); err != nil {
				return err
			}
		}
	}
}

func TestMetricsKeepTheNewest(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm)
	p.config.MetricsCadence = 7 * time.Second
	p.start()
	s := &sampler{cadence: make(chan time.Duration, 8), batches: make(chan *runnerv1.MetricsBatch)}
	a := p.join(options{metrics: s})
	if d := receive(t, "a cadence", s.cadence); d != 7*time.Second {
		t.Errorf("cadence %s", d)
	}
	for n := range 3 {
		s.batches <- &runnerv1.MetricsBatch{
			Host:       &runnerv1.HostSample{Cpus: uint32(n)},
			Containers: make([]*runnerv1.ContainerSample, 3000),
		}
	}
	eventually(t, "the newest is there", func() bool { return p.fleet.LatestMetrics()[agentID].GetHost().GetCpus() == 2 })
	if n := len(p.fleet.LatestMetrics()[agentID].GetContainers()); n != 2000 {
		t.Errorf("%d containers", n)
	}
	p.proxy.Cut()
	eventually(t, "agent is back", func() bool { return a.Stats().Connects == 2 && p.fleet.Connected(agentID) })
	if len(p.fleet.LatestMetrics()) != 0 {
		t.Error("metrics of an ended session")
	}
	s.batches <- &runnerv1.MetricsBatch{Host: &runnerv1.HostSample{Cpus: 9}}
	eventually(t, "metrics come again", func() bool { return p.fleet.LatestMetrics()[agentID].GetHost().GetCpus() == 9 })
	s.batches <- nil // the source fails
	if _, err := p.fleet.Request(t.Context(), agentID, ping()); err != nil {
		t.Error(err)
	}
	if n := a.Stats().Connects; n != 2 {
		t.Errorf("%d sessions: a source that fails is no reason to end one", n)
	}
}
