package operator

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Bounds of the contract on a request's own timeout.
const (
	minRequestTimeout = 100 * time.Millisecond
	maxRequestTimeout = 10 * time.Minute
)

// SendRequest sends an immediate command and waits for its answer. What the agent answers as a failure is the call's error.
func (s *Server) SendRequest(ctx context.Context, req *planev1.SendRequestRequest) (*runnerv1.Response, error) {
	request := proto.CloneOf(req.GetRequest())
	if request.GetCommand() == nil {
		return nil, s.answer(ctx, "SendRequest", invalid("no_command", "", "the request holds no command"))
	}
	if d := request.GetTimeout(); d != nil && (d.CheckValid() != nil || d.AsDuration() < minRequestTimeout || d.AsDuration() > maxRequestTimeout) {
		return nil, s.answer(ctx, "SendRequest", invalid("bad_timeout", "timeout", "the timeout is %v, it must be from %v to %v", d.AsDuration(), minRequestTimeout, maxRequestTimeout))
	}
	agentID, err := s.session(ctx, req.GetAgentId(), req.GetClusterId())
	if err != nil {
		return nil, s.answer(ctx, "SendRequest", err)
	}
	request.Id = "" // the fleet gives it one
	resp, err := s.deps.Fleet.Request(ctx, agentID, request)
	if err != nil {
		return nil, s.answer(ctx, "SendRequest", err)
	}
	return resp, nil
}

// StreamLogs reads logs through an agent's session.
func (s *Server) StreamLogs(req *planev1.StreamLogsRequest, stream grpc.ServerStreamingServer[runnerv1.LogBatch]) error {
	ctx := stream.Context()
	if req.GetOpen().GetTarget() == nil {
		return s.answer(ctx, "StreamLogs", invalid("no_log_target", "", "the request names neither a service nor a container"))
	}
	agentID, err := s.session(ctx, req.GetAgentId(), req.GetClusterId())
	if err == nil {
		err = s.deps.Fleet.StreamLogs(ctx, agentID, req.GetOpen(), stream.Send)
	}
	return s.answer(ctx, "StreamLogs", err)
}
