package session

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/internal/handshake"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// session is one life of a session, from a welcomed connection to its end. Everything that belongs to it runs under ctx; the first failure is ctx's
// cause and ends the rest.
type session struct {
	client  *Client
	conn    *grpc.ClientConn
	rpc     runnerv1.RunnerClient
	stream  runnerv1.Runner_ConnectClient
	trust   handshake.Credentials
	welcome *runnerv1.Welcome

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	beats    chan *runnerv1.AgentMessage // one heartbeat, before everything in queue
	queue    chan *runnerv1.AgentMessage
	acks     chan *runnerv1.HeartbeatAck
	requests *requests
	logs     *logs
}

// open dials the plane, says Hello and waits for Welcome. If there is none it says whether anybody took the connection.
func (c *Client) open(ctx context.Context) (_ *session, answered bool, _ error) {
	trust := handshake.New(c.deps.TLS())
	dialer := newDialer(c.cfg.Timing.Dial)
	conn, err := grpc.NewClient(c.cfg.Address,
		grpc.WithTransportCredentials(trust),
		grpc.WithContextDialer(dialer.dial),
		grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent("axion-agent/"+c.cfg.AgentVersion),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceiveBytes), grpc.MaxCallSendMsgSize(maxSendBytes)))
	if err != nil {
		return nil, false, failure.New(failure.Invalid, "plane_address", c.cfg.Address, "connect to plane %s: %w", c.cfg.Address, err)
	}
	s := &session{
		client: c,
		conn:   conn,
		rpc:    runnerv1.NewRunnerClient(conn),
		trust:  trust,
		beats:  make(chan *runnerv1.AgentMessage, 1),
		queue:  make(chan *runnerv1.AgentMessage, maxQueued),
		acks:   make(chan *runnerv1.HeartbeatAck),
	}
	// The session outlives ctx by the time of a farewell.
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := s.greet(ctx); err != nil {
		s.close(err)
		return nil, dialer.connected.Load(), err
	}
	return s, true, nil
}

// greet bounds the handshake, by ctx and in time.
func (s *session) greet(ctx context.Context) error {
	t := s.client.cfg.Timing
	late := time.AfterFunc(t.Handshake, func() {
		s.cancel(failure.New(failure.Unavailable, "handshake_timeout", s.client.cfg.Address, "no welcome from the plane within %s", t.Handshake))
	})
	ended := context.AfterFunc(ctx, func() { s.cancel(ctx.Err()) })
	welcome, err := s.hello()
	if !late.Stop() || !ended() {
		return context.Cause(s.ctx)
	}
	if err != nil {
		return s.explain(err)
	}
	s.welcome = welcome
	return nil
}

func (s *session) hello() (*runnerv1.Welcome, error) {
	hello := &runnerv1.Hello{
		AgentVersion: s.client.cfg.AgentVersion,
		Node:         s.node(),
		InstanceId:   s.client.cfg.InstanceID,
		StartedAt:    timestamppb.New(s.client.started),
	}
	var err error
	if s.stream, err = s.rpc.Connect(s.ctx); err != nil {
		return nil, err
	}
	err = s.stream.Send(&runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Hello{Hello: hello}})
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: Recv has the reason
		return nil, err
	}
	first, err := s.stream.Recv()
	if err != nil {
		return nil, err
	}
	if bye := first.GetGoodbye(); bye != nil {
		return nil, goodbye(bye)
	}
	if first.GetWelcome() == nil {
		return nil, failure.New(failure.Internal, "unexpected_message", "", "the plane's first message is no welcome")
	}
	return first.GetWelcome(), nil
}

func (s *session) node() *runnerv1.NodeFacts {
	if s.client.deps.Node == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, nodeTimeout)
	defer cancel()
	node, err := s.client.deps.Node(ctx)
	if err != nil {
		s.client.deps.Log.Warn("the node's facts are not known; the plane keeps those that it has", "error", err)
		return nil
	}
	return node
}

