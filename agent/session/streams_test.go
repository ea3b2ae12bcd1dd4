package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

func TestRequestIsDoneAtMostOnce(t *testing.T) {
	said := make(chan *runnerv1.AgentMessage, 64)
	var runs atomic.Int64
	release := make(chan struct{})
	again := make(chan struct{})
	p := (&scripted{connect: func(s runnerv1.Runner_ConnectServer) error {
		if _, err := welcome(s, time.Second); err != nil {
			return err
		}
		for _, id := range []string{"r1", "r1", "r1", "behind"} { // repeated while it runs; who sees the one behind knows that the others were read
			if err := s.Send(request(id)); err != nil {
				return err
			}
		}
		go func() {
			<-again
			_ = s.Send(request("r1")) // repeated when it is done
		}()
		for {
			msg, err := s.Recv()
			if err != nil {
				return nil
			}
			if r := msg.GetResponse(); r != nil && r.GetId() != "behind" {
				said <- msg
			}
		}
	}}).start(t)
	behind := make(chan struct{})
	run(t, p.ca, p.address, func(_ *Config, d *Deps) {
		d.Handler = handlerFunc(func(_ context.Context, req *runnerv1.Request) *runnerv1.Response {
			if req.GetId() == "behind" {
				close(behind)
				return &runnerv1.Response{}
			}
			n := runs.Add(1)
			<-release
			return &runnerv1.Response{Warnings: []string{fmt.Sprint("run ", n)}}
		})
	})
	eventually(t, "it runs", func() bool { return runs.Load() == 1 })
	<-behind
	close(release)
	for _, what := range []string{"the answer", "the same answer again"} {
		r := receive(t, what, said).GetResponse()
		if r.GetId() != "r1" || r.GetWarnings()[0] != "run 1" {
			t.Errorf("%s is %v", what, r)
		}
		if what == "the answer" {
			close(again)
		}
	}
	if n := runs.Load(); n != 1 || len(said) != 0 {
		t.Errorf("done %d times, %d more answers", n, len(said))
	}
}

func TestAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		id     string
		answer *runnerv1.Response
		wantID string
		code   string
	}{
		"good":          {id: "r", answer: &runnerv1.Response{}, wantID: "r"},
		"without id":    {id: "", wantID: "", code: "bad_request_id"},
		"with long id":  {id: strings.Repeat("x", 65), wantID: strings.Repeat("x", 64), code: "bad_request_id"},
		"half a letter": {id: strings.Repeat("x", 63) + "éé", wantID: strings.Repeat("x", 63), code: "bad_request_id"},
		"bad bytes":     {id: "r", answer: &runnerv1.Response{Warnings: []string{"\xff"}}, wantID: "r", code: "answer_not_encodable"},
		"nil":           {id: "r", wantID: "r", code: "no_answer"},
		"too large":     {id: "r", answer: &runnerv1.Response{Warnings: []string{strings.Repeat("x", 5<<20)}}, wantID: "r", code: "answer_too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			said := make(chan *runnerv1.AgentMessage, 8)
			p := (&scripted{connect: steady(said, request(tc.id))}).start(t)
			run(t, p.ca, p.address, func(_ *Config, d *Deps) {
				d.Handler = handlerFunc(func(context.Context, *runnerv1.Request) *runnerv1.Response { return tc.answer })
			})
			r := receive(t, "an answer", said).GetResponse()
			if r.GetId() != tc.wantID || r.GetFailure().GetCode() != tc.code {
				t.Errorf("id %q, failure %q", r.GetId(), r.GetFailure().GetCode())
			}
		})
	}
}

func TestAnswersAreForgottenInOrder(t *testing.T) {
	r := newRequests(nil)
	for i := range maxAnswers + 1 {
		id := fmt.Sprint(i)
		r.started(id)
		r.finished(id, &runnerv1.Response{Id: id})
	}
	if _, known := r.lookUp("0"); known {
		t.Error("the oldest is still there")
	}
	if a, known := r.lookUp("1"); !known || a.GetId() != "1" {
		t.Error("the second oldest is gone")
	}
	r.finished("big", &runnerv1.Response{Id: "big", Warnings: []string{strings.Repeat("x", maxAnswerBytes)}})
	if a, _ := r.lookUp("big"); a.GetId() != "big" || a.GetFailure().GetCode() != "already_answered" {
		t.Errorf("of a large answer it remembers %v", a)
	}
	if len(r.answers) != maxAnswers || len(r.order) != maxAnswers {
		t.Errorf("%d answers, %d in order", len(r.answers), len(r.order))
	}
}

