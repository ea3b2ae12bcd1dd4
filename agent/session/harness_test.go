package session

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/testca"
)

// long is more than any step of these tests takes.
const long = 30 * time.Second

// scripted is a plane that does what a test wants of it: a real gRPC server over mTLS.
type scripted struct {
	runnerv1.UnimplementedRunnerServer
	t       *testing.T
	ca      *testca.CA
	address string
	connect func(runnerv1.Runner_ConnectServer) error
	metrics func(runnerv1.Runner_MetricsServer) error
	logs    func(runnerv1.Runner_LogsServer) error
}

func (p *scripted) Connect(s runnerv1.Runner_ConnectServer) error { return p.connect(s) }

func (p *scripted) Metrics(s runnerv1.Runner_MetricsServer) error {
	if p.metrics == nil {
		return p.UnimplementedRunnerServer.Metrics(s)
	}
	return p.metrics(s)
}

func (p *scripted) Logs(s runnerv1.Runner_LogsServer) error { return p.logs(s) }

// start starts the plane on loopback.
func (p *scripted) start(t *testing.T) *scripted {
	t.Helper()
	p.t = t
	if p.ca == nil {
		p.ca = testca.New(t)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = l.Addr().String()
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(p.ca.Server())), grpc.MaxRecvMsgSize(maxSendBytes))
	runnerv1.RegisterRunnerServer(server, p)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return p
}

// welcome reads Hello and welcomes the agent.
func welcome(s runnerv1.Runner_ConnectServer, interval time.Duration) (*runnerv1.Hello, error) {
	msg, err := s.Recv()
	if err != nil {
		return nil, err
	}
	if msg.GetHello() == nil {
		return nil, errors.New("the first message is no hello")
	}
	return msg.GetHello(), s.Send(&runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_Welcome{Welcome: &runnerv1.Welcome{
		SessionId: "s1", HeartbeatInterval: durationpb.New(interval),
	}}})
}

// serve answers heartbeats and hands on everything else until the agent leaves.
func serve(s runnerv1.Runner_ConnectServer, other func(*runnerv1.AgentMessage)) error {
	for {
		msg, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h := msg.GetHeartbeat(); h != nil {
			err = s.Send(&runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_HeartbeatAck{HeartbeatAck: &runnerv1.HeartbeatAck{Sequence: h.GetSequence()}}})
			if err != nil {
				return err
			}
			continue
		}
		other(msg)
	}
}

// steady is a Connect that welcomes the agent, sends it messages, and hands on what it says.
func steady(said chan<- *runnerv1.AgentMessage, messages ...*runnerv1.PlaneMessage) func(runnerv1.Runner_ConnectServer) error {
	return func(s runnerv1.Runner_ConnectServer) error {
		if _, err := welcome(s, time.Second); err != nil {
			return err
		}
		for _, m := range messages {
			if err := s.Send(m); err != nil {
				return err
			}
		}
		return serve(s, func(m *runnerv1.AgentMessage) { said <- m })
	}
}

func request(id string) *runnerv1.PlaneMessage {
	return &runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_Request{Request: &runnerv1.Request{Id: id}}}
}

func openLogs(id string) *runnerv1.PlaneMessage {
	return &runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_OpenLogs{OpenLogs: &runnerv1.OpenLogs{StreamId: id}}}
}

// client is a Client under test with its warnings.
type client struct {
	*Client
	warn  *warnings
	stop  func()
	ended <-chan error
}

// run starts a Client against address. change may alter what it is made of.
func run(t *testing.T, ca *testca.CA, address string, change func(*Config, *Deps)) *client {
	t.Helper()
	w := &warnings{set: map[string]string{}}
	settings := ca.Client("a-1", "shop")
	cfg := Config{Address: address, AgentVersion: "1.0", Timing: Timing{
		MinHeartbeat: 10 * time.Millisecond, BackoffMin: time.Millisecond, BackoffMax: 20 * time.Millisecond,
	}}
	deps := Deps{
		TLS:       func() *tls.Config { return settings },
		Heartbeat: func() *runnerv1.Heartbeat { return &runnerv1.Heartbeat{} },
		Handler:   handlerFunc(func(context.Context, *runnerv1.Request) *runnerv1.Response { return &runnerv1.Response{} }),
		Log:       slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Warn:      w,
	}
	if change != nil {
		change(&cfg, &deps)
	}
	c, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { ended <- c.Run(ctx) })
	cl := &client{Client: c, warn: w, ended: ended, stop: func() { cancel(); wg.Wait() }}
	t.Cleanup(cl.stop)
	return cl
}

type handlerFunc func(context.Context, *runnerv1.Request) *runnerv1.Response

func (f handlerFunc) Handle(ctx context.Context, req *runnerv1.Request) *runnerv1.Response {
	return f(ctx, req)
}

type logsFunc func(context.Context, *runnerv1.OpenLogs, func(*runnerv1.LogBatch) error) error

func (f logsFunc) OpenLogs(ctx context.Context, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
	return f(ctx, open, send)
}

type metricsFunc func(context.Context, <-chan time.Duration, func(*runnerv1.MetricsBatch) error) error

func (f metricsFunc) Stream(ctx context.Context, cadence <-chan time.Duration, send func(*runnerv1.MetricsBatch) error) error {
	return f(ctx, cadence, send)
}

type warnings struct {
	mu  sync.Mutex
	set map[string]string
}

func (w *warnings) Set(code string, _ runnerv1.HealthSeverity, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set[code] = text
}

func (w *warnings) Clear(code string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.set, code)
}

// only returns the text of the one warning that is set, if it has that code.
func (w *warnings) only(code string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.set) != 1 {
		return ""
	}
	return w.set[code]
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(long); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", long, what)
		}
	}
}

func receive[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(long):
		t.Fatalf("not within %s: %s", long, what)
		panic("unreachable")
	}
}