// run lives the session until it breaks or ctx ends, and returns why.
func (s *session) run(ctx context.Context) error {
	s.requests = newRequests(s)
	s.logs = newLogs(s)
	s.spawn(s.read)
	s.spawn(s.write)
	if s.client.deps.Nodes != nil {
		s.spawn(s.watchNodes)
	}
	if s.client.deps.Metrics != nil {
		s.spawn(s.metrics)
	}
	s.close(s.heart(ctx.Done()))
	return context.Cause(s.ctx)
}

// spawn runs f as a part of the session: its error ends the session, and the session waits for it.
func (s *session) spawn(f func() error) {
	s.wg.Go(func() {
		if err := f(); err != nil {
			s.cancel(err)
		}
	})
}

// close ends everything for that reason, unless there is an earlier one, and waits.
func (s *session) close(reason error) {
	s.cancel(reason)
	_ = s.conn.Close() // fails only if it is closed already
	s.wg.Wait()
}

// explain makes a failure of an error of the connection. The session's own reason to end goes first: what gRPC says then is only its echo.
func (s *session) explain(err error) error {
	if cause := context.Cause(s.ctx); cause != nil {
		return cause
	}
	if errors.Is(err, io.EOF) {
		return failure.New(failure.Unavailable, "plane_closed", s.client.cfg.Address, "the plane closed the session")
	}
	return explainStatus(s.client.cfg.Address, err, s.trust.Err())
}

// read takes the plane's messages. It may wait for the writer; then the plane waits too, and the heart decides whether that is a broken session.
func (s *session) read() error {
	for {
		msg, err := s.stream.Recv()
		if err != nil {
			return s.explain(err)
		}
		switch m := msg.GetMessage().(type) {
		case *runnerv1.PlaneMessage_HeartbeatAck:
			select {
			case s.acks <- m.HeartbeatAck:
			case <-s.ctx.Done():
			}
		case *runnerv1.PlaneMessage_Request:
			s.requests.accept(m.Request)
		case *runnerv1.PlaneMessage_OpenLogs:
			s.logs.accept(m.OpenLogs)
		case *runnerv1.PlaneMessage_Goodbye:
			return goodbye(m.Goodbye)
		default: // a newer plane says something that this version does not know
		}
	}
}

// write is the one goroutine that sends on Connect. A heartbeat goes before everything else; a Goodbye is the last that is sent.
func (s *session) write() error {
	for {
		var msg *runnerv1.AgentMessage
		select {
		case msg = <-s.beats:
		default:
			select {
			case msg = <-s.beats:
			case msg = <-s.queue:
			case <-s.ctx.Done():
				return nil
			}
		}
		err := s.stream.Send(msg)
		if errors.Is(err, io.EOF) {
			return nil // the stream has ended; the reader gets the reason
		}
		if err != nil {
			return s.explain(err)
		}
		if msg.GetGoodbye() != nil {
			_ = s.stream.CloseSend() // never fails
			return nil
		}
	}
}

// send puts a message into the writer's queue and waits for room there.
func (s *session) send(msg *runnerv1.AgentMessage) {
	select {
	case s.queue <- msg:
	case <-s.ctx.Done():
	}
}

// leave says goodbye, lets the plane end the session, and waits no longer than the time that is set for it.
func (s *session) leave() error {
	bye := &runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Goodbye{Goodbye: &runnerv1.Goodbye{Reason: "the agent is shutting down"}}}
	late := time.NewTimer(s.client.cfg.Timing.Leave)
	defer late.Stop()
	queue := s.queue
	for {
		select {
		case queue <- bye:
			queue = nil
		case <-s.acks: // the reader must get to the end of the stream
		case <-s.ctx.Done():
			return nil
		case <-late.C:
			return context.DeadlineExceeded
		}
	}
}

func goodbye(g *runnerv1.Goodbye) error {
	return failure.New(failure.Unavailable, "plane_goodbye", "", "%w", &goodbyeError{reason: cut(g.GetReason(), maxReasonBytes), retry: g.GetRetryAfter().AsDuration()})
}

// maxReasonBytes bounds what is kept of a Goodbye's reason.
const maxReasonBytes = 256

// cut shortens s to at most n bytes, at the border of a character: half of one cannot be encoded.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

// within returns a context that ends after d, but not after the session.
func (s *session) within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.ctx, d)
}
