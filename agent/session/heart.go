package session

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// heartbeatJitter is the part of the interval by which a heartbeat may come earlier or later, so that a fleet does not beat in step.
	heartbeatJitter = 0.1
	// missedIntervals is after how many intervals without an answer the session counts as broken.
	missedIntervals = 3
)

// heart sends heartbeats and ends the session when one is not answered. The connection may look healthy all the while: a half-open one takes bytes
// for minutes before TCP gives up.
type heart struct {
	timing   Timing
	random   func() float64
	interval time.Duration
	sequence uint64
	waiting  []beat // sent and not answered, oldest first
}

type beat struct {
	sequence uint64
	sent     time.Time
	deadline time.Time
}

// heart is the session's main loop. It returns why the session ends, or nil if another part of it knows.
func (s *session) heart(stop <-chan struct{}) error {
	h := &heart{timing: s.client.cfg.Timing, random: s.client.deps.Random}
	h.interval = h.timing.Heartbeat
	h.stretch(s.welcome.GetHeartbeatInterval())
	next := time.NewTimer(0) // the first at once: it tells the plane the agent's state
	defer next.Stop()
	overdue := time.NewTimer(time.Hour)
	defer overdue.Stop()
	for {
		if len(h.waiting) > 0 {
			overdue.Reset(time.Until(h.waiting[0].deadline))
		} else {
			overdue.Stop()
		}
		select {
		case <-s.ctx.Done():
			return nil
		case <-stop:
			return s.leave()
		case <-next.C:
			s.beat(h)
			next.Reset(h.pause())
		case <-s.client.deps.Beat:
			s.beat(h)
			next.Reset(h.pause())
		case ack := <-s.acks:
			if s.acknowledged(h, ack) {
				next.Reset(h.pause())
			}
		case <-overdue.C:
			b := h.waiting[0]
			return failure.New(failure.Unavailable, "heartbeat_unanswered", s.client.cfg.Address,
				"the plane has not answered heartbeat %d within %s", b.sequence, b.deadline.Sub(b.sent))
		}
	}
}

// beat sends a heartbeat, unless the one before is still waiting to be written: then the network takes nothing, and its deadline is already running.
func (s *session) beat(h *heart) {
	msg := s.client.deps.Heartbeat()
	if msg == nil {
		msg = &runnerv1.Heartbeat{}
	}
	now := time.Now()
	msg.Sequence = h.sequence + 1
	msg.SentAt = timestamppb.New(s.client.deps.Now())
	msg.Warnings = first(msg.Warnings, maxWarnings)
	for _, w := range msg.Warnings { // may quote what some program wrote; one bad byte would end every session
		w.Title, w.Text = strings.ToValidUTF8(w.GetTitle(), "?"), cut(strings.ToValidUTF8(w.GetText(), "?"), maxWarningText)
	}
	msg.RunningCommands = first(msg.RunningCommands, maxRunning)
	msg.Stacks = first(msg.Stacks, maxStacks)
	msg.Members = first(msg.Members, maxMembers)
	select {
	case s.beats <- &runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Heartbeat{Heartbeat: msg}}:
		h.sequence++
		h.waiting = append(h.waiting, beat{sequence: h.sequence, sent: now, deadline: now.Add(h.ackTimeout())})
		s.client.count.sent.Add(1)
	default:
	}
}

// acknowledged takes an answer, which stands for all heartbeats before it too, and reports whether it changed the interval.
func (s *session) acknowledged(h *heart, ack *runnerv1.HeartbeatAck) bool {
	for len(h.waiting) > 0 && h.waiting[0].sequence <= ack.GetSequence() {
		if h.waiting[0].sequence == ack.GetSequence() {
			s.client.count.roundTrip.Store(int64(time.Since(h.waiting[0].sent)))
		}
		s.client.count.acked.Add(1)
		h.waiting = h.waiting[1:]
	}
	s.client.state.set(true, ack.GetClusterTopicAllowed())
	return h.stretch(ack.GetHeartbeatInterval())
}

// stretch takes the interval that the plane wants, within bounds, and reports whether it is another one.
func (h *heart) stretch(want *durationpb.Duration) bool {
	if want == nil {
		return false
	}
	d := min(max(want.AsDuration(), h.timing.MinHeartbeat), h.timing.MaxHeartbeat)
	changed := d != h.interval
	h.interval = d
	return changed
}

// pause is the time to the next heartbeat.
func (h *heart) pause() time.Duration {
	return time.Duration(float64(h.interval) * (1 + heartbeatJitter*(2*h.random()-1)))
}

func (h *heart) ackTimeout() time.Duration {
	return min(missedIntervals*h.interval, h.timing.AckTimeout)
}

func first[T any](list []T, n int) []T { return list[:min(len(list), n)] }
