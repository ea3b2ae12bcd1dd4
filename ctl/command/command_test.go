package command_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/ctl/command"
	"github.com/axion/runner-agent/ctl/planetest"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
	"github.com/axion/runner-agent/test/netproxy"
)

const commandID = "c-1"

// diary writes down what an observer is told.
type diary struct {
	entries []string
	on      func(entry string) // called with each entry
}

func (d *diary) note(format string, args ...any) {
	entry := fmt.Sprintf(format, args...)
	d.entries = append(d.entries, entry)
	if d.on != nil {
		d.on(entry)
	}
}

func (d *diary) Retrying(error, time.Duration) { d.note("retrying") }

func (d *diary) Submitted(s *planev1.SubmitCommandResponse) {
	d.note("submitted %s", s.GetCommandId())
}

func (d *diary) Event(r *planev1.EventRecord, m proto.Message) {
	d.note("event %d known=%v", r.GetPosition(), m != nil)
}

func (d *diary) Lost(error, time.Duration) { d.note("lost") }

func (d *diary) Restored() { d.note("restored") }

func (d *diary) Tick() {}

func (d *diary) count(entry string) int {
	n := 0
	for _, e := range d.entries {
		if e == entry {
			n++
		}
	}
	return n
}

// quick is patient enough for a restart and has no pauses that a test would feel.
func quick() command.Config {
	return command.Config{
		SubmitPatience: 20 * time.Second, ReconnectPatience: 20 * time.Second, Limit: 40 * time.Second,
		Backoff: func(int) time.Duration { return 5 * time.Millisecond },
	}
}

func connect(t *testing.T, p *planetest.Plane) *client.Client {
	t.Helper()
	config, err := p.Context.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{Address: p.Context.Address, TLS: config, Credentials: p.Context.Credentials()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func request() *planev1.SubmitCommandRequest {
	return &planev1.SubmitCommandRequest{
		IdempotencyKey: "key-1", Command: &planev1.SubmitCommandRequest_StackRemove{StackRemove: &runnerv1.StackRemove{Stack: "shop"}},
	}
}

// ledger is a plane's memory: commands by key, events by position.
type ledger struct {
	mu       sync.Mutex
	keys     []string // of each SubmitCommand that arrived
	commands map[string]string
	events   []*planev1.EventRecord
	watches  []uint64 // the position of each WatchEvents that arrived
}

func (l *ledger) submit(r *planev1.SubmitCommandRequest) *planev1.SubmitCommandResponse {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.commands == nil {
		l.commands = map[string]string{}
	}
	l.keys = append(l.keys, r.GetIdempotencyKey())
	id, existing := l.commands[r.GetIdempotencyKey()]
	if !existing {
		id = fmt.Sprintf("c-%d", len(l.commands)+1)
		l.commands[r.GetIdempotencyKey()] = id
	}
	return &planev1.SubmitCommandResponse{CommandId: id, Generation: 1, ClusterId: "prod", Existing: existing}
}

// arrived returns how many submissions there were.
func (l *ledger) arrived() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.keys)
}

// watch sends at most n events behind the request's position.
func (l *ledger) watch(r *planev1.WatchEventsRequest, stream grpc.ServerStreamingServer[planev1.EventRecord], n int) error {
	l.mu.Lock()
	l.watches = append(l.watches, r.GetAfter())
	l.mu.Unlock()
	for _, event := range l.events {
		if event.GetPosition() > r.GetAfter() && n > 0 {
			n--
			if err := stream.Send(event); err != nil {
				return err
			}
		}
	}
	return nil
}

// story returns some progress and an outcome.
func story(t *testing.T) []*planev1.EventRecord {
	unknown := planetest.Event(t, 30, commandID, 0, &runnerv1.CommandProgress{Sequence: 2})
	unknown.Type = "axion.runner.v1.FromTheFuture"
	return []*planev1.EventRecord{
		planetest.Event(t, 10, commandID, 0, &runnerv1.CommandReceived{Attempt: 1}),
		planetest.Event(t, 20, commandID, 0, &runnerv1.CommandProgress{Sequence: 1}),
		unknown,
		planetest.Event(t, 40, commandID, 0, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED}),
	}
}

var told = []string{"submitted c-1", "event 10 known=true", "event 20 known=true", "event 30 known=false", "event 40 known=true"}