// heardLogs collects the log streams that reach a plane.
type heardLogs struct {
	mu  sync.Mutex
	end map[string]*runnerv1.LogBatch
}

func (h *heardLogs) hear(s runnerv1.Runner_LogsServer) error {
	md, _ := metadata.FromIncomingContext(s.Context())
	id := md.Get("axion-log-stream")[0]
	for {
		b, err := s.Recv()
		if err != nil {
			return nil
		}
		if b.GetEnd() {
			h.mu.Lock()
			h.end[id] = b
			h.mu.Unlock()
			return nil
		}
	}
}

func (h *heardLogs) ended() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.end)
}

func TestLogStreamsAreRefusedBeyondTheBound(t *testing.T) {
	h := &heardLogs{end: map[string]*runnerv1.LogBatch{}}
	var open []*runnerv1.PlaneMessage
	for i := range maxLogStreams {
		open = append(open, openLogs(fmt.Sprint("s", i)))
	}
	open = append(open, openLogs(""), openLogs("s0"), openLogs("over")) // two that are ignored, one too many
	p := (&scripted{connect: steady(make(chan *runnerv1.AgentMessage, 8), open...), logs: h.hear}).start(t)
	c := run(t, p.ca, p.address, func(_ *Config, d *Deps) {
		d.Logs = logsFunc(func(ctx context.Context, _ *runnerv1.OpenLogs, _ func(*runnerv1.LogBatch) error) error {
			<-ctx.Done()
			return ctx.Err()
		})
	})
	eventually(t, "one is refused", func() bool { return h.ended() == 1 })
	if f := h.end["over"].GetFailure(); f.GetCode() != "too_many_log_streams" || f.GetClass() != runnerv1.FailureClass_FAILURE_CLASS_UNAVAILABLE {
		t.Errorf("refused with %v", f)
	}
	eventually(t, "the others are open", func() bool { return c.Stats().LogStreams == maxLogStreams })
	c.stop() // must end them
	if n := c.Stats().LogStreams; n != 0 {
		t.Errorf("%d open after the end", n)
	}
}

func TestLogsWithoutASource(t *testing.T) {
	h := &heardLogs{end: map[string]*runnerv1.LogBatch{}}
	p := (&scripted{connect: steady(make(chan *runnerv1.AgentMessage, 8), openLogs("s")), logs: h.hear}).start(t)
	run(t, p.ca, p.address, nil)
	eventually(t, "it is refused", func() bool { return h.ended() == 1 })
	if code := h.end["s"].GetFailure().GetCode(); code != "no_logs" {
		t.Errorf("refused with %s", code)
	}
}

func TestCancelEndsTheSourceInPeace(t *testing.T) {
	last := make(chan *runnerv1.LogBatch, 1)
	p := (&scripted{
		connect: steady(make(chan *runnerv1.AgentMessage, 8), openLogs("s")),
		logs: func(s runnerv1.Runner_LogsServer) error {
			if _, err := s.Recv(); err != nil {
				return err
			}
			if err := s.Send(&runnerv1.LogControl{Cancel: true}); err != nil {
				return err
			}
			for {
				b, err := s.Recv()
				if err != nil {
					return err
				}
				if b.GetEnd() {
					last <- b
					return nil
				}
			}
		},
	}).start(t)
	stopped := make(chan struct{})
	run(t, p.ca, p.address, func(_ *Config, d *Deps) {
		d.Logs = logsFunc(func(ctx context.Context, _ *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
			defer close(stopped)
			if err := send(&runnerv1.LogBatch{Lines: []*runnerv1.LogLine{{Text: []byte("one\n")}}}); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		})
	})
	receive(t, "the source ends", stopped)
	if b := receive(t, "the last batch", last); b.GetFailure() != nil {
		t.Errorf("a cancel is no failure: %v", b.GetFailure())
	}
}

