package fleet_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/axion/runner-agent/plane/fleet"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// wire is an agent that says what the test wants.
type wire struct {
	t      *testing.T
	rpc    runnerv1.RunnerClient
	stream runnerv1.Runner_ConnectClient
}

func (p *plane) wire(cfg *tls.Config) *wire {
	p.t.Helper()
	conn, err := grpc.NewClient(p.proxy.Addr(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	w := &wire{t: p.t, rpc: runnerv1.NewRunnerClient(conn)}
	if w.stream, err = w.rpc.Connect(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	return w
}

func (w *wire) say(msg *runnerv1.AgentMessage) {
	if err := w.stream.Send(msg); err != nil && !errors.Is(err, io.EOF) {
		w.t.Fatal(err)
	}
}

func (w *wire) hello(h *runnerv1.Hello) {
	w.say(&runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Hello{Hello: h}})
}

func (w *wire) beat(h *runnerv1.Heartbeat) {
	w.say(&runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Heartbeat{Heartbeat: h}})
}

// welcomed says a good Hello and waits for Welcome.
func (w *wire) welcomed() *wire {
	w.t.Helper()
	w.hello(&runnerv1.Hello{InstanceId: instance})
	msg, err := w.stream.Recv()
	if err != nil || msg.GetWelcome() == nil {
		w.t.Fatalf("got %v, %v; want a welcome", msg, err)
	}
	return w
}

// end reads to the end of the stream.
func (w *wire) end() error {
	for {
		if _, err := w.stream.Recv(); err != nil {
			return err
		}
	}
}

func hint(err error) (time.Duration, bool) {
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			return r.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}

func TestBadBeginnings(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm)
	p.config.Timing.Hello = 200 * time.Millisecond
	p.start()
	for name, tc := range map[string]struct {
		say   func(*wire)
		class failure.Class
		code  string
	}{
		"silence":         {func(*wire) {}, failure.Deadline, "no_hello"},
		"heartbeat first": {func(w *wire) { w.beat(&runnerv1.Heartbeat{}) }, failure.Invalid, "no_hello"},
		"short instance":  {func(w *wire) { w.hello(&runnerv1.Hello{InstanceId: "short"}) }, failure.Invalid, "bad_hello"},
		"long instance":   {func(w *wire) { w.hello(&runnerv1.Hello{InstanceId: strings.Repeat("x", 65)}) }, failure.Invalid, "bad_hello"},
		"long version": {func(w *wire) {
			w.hello(&runnerv1.Hello{InstanceId: instance, AgentVersion: strings.Repeat("1", 65)})
		}, failure.Invalid, "bad_hello"},
	} {
		t.Run(name, func(t *testing.T) {
			w := p.wire(p.ca.Client(agentID, clusterID))
			tc.say(w)
			wantFailure(t, failurepb.FromStatus(w.end()), tc.class, tc.code)
			if p.fleet.Connected(agentID) {
				t.Error("connected")
			}
		})
	}
}

func TestWithoutCertificate(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	w := p.wire(&tls.Config{RootCAs: p.ca.Pool(), MinVersion: tls.VersionTLS13})
	w.hello(&runnerv1.Hello{InstanceId: instance})
	wantFailure(t, failurepb.FromStatus(w.end()), failure.Denied, "no_certificate")

	metrics, err := w.rpc.Metrics(t.Context())
	if err == nil {
		_, err = metrics.Recv()
	}
	wantFailure(t, failurepb.FromStatus(err), failure.Denied, "no_certificate")
	logs, err := w.rpc.Logs(t.Context())
	if err == nil {
		_, err = logs.Recv()
	}
	wantFailure(t, failurepb.FromStatus(err), failure.Denied, "no_certificate")
}

func TestHeartbeatBounds(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	w := p.wire(p.ca.Client(agentID, clusterID)).welcomed()
	many := &runnerv1.Heartbeat{Sequence: 1}
	for range 100 {
		many.Warnings = append(many.Warnings, &runnerv1.HealthWarning{Code: strings.Repeat("c", 100), Text: strings.Repeat("é", 2500)})
		many.RunningCommands = append(many.RunningCommands, "c")
		many.Members = append(many.Members, &runnerv1.GroupMember{})
	}
	for range 1500 {
		many.Stacks = append(many.Stacks, &runnerv1.StackGeneration{})
	}
	many.Warnings = many.Warnings[:64]
	w.beat(many)
	eventually(t, "the heartbeat is there", func() bool { s, _ := p.fleet.Session(agentID); return s.Heartbeat != nil })
	s, _ := p.fleet.Session(agentID)
	h := s.Heartbeat
	if len(h.GetWarnings()) != 32 || len(h.GetRunningCommands()) != 64 || len(h.GetMembers()) != 4 || len(h.GetStacks()) != 1000 {
		t.Errorf("%d warnings, %d commands, %d members, %d stacks", len(h.GetWarnings()), len(h.GetRunningCommands()), len(h.GetMembers()), len(h.GetStacks()))
	}
	if x := h.GetWarnings()[0]; len(x.GetCode()) > 64 || len(x.GetText()) > 4<<10 {
		t.Errorf("code of %d bytes, text of %d", len(x.GetCode()), len(x.GetText()))
	}
	w.beat(&runnerv1.Heartbeat{Sequence: 2, RunningCommands: []string{strings.Repeat("x", 1<<20)}})
	wantFailure(t, failurepb.FromStatus(w.end()), failure.Invalid, "heartbeat_too_large")
}

