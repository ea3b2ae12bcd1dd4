package session

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
	"github.com/axion/runner-agent/test/netproxy"
	"github.com/axion/runner-agent/test/testca"
)

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config, *Deps){
		"an address without a port": func(c *Config, _ *Deps) { c.Address = "plane" },
		"a long version":            func(c *Config, _ *Deps) { c.AgentVersion = strings.Repeat("1", 65) },
		"a short instance id":       func(c *Config, _ *Deps) { c.InstanceID = "short" },
		"no handler":                func(_ *Config, d *Deps) { d.Handler = nil },
		"no heartbeat":              func(_ *Config, d *Deps) { d.Heartbeat = nil },
		"no TLS":                    func(_ *Config, d *Deps) { d.TLS = nil },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Address: "plane:443", AgentVersion: "1.0"}
			deps := Deps{
				TLS:       func() *tls.Config { return nil },
				Heartbeat: func() *runnerv1.Heartbeat { return nil },
				Handler:   handlerFunc(nil),
				Log:       slog.New(slog.DiscardHandler),
				Warn:      &warnings{},
			}
			if _, err := New(cfg, deps); err != nil {
				t.Fatalf("the good one: %v", err)
			}
			change(&cfg, &deps)
			if _, err := New(cfg, deps); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestHello(t *testing.T) {
	hellos := make(chan *runnerv1.Hello, 1)
	p := (&scripted{connect: func(s runnerv1.Runner_ConnectServer) error {
		h, err := welcome(s, time.Second)
		if err != nil {
			return err
		}
		hellos <- h
		return serve(s, func(*runnerv1.AgentMessage) {})
	}}).start(t)
	c := run(t, p.ca, p.address, func(_ *Config, d *Deps) {
		d.Node = func(context.Context) (*runnerv1.NodeFacts, error) { return &runnerv1.NodeFacts{NodeId: "n1"}, nil }
	})
	h := receive(t, "a hello", hellos)
	if h.GetNode().GetNodeId() != "n1" || h.GetAgentVersion() != "1.0" || len(h.GetInstanceId()) < 16 || h.GetStartedAt() == nil {
		t.Errorf("hello %v", h)
	}
	eventually(t, "connected", c.Connected)
}

// An agent whose engine is away connects all the same: the plane must hear of it.
func TestHelloWithoutAnEngine(t *testing.T) {
	p := (&scripted{connect: steady(make(chan *runnerv1.AgentMessage, 8))}).start(t)
	c := run(t, p.ca, p.address, func(_ *Config, d *Deps) {
		d.Node = func(context.Context) (*runnerv1.NodeFacts, error) { return nil, context.DeadlineExceeded }
		d.Nodes = func(context.Context) (*runnerv1.NodeList, error) { return nil, context.DeadlineExceeded }
	})
	eventually(t, "connected", c.Connected)
}

func TestWarningsSayWhy(t *testing.T) {
	never := func(s runnerv1.Runner_ConnectServer) error { <-s.Context().Done(); return nil }
	refuse := func(err error) func(runnerv1.Runner_ConnectServer) error {
		return func(runnerv1.Runner_ConnectServer) error { return failurepb.Status(err) }
	}
	nobody := func(t *testing.T) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	for name, tc := range map[string]struct {
		connect func(runnerv1.Runner_ConnectServer) error
		address func(*testing.T) string
		ca      func(*testing.T) *testca.CA // the agent's, if not the plane's
		tls     func(*testing.T, *testca.CA) *tls.Config
		code    string
		text    string
	}{
		"nobody listens":      {connect: never, address: nobody, code: WarningUnreachable, text: "connection refused"},
		"no such name":        {connect: never, address: func(*testing.T) string { return "plane.invalid:443" }, code: WarningUnreachable, text: "plane.invalid"},
		"no welcome":          {connect: never, code: WarningUnreachable, text: "no welcome from the plane within 300ms"},
		"plane of another CA": {connect: never, ca: testcaNew, code: WarningUntrusted, text: "shows a certificate that is not from this agent's CA"},
		"plane of another name": {connect: never, tls: func(_ *testing.T, ca *testca.CA) *tls.Config {
			cfg := ca.Client("a-1", "shop")
			cfg.ServerName = "plane.example"
			return cfg
		}, code: WarningUntrusted, text: "shows a certificate for another name"},
		"certificate of another CA": {connect: never, tls: func(t *testing.T, ca *testca.CA) *tls.Config {
			cfg := testca.New(t).Client("a-1", "shop")
			cfg.RootCAs = ca.Pool()
			return cfg
		}, code: WarningRefused, text: "the agent's certificate is not accepted"},
		"revoked": {
			connect: refuse(failure.New(failure.Denied, "revoked", "a-1", "the certificate of agent a-1 is revoked")),
			code:    WarningRefused, text: "refuses this agent: the certificate of agent a-1 is revoked",
		},
		"duplicate": {
			connect: refuse(failure.New(failure.Conflict, "duplicate_identity", "a-1", "another live session uses the identity of agent a-1").WithHint("look for a clone")),
			code:    WarningRefused, text: "another live session uses the identity of agent a-1; look for a clone",
		},
		"plane is full": {
			connect: refuse(failure.New(failure.Unavailable, "fleet_full", "", "the plane takes no more")),
			code:    WarningUnreachable, text: "the plane takes no more",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := (&scripted{connect: tc.connect}).start(t)
			address, ca := p.address, p.ca
			if tc.address != nil {
				address = tc.address(t)
			}
			if tc.ca != nil {
				ca = tc.ca(t)
			}
			c := run(t, ca, address, func(cfg *Config, d *Deps) {
				cfg.Timing.Handshake = 300 * time.Millisecond
				if tc.code != WarningUnreachable {
					cfg.Timing.Handshake = long
				}
				if tc.tls != nil {
					settings := tc.tls(t, p.ca)
					d.TLS = func() *tls.Config { return settings }
				}
			})
			eventually(t, "the warning", func() bool { return c.warn.only(tc.code) != "" })
			eventually(t, "its sentence: "+tc.text+"; it is: "+c.warn.only(tc.code), func() bool { return strings.Contains(c.warn.only(tc.code), tc.text) })
			if c.Connected() || c.Stats().Connects != 0 {
				t.Error("connected")
			}
			c.stop()
			if len(c.warn.set) != 0 {
				t.Error("a warning outlives Run")
			}
		})
	}
}

