package fleet

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// Request sends an immediate command to an agent and waits for the answer. A request without an id gets one; it must not be sent twice. An answer that
// tells a failure is returned together with that failure as the error. Failures of its own: unavailable agent_not_connected, agent_disconnected
// (the command may have been done) and too_many_requests; conflict request_id_in_use; deadline request_timeout.
func (f *Fleet) Request(ctx context.Context, agentID string, req *runnerv1.Request) (*runnerv1.Response, error) {
	s, err := f.live(agentID)
	if err != nil {
		return nil, err
	}
	req = proto.CloneOf(req)
	if req.GetId() == "" {
		req.Id = newID()
	}
	timeout := defaultRequestTimeout
	if req.GetTimeout() != nil {
		timeout = min(max(req.GetTimeout().AsDuration(), 0), maxRequestTimeout)
	}
	answer, err := s.expect(req.GetId())
	if err != nil {
		return nil, err
	}
	defer s.forget(req.GetId())
	s.send(&runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_Request{Request: req}})
	late := time.NewTimer(timeout + f.cfg.Timing.RequestGrace)
	defer late.Stop()
	select {
	case response := <-answer:
		return response, failurepb.ToError(response.GetFailure())
	case <-s.done:
		return nil, s.gone()
	case <-ctx.Done():
		return nil, failure.Of(ctx.Err())
	case <-late.C:
		return nil, failure.New(failure.Deadline, "request_timeout", agentID, "agent %s has not answered within %s", agentID, timeout+f.cfg.Timing.RequestGrace)
	}
}

// gone is the failure of what waited for an agent whose session has ended.
func (s *session) gone() error {
	return failure.New(failure.Unavailable, "agent_disconnected", s.agentID, "the session of agent %s has ended before the answer came", s.agentID)
}

// expect makes room for the answer to a request.
func (s *session) expect(id string) (<-chan *runnerv1.Response, error) {
	if len(id) > maxIDBytes {
		return nil, failure.New(failure.Invalid, "bad_request_id", "", "the request's id has more than %d bytes", maxIDBytes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, used := s.requests[id]; used {
		return nil, failure.New(failure.Conflict, "request_id_in_use", id, "request %s is already on its way to agent %s", id, s.agentID)
	}
	if len(s.requests) >= maxRequests {
		return nil, failure.New(failure.Unavailable, "too_many_requests", s.agentID, "agent %s has %d requests to answer already", s.agentID, maxRequests)
	}
	answer := make(chan *runnerv1.Response, 1)
	s.requests[id] = answer
	return answer, nil
}

func (s *session) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.requests, id)
}

// answered hands an answer to whoever waits for it. One that nobody waits for is dropped.
func (s *session) answered(response *runnerv1.Response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, ok := s.requests[response.GetId()]
	if !ok {
		return
	}
	select {
	case answer <- response:
	default: // answered twice
	}
}