func TestRun(t *testing.T) {
	l := &ledger{events: story(t)}
	p := planetest.Start(t, &planetest.Script{
		OnSubmitCommand: func(_ context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			return l.submit(r), nil
		},
		OnWatchEvents: func(r *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
			if r.GetCommandId() != commandID || !r.GetFollow() {
				return status.Errorf(codes.InvalidArgument, "got %v", r)
			}
			return l.watch(r, s, 100)
		},
	})
	d := &diary{}
	result, err := command.Run(t.Context(), connect(t, p), request(), quick(), d)
	if err != nil {
		t.Fatal(err)
	}
	if result.Outcome.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED || result.Submitted.GetCommandId() != commandID {
		t.Errorf("got %v", result)
	}
	if !slices.Equal(d.entries, told) {
		t.Errorf("told %v", d.entries)
	}
}

// TestOneCommandForManyAttempts lets the first attempts arrive and their answers get lost, in each way that an answer can.
func TestOneCommandForManyAttempts(t *testing.T) {
	l := &ledger{events: story(t)}
	var p *planetest.Plane
	stopped := make(chan struct{})
	p = planetest.Start(t, &planetest.Script{
		OnSubmitCommand: func(ctx context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			response := l.submit(r)
			switch l.arrived() {
			case 1: // the plane dies with the answer
				go func() {
					p.Stop()
					close(stopped)
				}()
				<-ctx.Done()
				return nil, ctx.Err()
			case 2:
				return nil, status.Error(codes.Unavailable, "the store is busy")
			case 3:
				return nil, failurepb.Status(failure.New(failure.Deadline, "slow", "", "it took too long"))
			default:
				return response, nil
			}
		},
		OnWatchEvents: func(r *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
			return l.watch(r, s, 100)
		},
	})
	go func() {
		<-stopped
		p.Restart(t)
	}()
	d := &diary{}
	result, err := command.Run(t.Context(), connect(t, p), request(), quick(), d)
	if err != nil {
		t.Fatal(err)
	}
	if len(l.commands) != 1 || len(l.keys) != 4 || slices.ContainsFunc(l.keys, func(k string) bool { return k != "key-1" }) {
		t.Errorf("keys that arrived: %v", l.keys)
	}
	if !result.Submitted.GetExisting() || d.count("retrying") < 3 {
		t.Errorf("result %v, told %v", result, d.entries)
	}
}

// TestOneCommandAlthoughTheAnswerIsLost loses the answer to a command that the plane has taken, in the network and by a plane that is too slow.
func TestOneCommandAlthoughTheAnswerIsLost(t *testing.T) {
	for name, lose := range map[string]func(ctx context.Context, proxy *netproxy.Proxy) error{
		"the connection is cut": func(_ context.Context, proxy *netproxy.Proxy) error {
			proxy.Cut()
			return nil
		},
		"the plane does not answer": func(ctx context.Context, _ *netproxy.Proxy) error {
			<-ctx.Done()
			return ctx.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := &ledger{events: story(t)}
			var proxy *netproxy.Proxy
			p := planetest.Start(t, &planetest.Script{
				OnSubmitCommand: func(ctx context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
					response := l.submit(r)
					if l.arrived() == 1 {
						return response, lose(ctx, proxy)
					}
					return response, nil
				},
				OnWatchEvents: func(r *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
					return l.watch(r, s, 100)
				},
			})
			proxy = netproxy.Start(t, p.Context.Address)
			p.Context.Address = proxy.Addr()
			cfg := quick()
			cfg.SubmitAttempt, cfg.SubmitPatience = 2*time.Second, time.Second // the first attempt may outlast all patience
			result, err := command.Run(t.Context(), connect(t, p), request(), cfg, &diary{})
			if err != nil {
				t.Fatal(err)
			}
			if len(l.commands) != 1 || !slices.Equal(l.keys, []string{"key-1", "key-1"}) || !result.Submitted.GetExisting() {
				t.Errorf("keys that arrived: %v, result %v", l.keys, result)
			}
		})
	}
}