func testcaNew(t *testing.T) *testca.CA { return testca.New(t) }

func TestUnansweredHeartbeatEndsTheSession(t *testing.T) {
	var sessions atomic.Int64
	p := (&scripted{connect: func(s runnerv1.Runner_ConnectServer) error {
		if _, err := welcome(s, 20*time.Millisecond); err != nil {
			return err
		}
		if sessions.Add(1) > 1 {
			return serve(s, func(*runnerv1.AgentMessage) {})
		}
		for { // takes heartbeats and answers none: the connection itself is well
			if _, err := s.Recv(); err != nil {
				return err
			}
		}
	}}).start(t)
	logs := &records{}
	run(t, p.ca, p.address, func(_ *Config, d *Deps) { d.Log = slog.New(logs) })
	eventually(t, "the next session", func() bool { return sessions.Load() >= 2 })
	if codes := logs.values("session ended", "code"); codes[0] != "heartbeat_unanswered" {
		t.Errorf("ended with %v", codes)
	}
}

// A plane that reads nothing stops the writer. The heartbeat behind it is unanswered like any other.
func TestPlaneThatDoesNotReadEndsTheSession(t *testing.T) {
	var sessions atomic.Int64
	p := (&scripted{connect: func(s runnerv1.Runner_ConnectServer) error {
		if _, err := welcome(s, 50*time.Millisecond); err != nil {
			return err
		}
		if sessions.Add(1) > 1 {
			return serve(s, func(*runnerv1.AgentMessage) {})
		}
		for i := 0; ; i++ {
			if err := s.Send(request("r" + time.Duration(i).String())); err != nil {
				return err
			}
		}
	}}).start(t)
	run(t, p.ca, p.address, func(_ *Config, d *Deps) {
		big := []string{strings.Repeat("x", 1<<20)}
		d.Handler = handlerFunc(func(context.Context, *runnerv1.Request) *runnerv1.Response { return &runnerv1.Response{Warnings: big} })
	})
	eventually(t, "the next session", func() bool { return sessions.Load() >= 2 })
}

// What cannot wait is told at once, however long the interval is.
func TestHeartbeatOutOfTurn(t *testing.T) {
	beats := make(chan uint64, 8)
	p := (&scripted{connect: func(s runnerv1.Runner_ConnectServer) error {
		if _, err := welcome(s, time.Minute); err != nil {
			return err
		}
		for {
			m, err := s.Recv()
			if err != nil {
				return nil
			}
			if h := m.GetHeartbeat(); h != nil {
				beats <- h.GetSequence()
			}
		}
	}}).start(t)
	beat := make(chan struct{})
	run(t, p.ca, p.address, func(_ *Config, d *Deps) { d.Beat = beat })
	for n := uint64(1); n <= 3; n++ {
		if got := receive(t, "a heartbeat", beats); got != n {
			t.Errorf("heartbeat %d is number %d", n, got)
		}
		if n < 3 {
			beat <- struct{}{}
		}
	}
}

