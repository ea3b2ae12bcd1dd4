package fleet

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// session is an agent's live session. The handler of its Connect stream owns it and runs its loop; others reach it through queue, close and the
// fields under mu.
type session struct {
	fleet              *Fleet
	id                 string
	clusterID, agentID string
	peer               string
	since              time.Time
	hello              *runnerv1.Hello

	queue   chan *runnerv1.PlaneMessage
	done    chan struct{} // closed at the session's end, before its handler returns
	records *records
	allowed atomic.Bool // whether it may read its cluster's topic

	mu         sync.Mutex
	welcomed   bool
	err        error         // why it ended; read it after done
	retryAfter time.Duration // hint in a farewell
	told       time.Duration // heartbeat interval that the agent knows
	heard      time.Time     // of the agent, last
	heartbeat  *runnerv1.Heartbeat
	challenge  *Event // a second process that was refused and not yet reported
	requests   map[string]chan *runnerv1.Response
	logStreams int
	metrics    *runnerv1.MetricsBatch
	endMetrics context.CancelFunc
}

// Connect is the agent's session, from Hello to its end.
func (f *Fleet) Connect(stream runnerv1.Runner_ConnectServer) error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.wg.Done()
	clusterID, agentID, err := f.deps.Identify(stream.Context())
	if err != nil {
		return failurepb.Status(err)
	}
	s := &session{
		fleet:     f,
		id:        newID(),
		clusterID: clusterID,
		agentID:   agentID,
		peer:      peerOf(stream.Context()),
		since:     f.deps.Now(),
		queue:     make(chan *runnerv1.PlaneMessage, maxQueued),
		done:      make(chan struct{}),
		records:   newRecords(),
		told:      time.Duration(f.interval.Load()),
		heard:     time.Now(),
		requests:  make(map[string]chan *runnerv1.Response),
	}
	incoming := s.read(stream)
	if err := s.admit(stream.Context(), incoming); err != nil {
		s.close(err)
		f.unregister(s)
		f.deps.Log.Warn("session refused", "agent_id", agentID, "cluster_id", clusterID, "peer", s.peer, "error", err)
		return failurepb.Status(err)
	}
	f.deps.Log.Info("session open", "agent_id", agentID, "cluster_id", clusterID, "peer", s.peer, "version", s.hello.GetAgentVersion())
	f.deps.Observe(Event{Kind: Opened, Session: s.snapshot()})
	return s.live(stream, incoming)
}

// incoming is a message of the agent, or the error that ended the stream.
type incoming struct {
	msg *runnerv1.AgentMessage
	err error
}

// read hands the agent's messages over until the stream or the session ends. A blocked Recv returns when the handler has returned, so the handler
// cannot wait for it; the fleet does.
func (s *session) read(stream runnerv1.Runner_ConnectServer) <-chan incoming {
	out := make(chan incoming)
	s.fleet.wg.Go(func() {
		for {
			msg, err := stream.Recv()
			select {
			case out <- incoming{msg, err}:
			case <-s.done:
				return
			}
			if err != nil {
				return
			}
		}
	})
	return out
}

// admit takes the agent's Hello and decides whether it may stay. The last thing it does is to queue Welcome.
func (s *session) admit(ctx context.Context, in <-chan incoming) error {
	late := time.NewTimer(s.fleet.cfg.Timing.Hello)
	defer late.Stop()
	select {
	case first := <-in:
		if first.err != nil {
			return first.err
		}
		s.hello = first.msg.GetHello()
	case <-late.C:
		return failure.New(failure.Deadline, "no_hello", s.agentID, "agent %s said no hello within %s", s.agentID, s.fleet.cfg.Timing.Hello)
	}
	if err := checkHello(s.hello); err != nil {
		return err
	}
	replaced, err := s.fleet.register(s)
	if err != nil {
		return err
	}
	if replaced != nil {
		replaced.close(failure.New(failure.Conflict, "session_replaced", s.agentID, "agent %s has opened a new session", s.agentID))
	}
	if _, _, err := s.fleet.deps.Identify(ctx); err != nil { // revoked since?
		return err
	}
	if err := s.touch(ctx, s.hello.GetNode(), s.hello.GetAgentVersion()); err != nil {
		return err
	}
	s.allowed.Store(s.fleet.deps.ClusterTopicAllowed(ctx, s.agentID))
	return s.welcome()
}