func TestRefusalsAreNotRepeated(t *testing.T) {
	l := &ledger{}
	p := planetest.Start(t, &planetest.Script{OnSubmitCommand: func(_ context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
		l.submit(r)
		return nil, failurepb.Status(failure.New(failure.Denied, "no", "shop", "stack shop is not yours"))
	}})
	result, err := command.Run(t.Context(), connect(t, p), request(), quick(), &diary{})
	if f := failure.Of(err); f == nil || f.Code != "no" || len(l.keys) != 1 || result.Submitted != nil {
		t.Errorf("%v after %d attempts", err, len(l.keys))
	}
}

func TestSubmitPatienceEnds(t *testing.T) {
	p := planetest.Start(t, &planetest.Script{})
	p.Stop()
	cfg := quick()
	cfg.SubmitPatience = 50 * time.Millisecond
	d := &diary{}
	_, err := command.Submit(t.Context(), connect(t, p), request(), cfg, d)
	if f := failure.Of(err); f == nil || f.Code != client.CodeUnreachable || d.count("retrying") == 0 {
		t.Errorf("got %v, told %v", err, d.entries)
	}
}

func TestSubmitDoesNotWatch(t *testing.T) {
	l := &ledger{}
	p := planetest.Start(t, &planetest.Script{OnSubmitCommand: func(_ context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
		return l.submit(r), nil
	}})
	d := &diary{}
	result, err := command.Submit(t.Context(), connect(t, p), request(), quick(), d)
	if err != nil || result.Submitted.GetCommandId() != commandID || !slices.Equal(d.entries, told[:1]) {
		t.Errorf("%v, %v, told %v", result, err, d.entries)
	}
}

// TestWatchGoesOn breaks the watch after each event in another way. Each event must be told once, in order, and asked for by position.
func TestWatchGoesOn(t *testing.T) {
	l := &ledger{events: story(t)}
	var p *planetest.Plane
	var restart sync.WaitGroup
	p = planetest.Start(t, &planetest.Script{
		OnSubmitCommand: func(_ context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			return l.submit(r), nil
		},
		OnWatchEvents: func(r *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
			switch r.GetAfter() {
			case 0: // one event, then an error
				return errors.Join(l.watch(r, s, 1), status.Error(codes.Unavailable, "going away"))
			case 10: // one event, then the end of a call that was too long
				return errors.Join(l.watch(r, s, 1), status.Error(codes.DeadlineExceeded, "too long"))
			case 20: // the plane dies
				if err := l.watch(r, s, 1); err != nil {
					return err
				}
				restart.Go(func() {
					p.Stop()
					p.Restart(t)
				})
				<-s.Context().Done()
				return s.Context().Err()
			default: // all again, to be recognised
				return l.watch(&planev1.WatchEventsRequest{After: 0}, s, 100)
			}
		},
	})
	d := &diary{}
	result, err := command.Run(t.Context(), connect(t, p), request(), quick(), d)
	restart.Wait()
	if err != nil || result.Outcome == nil {
		t.Fatalf("%v, %v; told %v", result, err, d.entries)
	}
	events := slices.DeleteFunc(slices.Clone(d.entries), func(e string) bool { return e == "lost" || e == "restored" })
	if !slices.Equal(events, told) {
		t.Errorf("told %v", d.entries)
	}
	if d.count("lost") < 3 || d.count("restored") < 3 {
		t.Errorf("told %v", d.entries)
	}
}

func TestReconnectPatienceEnds(t *testing.T) {
	l := &ledger{}
	var p *planetest.Plane
	var stop sync.WaitGroup
	p = planetest.Start(t, &planetest.Script{
		OnSubmitCommand: func(_ context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			return l.submit(r), nil
		},
		OnWatchEvents: func(r *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
			stop.Go(p.Stop)
			<-s.Context().Done()
			return s.Context().Err()
		},
	})
	cfg := quick()
	cfg.ReconnectPatience = 50 * time.Millisecond
	result, err := command.Run(t.Context(), connect(t, p), request(), cfg, &diary{})
	stop.Wait()
	if f := failure.Of(err); f == nil || f.Class != failure.Unavailable || result.Submitted == nil || result.Outcome != nil {
		t.Errorf("%v, %v", result, err)
	}
}