func TestHeartbeatIsMadeFit(t *testing.T) {
	beats := make(chan *runnerv1.Heartbeat, 8)
	p := (&scripted{connect: func(s runnerv1.Runner_ConnectServer) error {
		if _, err := welcome(s, time.Second); err != nil {
			return err
		}
		msg, err := s.Recv()
		if err != nil {
			return err
		}
		beats <- msg.GetHeartbeat()
		<-s.Context().Done()
		return nil
	}}).start(t)
	run(t, p.ca, p.address, func(_ *Config, d *Deps) {
		d.Heartbeat = func() *runnerv1.Heartbeat {
			h := &runnerv1.Heartbeat{RunningCommands: make([]string, 100), Stacks: make([]*runnerv1.StackGeneration, 2000)}
			for range 100 {
				h.Warnings = append(h.Warnings, &runnerv1.HealthWarning{Title: "bad \xff byte", Text: strings.Repeat("x", 5000)})
			}
			return h
		}
	})
	h := receive(t, "a heartbeat", beats)
	if len(h.GetWarnings()) != 32 || len(h.GetRunningCommands()) != 64 || len(h.GetStacks()) != 1000 || h.GetSequence() != 1 || h.GetSentAt() == nil {
		t.Errorf("%d warnings, %d commands, %d stacks, sequence %d", len(h.GetWarnings()), len(h.GetRunningCommands()), len(h.GetStacks()), h.GetSequence())
	}
	if w := h.GetWarnings()[0]; w.GetTitle() != "bad ? byte" || len(w.GetText()) != 4096 {
		t.Errorf("title %q, %d bytes of text", w.GetTitle(), len(w.GetText()))
	}
}

func TestRetryHints(t *testing.T) {
	const hint = 400 * time.Millisecond
	withHint := func(code codes.Code) error {
		st, err := status.New(code, "later").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(hint)})
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	bye := &runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_Goodbye{Goodbye: &runnerv1.Goodbye{Reason: "restart", RetryAfter: durationpb.New(hint)}}}
	for name, end := range map[string]func(runnerv1.Runner_ConnectServer) error{
		"refused with RetryInfo": func(runnerv1.Runner_ConnectServer) error { return withHint(codes.ResourceExhausted) },
		"ended with RetryInfo": func(s runnerv1.Runner_ConnectServer) error {
			if _, err := welcome(s, time.Second); err != nil {
				return err
			}
			return withHint(codes.Unavailable)
		},
		"goodbye": func(s runnerv1.Runner_ConnectServer) error {
			if _, err := welcome(s, time.Second); err != nil {
				return err
			}
			return s.Send(bye)
		},
		"goodbye instead of welcome": func(s runnerv1.Runner_ConnectServer) error { return s.Send(bye) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var times []time.Time
			p := (&scripted{connect: func(s runnerv1.Runner_ConnectServer) error {
				mu.Lock()
				times = append(times, time.Now())
				mu.Unlock()
				return end(s)
			}}).start(t)
			run(t, p.ca, p.address, nil)
			eventually(t, "two attempts", func() bool { mu.Lock(); defer mu.Unlock(); return len(times) >= 2 })
			mu.Lock()
			defer mu.Unlock()
			if gap := times[1].Sub(times[0]); gap < hint {
				t.Errorf("came back after %s, asked for %s", gap, hint)
			}
		})
	}
}

func TestRetryHintIsBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want time.Duration
	}{
		"none":     {context.Canceled, 0},
		"long":     {goodbye(&runnerv1.Goodbye{RetryAfter: durationpb.New(24 * time.Hour)}), 10 * time.Minute},
		"negative": {goodbye(&runnerv1.Goodbye{RetryAfter: durationpb.New(-time.Hour)}), 0},
		"absent":   {goodbye(&runnerv1.Goodbye{}), 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := retryAfter(tc.err, 10*time.Minute); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// The back-off begins anew only after a session that lasted, by the injected clock.
func TestBackoffResetsOnlyAfterHealth(t *testing.T) {
	var mu sync.Mutex
	now := time.Unix(1_700_000_000, 0)
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	lasts := []time.Duration{0, time.Second, 59 * time.Second, 61 * time.Second, 0}
	var n atomic.Int64
	var connected atomic.Pointer[chan struct{}]
	p := (&scripted{connect: func(s runnerv1.Runner_ConnectServer) error {
		if _, err := welcome(s, time.Second); err != nil {
			return err
		}
		<-*connected.Load() // the agent has looked at the clock
		i := int(n.Add(1)) - 1
		if i >= len(lasts) {
			<-s.Context().Done()
			return nil
		}
		mu.Lock()
		now = now.Add(lasts[i])
		mu.Unlock()
		fresh := make(chan struct{})
		connected.Store(&fresh)
		return status.Error(codes.Unavailable, "again")
	}}).start(t)
	begin := make(chan struct{})
	connected.Store(&begin)
	logs := &records{}
	run(t, p.ca, p.address, func(cfg *Config, d *Deps) {
		cfg.Timing.BackoffMin, cfg.Timing.BackoffMax = 10*time.Millisecond, time.Second
		d.Now, d.Random, d.Log = clock, func() float64 { return 1 }, slog.New(logs)
		d.OnState = func(up, _ bool) {
			if up {
				close(*connected.Load())
			}
		}
	})
	eventually(t, "all sessions", func() bool { return len(logs.values("session ended", "retry_in")) == len(lasts) })
	if got, want := logs.values("session ended", "retry_in"), []string{"10ms", "20ms", "40ms", "10ms", "20ms"}; !slices.Equal(got, want) {
		t.Errorf("waits %v, want %v", got, want)
	}
}

func TestGoodbyeIsTheLastWord(t *testing.T) {
	said := make(chan *runnerv1.AgentMessage, 8)
	ended := make(chan struct{})
	connect := steady(said)
	p := (&scripted{connect: func(s runnerv1.Runner_ConnectServer) error {
		defer close(ended)
		return connect(s)
	}}).start(t)
	c := run(t, p.ca, p.address, nil)
	eventually(t, "connected", c.Connected)
	c.stop()
	if err := <-c.ended; err != nil {
		t.Errorf("Run returned %v", err)
	}
	receive(t, "the plane's end of the stream", ended)
	if m := receive(t, "a goodbye", said); m.GetGoodbye() == nil {
		t.Errorf("got %v", m)
	}
	if c.Connected() {
		t.Error("still connected")
	}
}

func TestLeavingIsBounded(t *testing.T) {
	for name, connect := range map[string]func(runnerv1.Runner_ConnectServer) error{
		"during the handshake": func(s runnerv1.Runner_ConnectServer) error { <-s.Context().Done(); return nil },
		"from a plane that keeps the stream": func(s runnerv1.Runner_ConnectServer) error {
			if _, err := welcome(s, time.Second); err != nil {
				return err
			}
			<-s.Context().Done()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			reached := make(chan struct{}, 1)
			p := (&scripted{connect: func(s runnerv1.Runner_ConnectServer) error {
				reached <- struct{}{}
				return connect(s)
			}}).start(t)
			c := run(t, p.ca, p.address, func(cfg *Config, _ *Deps) {
				cfg.Timing.Handshake = 10 * long
				cfg.Timing.AckTimeout = 10 * long
				cfg.Timing.Leave = 100 * time.Millisecond
			})
			receive(t, "the plane is reached", reached)
			go c.stop()
			receive(t, "Run returns", c.ended)
		})
	}
	t.Run("through a stalled network", func(t *testing.T) {
		p := (&scripted{connect: steady(make(chan *runnerv1.AgentMessage, 8))}).start(t)
		proxy := netproxy.Start(t, p.address)
		c := run(t, p.ca, proxy.Addr(), func(cfg *Config, _ *Deps) { cfg.Timing.Leave = 100 * time.Millisecond })
		eventually(t, "connected", c.Connected)
		proxy.Stall()
		go c.stop()
		receive(t, "Run returns", c.ended)
	})
}

func TestStateCallback(t *testing.T) {
	type state struct{ connected, allowed bool }
	states := make(chan state, 16)
	p := (&scripted{connect: func(s runnerv1.Runner_ConnectServer) error {
		if _, err := welcome(s, time.Second); err != nil {
			return err
		}
		ack := &runnerv1.HeartbeatAck{ClusterTopicAllowed: true}
		if err := s.Send(&runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_HeartbeatAck{HeartbeatAck: ack}}); err != nil {
			return err
		}
		<-s.Context().Done()
		return nil
	}}).start(t)
	proxy := netproxy.Start(t, p.address)
	run(t, p.ca, proxy.Addr(), func(_ *Config, d *Deps) {
		d.OnState = func(connected, allowed bool) { states <- state{connected, allowed} }
	})
	for _, want := range []state{{true, false}, {true, true}} {
		if got := receive(t, "a state", states); got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
	proxy.Cut()
	if got := receive(t, "a state", states); got != (state{false, true}) {
		t.Errorf("got %+v after the cut", got)
	}
}

// records is a slog.Handler that keeps what is logged.
type records struct {
	mu   sync.Mutex
	list []slog.Record
}

func (r *records) Enabled(context.Context, slog.Level) bool { return true }

func (r *records) Handle(_ context.Context, rec slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, rec)
	return nil
}

func (r *records) WithAttrs([]slog.Attr) slog.Handler { return r }

func (r *records) WithGroup(string) slog.Handler { return r }

// values returns an attribute of every record with that message.
func (r *records) values(msg, key string) (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.list {
		rec.Attrs(func(a slog.Attr) bool {
			if rec.Message == msg && a.Key == key {
				list = append(list, a.Value.String())
			}
			return true
		})
	}
	return list
}
