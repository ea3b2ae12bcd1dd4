package session

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// requests does immediate commands: several at once, each at most once, with an answer for each.
type requests struct {
	session *session
	slots   chan struct{}

	mu      sync.Mutex
	answers map[string]*runnerv1.Response // by id; nil while it runs
	order   []string                      // answered ids, oldest first
}

func newRequests(s *session) *requests {
	return &requests{session: s, slots: make(chan struct{}, maxRequests), answers: make(map[string]*runnerv1.Response)}
}

// accept takes a request and sees to it that it is answered. It waits only for room in the writer's queue.
func (r *requests) accept(req *runnerv1.Request) {
	id := req.GetId()
	if id == "" || len(id) > maxIDBytes {
		r.refuse(cut(id, maxIDBytes), failure.New(failure.Invalid, "bad_request_id", "", "a request's id has %d bytes, not 1 to %d", len(id), maxIDBytes))
		return
	}
	answer, known := r.lookUp(id)
	switch {
	case known && answer == nil: // it runs; its answer is on the way
		return
	case known:
		r.reply(answer)
		return
	}
	select {
	case r.slots <- struct{}{}:
	default: // not remembered: it may be asked again
		r.refuse(id, failure.New(failure.Unavailable, "too_many_requests", "", "the agent already does %d immediate commands", maxRequests))
		return
	}
	r.started(id)
	r.session.client.count.requests.Add(1)
	r.session.spawn(func() error {
		defer func() { <-r.slots }()
		answer := r.do(req)
		r.finished(id, answer)
		r.reply(answer)
		return nil
	})
}

// do runs the handler within the request's time.
func (r *requests) do(req *runnerv1.Request) *runnerv1.Response {
	timeout := defaultRequestTimeout
	if req.GetTimeout() != nil {
		timeout = min(max(req.GetTimeout().AsDuration(), minRequestTimeout), maxRequestTimeout)
	}
	ctx, cancel := r.session.within(timeout)
	defer cancel()
	answer := r.session.client.deps.Handler.Handle(ctx, req)
	switch {
	case answer == nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		answer = refusal(failure.New(failure.Deadline, "deadline_exceeded", "", "the command did not end within %s", timeout))
	case answer == nil:
		answer = refusal(failure.New(failure.Internal, "no_answer", "", "the command gave no answer"))
	}
	answer.Id = req.GetId()
	answer.Warnings = first(answer.Warnings, maxWarningsAnswer)
	if err := sendable(answer); err != nil {
		answer = refusal(err)
		answer.Id = req.GetId()
	}
	return answer
}

// sendable finds an answer that would break the session: one that is too large, or holds text that is no UTF-8.
func sendable(answer *runnerv1.Response) error {
	const envelope = 1 << 10 // what the message around it takes, and more
	if size := proto.Size(answer); size > maxSendBytes-envelope {
		return failure.New(failure.Internal, "answer_too_large", "", "the answer has %d bytes, more than %d", size, maxSendBytes-envelope)
	}
	if _, err := proto.Marshal(answer); err != nil {
		return failure.New(failure.Internal, "answer_not_encodable", "", "the answer cannot be encoded: %w", err)
	}
	return nil
}

func (r *requests) lookUp(id string) (answer *runnerv1.Response, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer, known = r.answers[id]
	return answer, known
}

func (r *requests) started(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[id] = nil
}

// finished remembers an answer and forgets the oldest. Of a large one it remembers only that there was one.
func (r *requests) finished(id string, answer *runnerv1.Response) {
	if proto.Size(answer) > maxAnswerBytes {
		answer = refusal(failure.New(failure.Conflict, "already_answered", "", "request %s was done and answered before", id))
		answer.Id = id
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[id] = answer
	r.order = append(r.order, id)
	if len(r.order) > maxAnswers {
		delete(r.answers, r.order[0])
		r.order = r.order[1:]
	}
}

func (r *requests) refuse(id string, err error) {
	answer := refusal(err)
	answer.Id = id
	r.reply(answer)
}

func (r *requests) reply(answer *runnerv1.Response) {
	r.session.send(&runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Response{Response: answer}})
}

func refusal(err error) *runnerv1.Response {
	return &runnerv1.Response{Failure: failurepb.FromError(err)}
}