// TestPlaneThatRefusesIsNotConnected: an answer that is an error must neither count as a connection nor renew the patience.
func TestPlaneThatRefusesIsNotConnected(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		lost bool
	}{
		"starting":  {status.Error(codes.Unavailable, "starting"), true},
		"forgotten": {failurepb.Status(failure.New(failure.Unavailable, "events_forgotten", "", "events are no longer kept")), false},
		"no such":   {failurepb.Status(failure.New(failure.Invalid, "no_such_command", "", "there is no command")), false},
	} {
		t.Run(name, func(t *testing.T) {
			l := &ledger{}
			p := planetest.Start(t, &planetest.Script{
				OnSubmitCommand: func(_ context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
					return l.submit(r), nil
				},
				OnWatchEvents: func(*planev1.WatchEventsRequest, grpc.ServerStreamingServer[planev1.EventRecord]) error {
					return tc.err
				},
			})
			cfg := quick()
			cfg.ReconnectPatience = 50 * time.Millisecond
			d := &diary{}
			_, err := command.Run(t.Context(), connect(t, p), request(), cfg, d)
			if err == nil || d.count("restored") != 0 || (d.count("lost") > 0) != tc.lost {
				t.Errorf("%v, told %v", err, d.entries)
			}
		})
	}
}

// TestQuietPlaneIsConnected: a plane that has nothing to tell is there all the same.
func TestQuietPlaneIsConnected(t *testing.T) {
	l := &ledger{}
	first := true
	p := planetest.Start(t, &planetest.Script{
		OnSubmitCommand: func(_ context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			return l.submit(r), nil
		},
		OnWatchEvents: func(_ *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
			if first {
				first = false
				return status.Error(codes.Unavailable, "starting")
			}
			<-s.Context().Done()
			return s.Context().Err()
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	d := &diary{on: func(entry string) {
		if entry == "restored" {
			cancel()
		}
	}}
	if _, err := command.Run(ctx, connect(t, p), request(), quick(), d); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, told %v", err, d.entries)
	}
}

func TestEndWithoutOutcome(t *testing.T) {
	l := &ledger{events: story(t)[:2]}
	p := planetest.Start(t, &planetest.Script{
		OnSubmitCommand: func(_ context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			return l.submit(r), nil
		},
		OnWatchEvents: func(r *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
			return l.watch(r, s, 100)
		},
	})
	_, err := command.Run(t.Context(), connect(t, p), request(), quick(), &diary{})
	if f := failure.Of(err); f == nil || f.Code != "no_outcome" || len(l.watches) != 1 {
		t.Errorf("%v after %v", err, l.watches)
	}
}

func TestLimitEndsTheWatch(t *testing.T) {
	l := &ledger{}
	p := planetest.Start(t, &planetest.Script{
		OnSubmitCommand: func(_ context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			return l.submit(r), nil
		},
		OnWatchEvents: func(_ *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
			<-s.Context().Done()
			return s.Context().Err()
		},
	})
	cfg := quick()
	cfg.Limit = 100 * time.Millisecond
	result, err := command.Run(t.Context(), connect(t, p), request(), cfg, &diary{})
	if f := failure.Of(err); f == nil || f.Class != failure.Deadline || f.Hint == "" || result.Submitted == nil {
		t.Errorf("%v, %v", result, err)
	}
}

func TestInterruption(t *testing.T) {
	l := &ledger{events: story(t)}
	p := planetest.Start(t, &planetest.Script{
		OnSubmitCommand: func(_ context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			return l.submit(r), nil
		},
		OnWatchEvents: func(r *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
			if err := l.watch(r, s, 1); err != nil {
				return err
			}
			<-s.Context().Done()
			return s.Context().Err()
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	d := &diary{on: func(entry string) {
		if entry == told[1] {
			cancel()
		}
	}}
	result, err := command.Run(ctx, connect(t, p), request(), quick(), d)
	if !errors.Is(err, context.Canceled) || result.Submitted.GetCommandId() != commandID || result.Outcome != nil {
		t.Errorf("%v, %v", result, err)
	}
}

func TestFollowReadsWhatIsStored(t *testing.T) {
	l := &ledger{events: story(t)}
	p := planetest.Start(t, &planetest.Script{OnWatchEvents: func(r *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
		return l.watch(r, s, 100)
	}})
	n := 0
	err := command.Follow(t.Context(), connect(t, p), &planev1.WatchEventsRequest{}, quick(), command.FollowHandler{
		Event: func(*planev1.EventRecord, proto.Message) bool { n++; return false },
	})
	if err != nil || n != 4 || len(l.watches) != 1 {
		t.Errorf("%d events in %d streams, %v", n, len(l.watches), err)
	}
}