func TestSilentAgentIsGivenUp(t *testing.T) {
	t.Parallel()
	p := newPlane(t, fast).start()
	w := p.wire(p.ca.Client(agentID, clusterID)).welcomed()
	wantFailure(t, failurepb.FromStatus(w.end()), failure.Unavailable, "heartbeat_missed")
}

func TestAgentThatDoesNotReadIsGivenUp(t *testing.T) {
	t.Parallel()
	p := newPlane(t, time.Minute).start()
	p.wire(p.ca.Client(agentID, clusterID)).welcomed()
	big := ping()
	big.Command = &runnerv1.Request_ContainerStart{ContainerStart: &runnerv1.ContainerStart{Container: strings.Repeat("x", 256<<10)}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nobody waits for the answers
	eventually(t, "the session ends", func() bool {
		_, _ = p.fleet.Request(ctx, agentID, big)
		return !p.fleet.Connected(agentID)
	})
	eventually(t, "the end is told", func() bool { return len(p.seen(fleet.Closed)) == 1 })
	wantFailure(t, p.seen(fleet.Closed)[0].Err, failure.Unavailable, "agent_does_not_read")
}

func TestStreamsBelongToTheSessionsConnection(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	own := p.wire(p.ca.Client(agentID, clusterID)).welcomed()
	other := p.wire(p.ca.Client(agentID, clusterID)) // the same identity, another connection
	metrics, err := other.rpc.Metrics(t.Context())
	if err == nil {
		_, err = metrics.Recv()
	}
	wantFailure(t, failurepb.FromStatus(err), failure.Conflict, "other_connection")

	read := func(w *wire, id string) error {
		stream, err := w.rpc.Logs(metadata.AppendToOutgoingContext(t.Context(), "axion-log-stream", id))
		if err == nil {
			_, err = stream.Recv()
		}
		return failurepb.FromStatus(err)
	}
	wantFailure(t, read(own, "invented"), failure.Invalid, "no_such_log_stream")
	opened := make(chan error, 1)
	go func() { opened <- p.fleet.StreamLogs(t.Context(), agentID, service("web"), nil) }()
	msg, err := own.stream.Recv()
	if err != nil || msg.GetOpenLogs() == nil {
		t.Fatalf("got %v, %v", msg, err)
	}
	wantFailure(t, read(other, msg.GetOpenLogs().GetStreamId()), failure.Conflict, "other_connection")

	stream, err := own.rpc.Logs(metadata.AppendToOutgoingContext(t.Context(), "axion-log-stream", msg.GetOpenLogs().GetStreamId()))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(line("%s", strings.Repeat("x", 65<<10))); err != nil {
		t.Fatal(err)
	}
	wantFailure(t, receive(t, "the reader's end", opened), failure.Invalid, "log_batch_too_large")
	if control, err := stream.Recv(); err != nil || !control.GetCancel() {
		t.Errorf("got %v, %v; want a cancel", control, err)
	}
}

func TestLogStreamThatIsNeverOpened(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm)
	p.config.Timing.OpenLogs = 50 * time.Millisecond
	p.start()
	p.wire(p.ca.Client(agentID, clusterID)).welcomed()
	wantFailure(t, p.fleet.StreamLogs(t.Context(), agentID, service("web"), nil), failure.Unavailable, "log_stream_not_opened")
}

func TestShutdownCarriesARetryHint(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm).start()
	w := p.wire(p.ca.Client(agentID, clusterID)).welcomed()
	p.stop()
	msg, err := w.stream.Recv()
	if err != nil || msg.GetGoodbye() == nil {
		t.Fatalf("got %v, %v; want a goodbye", msg, err)
	}
	if d := msg.GetGoodbye().GetRetryAfter().AsDuration(); d <= 0 || d > time.Second {
		t.Errorf("hint %s for one agent", d)
	}
	err = w.end()
	if d, ok := hint(err); !ok || d > time.Second || status.Code(err) != codes.Unavailable {
		t.Errorf("hint %s, status %v", d, err)
	}
}

func TestFullFleet(t *testing.T) {
	t.Parallel()
	p := newPlane(t, calm)
	p.config.MaxSessions = 1
	p.start()
	p.wire(p.ca.Client("a-one", clusterID)).welcomed()
	w := p.wire(p.ca.Client("a-two", clusterID))
	w.hello(&runnerv1.Hello{InstanceId: instance})
	err := w.end()
	wantFailure(t, failurepb.FromStatus(err), failure.Unavailable, "fleet_full")
	if d, ok := hint(err); !ok || d <= 0 {
		t.Error("no retry hint")
	}
}