func checkHello(h *runnerv1.Hello) error {
	switch {
	case h == nil:
		return failure.New(failure.Invalid, "no_hello", "", "the first message is no hello")
	case len(h.GetInstanceId()) < minInstanceBytes || len(h.GetInstanceId()) > maxIDBytes:
		return failure.New(failure.Invalid, "bad_hello", "", "the instance id has %d bytes, not %d to %d", len(h.GetInstanceId()), minInstanceBytes, maxIDBytes)
	case len(h.GetAgentVersion()) > maxVersionBytes:
		return failure.New(failure.Invalid, "bad_hello", "", "the agent version has more than %d bytes", maxVersionBytes)
	}
	return nil
}

// welcome makes the session live: from now on requests may follow Welcome in the queue.
func (s *session) welcome() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over() { // somebody disconnected it while it was being admitted
		return s.err
	}
	s.queue <- &runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_Welcome{Welcome: &runnerv1.Welcome{
		SessionId:           s.id,
		HeartbeatInterval:   durationpb.New(s.told),
		ClusterTopicAllowed: s.allowed.Load(),
		PlaneVersion:        s.fleet.cfg.PlaneVersion,
		PlaneTime:           timestamppb.New(s.fleet.deps.Now()),
	}}} // the queue is empty: there is room
	s.heard = time.Now()
	s.welcomed = true
	return nil
}

// live runs the welcomed session and returns what the agent is told at its end.
func (s *session) live(stream runnerv1.Runner_ConnectServer, in <-chan incoming) error {
	written := make(chan struct{})
	s.fleet.wg.Go(func() {
		defer close(written)
		s.write(stream)
	})
	s.fleet.wg.Go(s.record)
	lost := s.loop(in)
	s.fleet.unregister(s)
	return s.end(written, lost)
}

// loop hears the agent until the session ends, and reports whether the stream broke without a word.
func (s *session) loop(in <-chan incoming) (lost bool) {
	silent := time.NewTimer(s.deadline())
	defer silent.Stop()
	for {
		select {
		case <-s.done:
			return false
		case <-silent.C:
			left := s.deadline()
			if left <= 0 {
				s.close(failure.New(failure.Unavailable, "heartbeat_missed", s.agentID, "agent %s has sent no heartbeat for %d intervals", s.agentID, missedIntervals))
				return false
			}
			silent.Reset(left)
		case m := <-in:
			if m.err != nil {
				// After a goodbye, of whichever side, the stream ends too.
				return s.close(failure.New(failure.Unavailable, "stream_broken", s.agentID, "the stream of agent %s broke: %w", s.agentID, m.err))
			}
			if s.hear(m.msg) {
				silent.Reset(s.deadline())
			}
		}
	}
}

// hear takes one message and reports whether it was a heartbeat.
func (s *session) hear(msg *runnerv1.AgentMessage) bool {
	switch m := msg.GetMessage().(type) {
	case *runnerv1.AgentMessage_Heartbeat:
		return s.beat(m.Heartbeat)
	case *runnerv1.AgentMessage_Response:
		s.answered(m.Response)
	case *runnerv1.AgentMessage_Nodes:
		m.Nodes.Nodes = first(m.Nodes.GetNodes(), maxNodes)
		s.records.put(m.Nodes)
	case *runnerv1.AgentMessage_Goodbye:
		s.close(nil)
	default: // a second Hello, or something that this version does not know
	}
	return false
}

// beat takes a heartbeat and answers it.
func (s *session) beat(h *runnerv1.Heartbeat) bool {
	if size := proto.Size(h); size > maxHeartbeatBytes {
		s.close(failure.New(failure.Invalid, "heartbeat_too_large", s.agentID, "a heartbeat of agent %s has %d bytes, more than %d", s.agentID, size, maxHeartbeatBytes))
		return false
	}
	bound(h)
	ack := &runnerv1.HeartbeatAck{Sequence: h.GetSequence(), ClusterTopicAllowed: s.allowed.Load()}
	s.mu.Lock()
	if want := time.Duration(s.fleet.interval.Load()); want != s.told {
		s.told = want
		ack.HeartbeatInterval = durationpb.New(want)
	}
	s.heard, s.heartbeat = time.Now(), h
	challenge := s.challenge
	s.challenge = nil
	s.mu.Unlock()
	s.send(&runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_HeartbeatAck{HeartbeatAck: ack}})
	s.records.poke()
	if challenge != nil {
		challenge.Session = s.snapshot()
		s.fleet.deps.Log.Warn("two live processes use one identity", "agent_id", s.agentID, "peer", s.peer, "refused_peer", challenge.OtherPeer)
		s.fleet.deps.Observe(*challenge)
	}
	return true
}

