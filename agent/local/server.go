// Package local answers the agent's own command line, and a desktop client, on a Unix socket of the host: how the agent is, what runs, and logs.
// Nothing can be changed through it. Who may ask is decided by the socket file's owner, group and mode; who asked is logged as the kernel tells it.
package local

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/axion/runner-agent/internal/backoff"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// Bounds of the server. Its clients are a handful of people and programs of this host.
const (
	maxConnections    = 64
	maxStreams        = 32 // a connection
	maxRequestBytes   = 64 << 10
	handshakeTimeout  = 5 * time.Second
	shutdownTimeout   = time.Second
	maxNameBytes      = 255
	maxOpenLogs       = 32 // at once, of all connections
	maxMessageBytes   = 16 << 20
	maxHeaderListSize = 16 << 10
)

const (
	// warnSocket is set while the socket cannot be had.
	warnSocket = "local_socket"
	// retryEvery is the wait before it is tried again.
	retryEvery = 30 * time.Second
)

// Config says where the socket is.
type Config struct {
	// Socket is the socket's path.
	Socket string
	// Group may open it, by name or number; empty leaves it to the process's own group.
	Group string
}

// LogSource reads the logs of services and containers.
type LogSource interface {
	// OpenLogs gives the log to send until it ends, or, with follow, until ctx ends.
	OpenLogs(ctx context.Context, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error
}

// Warner takes health warnings.
type Warner interface {
	Set(code string, severity runnerv1.HealthSeverity, title, text string)
	Clear(code string)
}

// Deps are what the server tells of.
type Deps struct {
	// Status returns how the agent is.
	Status func() *runnerv1.AgentStatus
	// Stack returns a stack's services and tasks, or the list of stacks if the name is empty.
	Stack func(ctx context.Context, stack string) (*runnerv1.StackStatusResult, error)
	Logs  LogSource
	Warn  Warner
	Log   *slog.Logger
}

// Server is the local service.
type Server struct {
	runnerv1.UnimplementedLocalServer
	cfg      Config
	deps     Deps
	retry    time.Duration
	logSlots chan struct{}
}

// New returns a server that does not listen yet.
func New(cfg Config, deps Deps) *Server {
	return &Server{cfg: cfg, deps: deps, retry: retryEvery, logSlots: make(chan struct{}, maxOpenLogs)}
}

// Run answers until ctx ends, then returns nil; calls that are running get a second to finish. A socket that cannot be had (another agent answers on it, the
// folder is read-only) is no reason for a node to be without its agent: it is a warning, and tried again.
func (s *Server) Run(ctx context.Context) error {
	for said := ""; ; {
		err := s.serve(ctx)
		if ctx.Err() != nil {
			s.deps.Warn.Clear(warnSocket)
			return nil
		}
		if text := s.complain(err); text != said {
			s.deps.Log.Warn("the local socket does not answer; it is tried again", "socket", s.cfg.Socket, "error", text, "retry_in", s.retry)
			said = text
		}
		backoff.Sleep(ctx, s.retry)
	}
}

// complain sets the warning that says why nobody can ask on this host, and returns its text.
func (s *Server) complain(err error) string {
	f := failure.Of(err)
	text := f.Message
	if f.Hint != "" {
		text += "; " + f.Hint
	}
	s.deps.Warn.Set(warnSocket, runnerv1.HealthSeverity_HEALTH_SEVERITY_MEDIUM, "The local socket does not answer", text)
	return text
}

// serve answers until ctx ends; then it returns nil. Failures: conflict local_socket_in_use if another agent answers there, local_socket if the socket cannot
// be made.
func (s *Server) serve(ctx context.Context) error {
	l, err := listen(ctx, s.cfg, s.deps)
	if err != nil {
		return err
	}
	defer l.remove()
	s.deps.Warn.Clear(warnSocket)
	server := s.server()
	stopped := make(chan error, 1)
	go func() { stopped <- server.Serve(l) }()
	select {
	case err := <-stopped:
		return err
	case <-ctx.Done():
	}
	stop(server)
	return <-stopped
}

func (s *Server) server() *grpc.Server {
	server := grpc.NewServer(
		grpc.Creds(peerCredentials{log: s.deps.Log}),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.MaxHeaderListSize(maxHeaderListSize),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
	)
	runnerv1.RegisterLocalServer(server, s)
	return server
}

// stop ends the calls, by force if they do not end by themselves: a log that is followed never does.
func stop(server *grpc.Server) {
	force := time.AfterFunc(shutdownTimeout, server.Stop)
	defer force.Stop()
	server.GracefulStop()
}

// GetStatus tells how the agent is.
func (s *Server) GetStatus(context.Context, *runnerv1.GetStatusRequest) (*runnerv1.AgentStatus, error) {
	return s.deps.Status(), nil
}

// GetStack tells the services and tasks of a stack, or the list of stacks.
func (s *Server) GetStack(ctx context.Context, req *runnerv1.StackStatus) (*runnerv1.StackStatusResult, error) {
	if len(req.GetStack()) > maxNameBytes {
		return nil, failurepb.Status(failure.New(failure.Invalid, "bad_stack", "", "stack name has %d bytes, at most %d are allowed", len(req.GetStack()), maxNameBytes))
	}
	result, err := s.deps.Stack(ctx, req.GetStack())
	if err != nil {
		return nil, failurepb.Status(err)
	}
	return result, nil
}

// StreamLogs sends a log.
func (s *Server) StreamLogs(req *runnerv1.LocalLogsRequest, stream grpc.ServerStreamingServer[runnerv1.LogBatch]) error {
	open, err := openLogs(req)
	if err != nil {
		return failurepb.Status(err)
	}
	select {
	case s.logSlots <- struct{}{}:
		defer func() { <-s.logSlots }()
	default:
		return failurepb.Status(failure.New(failure.Unavailable, "too_many_log_streams", "", "the agent already has %d log streams open", maxOpenLogs))
	}
	if err := s.deps.Logs.OpenLogs(stream.Context(), open, stream.Send); err != nil {
		return failurepb.Status(err)
	}
	return stream.Send(&runnerv1.LogBatch{End: true})
}

func openLogs(req *runnerv1.LocalLogsRequest) (*runnerv1.OpenLogs, error) {
	open := &runnerv1.OpenLogs{Options: req.GetOptions()}
	name := ""
	switch target := req.GetTarget().(type) {
	case *runnerv1.LocalLogsRequest_Service:
		name, open.Target = target.Service, &runnerv1.OpenLogs_Service{Service: target.Service}
	case *runnerv1.LocalLogsRequest_Container:
		name, open.Target = target.Container, &runnerv1.OpenLogs_Container{Container: target.Container}
	}
	if name == "" || len(name) > maxNameBytes {
		return nil, failure.New(failure.Invalid, "bad_log_target", "", "name a service or a container, with at most %d bytes", maxNameBytes)
	}
	return open, nil
}