func TestBatcher(t *testing.T) {
	lineOf := func(n int) *runnerv1.LogLine { return &runnerv1.LogLine{Text: []byte(strings.Repeat("x", n))} }
	for name, tc := range map[string]struct {
		lines []*runnerv1.LogLine
		want  []int // lines a batch
	}{
		"together":          {[]*runnerv1.LogLine{lineOf(1), lineOf(2), lineOf(3)}, []int{3}},
		"split by size":     {[]*runnerv1.LogLine{lineOf(40 << 10), lineOf(20 << 10), lineOf(20 << 10)}, []int{2, 1}},
		"a line too long":   {[]*runnerv1.LogLine{lineOf(150 << 10)}, []int{1, 1, 1}},
		"an empty line":     {[]*runnerv1.LogLine{lineOf(0)}, []int{1}},
		"nothing":           {nil, nil},
		"empty lines count": {slicesRepeat(lineOf(0), 5000), []int{4096, 904}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []int
			bytes, want := 0, 0
			b := newBatcher(t.Context(), func(batch *runnerv1.LogBatch) error {
				got = append(got, len(batch.GetLines()))
				for _, l := range batch.GetLines() {
					bytes += len(l.GetText())
				}
				return nil
			}, long)
			for _, l := range tc.lines {
				want += len(l.GetText())
			}
			if err := b.add(&runnerv1.LogBatch{Lines: tc.lines}); err != nil {
				t.Fatal(err)
			}
			if err := b.close(); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got) != fmt.Sprint(tc.want) || bytes != want {
				t.Errorf("batches of %v lines with %d bytes, want %v with %d", got, bytes, tc.want, want)
			}
		})
	}
	t.Run("a lone line does not wait for others", func(t *testing.T) {
		sent := make(chan struct{}, 1)
		b := newBatcher(t.Context(), func(*runnerv1.LogBatch) error { sent <- struct{}{}; return nil }, time.Millisecond)
		if err := b.add(&runnerv1.LogBatch{Lines: []*runnerv1.LogLine{lineOf(1)}}); err != nil {
			t.Fatal(err)
		}
		receive(t, "the line", sent)
		if err := b.close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("a broken stream stops the source", func(t *testing.T) {
		broken := errors.New("broken")
		b := newBatcher(t.Context(), func(*runnerv1.LogBatch) error { return broken }, time.Millisecond)
		var err error
		eventually(t, "add fails", func() bool {
			err = b.add(&runnerv1.LogBatch{Lines: []*runnerv1.LogLine{lineOf(1)}})
			return err != nil
		})
		if !errors.Is(err, broken) || !errors.Is(b.close(), broken) {
			t.Errorf("got %v", err)
		}
	})
}

func slicesRepeat(l *runnerv1.LogLine, n int) []*runnerv1.LogLine {
	list := make([]*runnerv1.LogLine, n)
	for i := range list {
		list[i] = l
	}
	return list
}

func TestPlaneWithoutMetrics(t *testing.T) {
	p := (&scripted{connect: steady(make(chan *runnerv1.AgentMessage, 8), request("r"))}).start(t)
	asked := make(chan struct{})
	c := run(t, p.ca, p.address, func(_ *Config, d *Deps) {
		d.Metrics = metricsFunc(func(ctx context.Context, _ <-chan time.Duration, _ func(*runnerv1.MetricsBatch) error) error {
			<-ctx.Done() // the plane ends the stream
			close(asked) // a second time would panic
			return ctx.Err()
		})
	})
	receive(t, "the source is stopped", asked)
	eventually(t, "heartbeats go on", func() bool { return c.Stats().HeartbeatsAcked >= 2 })
	if n := c.Stats().Connects; n != 1 {
		t.Errorf("%d sessions", n)
	}
}

// The streams of a session end in any order; the reason is the one that Connect tells.
func TestConnectTellsTheReason(t *testing.T) {
	over := make(chan struct{})
	var once sync.Once
	p := (&scripted{
		connect: func(s runnerv1.Runner_ConnectServer) error {
			if _, err := welcome(s, time.Second); err != nil {
				return err
			}
			<-over
			return failurepb.Status(failure.New(failure.Denied, "revoked", "a-1", "agent a-1 was removed"))
		},
		metrics: func(runnerv1.Runner_MetricsServer) error {
			once.Do(func() { time.AfterFunc(50*time.Millisecond, func() { close(over) }) }) // after this stream has ended
			return nil
		},
	}).start(t)
	c := run(t, p.ca, p.address, func(_ *Config, d *Deps) {
		d.Metrics = metricsFunc(func(ctx context.Context, _ <-chan time.Duration, _ func(*runnerv1.MetricsBatch) error) error {
			<-ctx.Done()
			return ctx.Err()
		})
	})
	eventually(t, "the reason", func() bool { return strings.Contains(c.warn.only(WarningRefused), "agent a-1 was removed") })
}