// challenged notes that another process claimed this session's identity, and returns when that one should try again: when this session has been silent
// for too long. It is reported with the next heartbeat, which proves that there are two; an agent that was restarted without a goodbye is no alarm.
func (s *session) challenged(other *session) time.Duration {
	s.mu.Lock()
	s.challenge = &Event{Kind: Duplicate, OtherPeer: other.peer, OtherInstance: other.hello.GetInstanceId()}
	s.mu.Unlock()
	return max(s.deadline(), 0)
}

// deadline is the time until the agent has been silent for too long.
func (s *session) deadline() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Until(s.heard.Add(missedIntervals * s.told))
}

// write is the one goroutine that sends on Connect. A Goodbye is the last that it sends.
func (s *session) write(stream runnerv1.Runner_ConnectServer) {
	for {
		var msg *runnerv1.PlaneMessage
		select {
		case msg = <-s.queue:
		case <-s.done:
			if msg = s.goodbye(); msg == nil {
				return
			}
		}
		if err := stream.Send(msg); err != nil || msg.GetGoodbye() != nil {
			return // of a broken stream the reader hears
		}
	}
}

// goodbye is the message with which a session ends on purpose; nil if it ends in another way.
func (s *session) goodbye() *runnerv1.PlaneMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retryAfter <= 0 {
		return nil
	}
	return &runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_Goodbye{Goodbye: &runnerv1.Goodbye{
		Reason:     cut(s.err.Error(), maxReasonBytes),
		RetryAfter: durationpb.New(s.retryAfter),
	}}}
}

// send queues a message. An agent that has let the queue fill up does not read: its session is broken.
func (s *session) send(msg *runnerv1.PlaneMessage) {
	select {
	case s.queue <- msg:
	default:
		s.close(failure.New(failure.Unavailable, "agent_does_not_read", s.agentID, "agent %s has not taken %d messages", s.agentID, maxQueued))
	}
}

// close ends the session for that reason (nil: the agent said goodbye), and returns at once. It reports false if the session had ended before.
func (s *session) close(reason error) bool { return s.leave(reason, 0) }

// leave ends the session with a Goodbye that carries a retry hint, if that is greater than 0. It reports false if the session had ended before.
func (s *session) leave(reason error, retryAfter time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over() {
		return false
	}
	s.err, s.retryAfter, s.welcomed = reason, retryAfter, false
	close(s.done)
	return true
}

func (s *session) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *session) isLive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.welcomed
}

// end waits for a farewell to be written, tells the plane, and returns the stream's status.
func (s *session) end(written <-chan struct{}, lost bool) error {
	s.mu.Lock()
	err, retryAfter := s.err, s.retryAfter
	s.mu.Unlock()
	if retryAfter > 0 {
		late := time.NewTimer(s.fleet.cfg.Timing.Farewell)
		defer late.Stop()
		select {
		case <-written:
		case <-late.C:
		}
	}
	log := s.fleet.deps.Log.With("agent_id", s.agentID, "cluster_id", s.clusterID, "peer", s.peer)
	s.fleet.deps.Observe(Event{Kind: Closed, Session: s.snapshot(), Err: err, Lost: lost})
	switch {
	case err == nil:
		log.Info("session closed by the agent")
		return nil
	case retryAfter > 0:
		log.Info("session closed", "reason", err)
		return refusal(err, retryAfter)
	default:
		log.Warn("session ended", "code", failure.Of(err).Code, "error", err)
		return failurepb.Status(err)
	}
}

// bound cuts a heartbeat to the contract's bounds.
func bound(h *runnerv1.Heartbeat) {
	h.Warnings = first(h.GetWarnings(), maxWarnings)
	for _, w := range h.GetWarnings() {
		w.Code, w.Title, w.Text = cut(w.GetCode(), maxIDBytes), cut(w.GetTitle(), maxReasonBytes), cut(w.GetText(), maxWarningText)
	}
	h.RunningCommands = first(h.GetRunningCommands(), maxRunning)
	h.Stacks = first(h.GetStacks(), maxStacks)
	h.Members = first(h.GetMembers(), maxMembers)
}

func first[T any](list []T, n int) []T { return list[:min(len(list), n)] }

// cut shortens s to at most n bytes, at the border of a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
