package session

import (
	"sync"
	"sync/atomic"
	"time"
)

// state is what the rest of the agent may ask at any time. Only Run's goroutine changes it.
type state struct {
	notify func(connected, clusterAllowed bool)

	mu             sync.Mutex
	connected      bool
	clusterAllowed bool
	changed        chan struct{}
}

func (s *state) get() (connected, clusterAllowed bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connected, s.clusterAllowed, s.changed
}

func (s *state) setConnected(connected bool) {
	_, allowed, _ := s.get()
	s.set(connected, allowed)
}

func (s *state) set(connected, clusterAllowed bool) {
	s.mu.Lock()
	if s.connected == connected && s.clusterAllowed == clusterAllowed {
		s.mu.Unlock()
		return
	}
	s.connected, s.clusterAllowed = connected, clusterAllowed
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	if s.notify != nil {
		s.notify(connected, clusterAllowed)
	}
}

// Stats are figures of a Client since it was made.
type Stats struct {
	// Attempts is the number of sessions tried, Connects of those that the plane welcomed.
	Attempts, Connects uint64
	// HeartbeatsSent and HeartbeatsAcked count heartbeats of all sessions.
	HeartbeatsSent, HeartbeatsAcked uint64
	// Requests counts immediate commands that were handed to the handler.
	Requests uint64
	// RoundTrip is the time between the last acknowledged heartbeat and its answer; 0 before the first.
	RoundTrip time.Duration
	// LogStreams is the number of log streams that are open now.
	LogStreams int64
}

type counters struct {
	attempts, connects, sent, acked, requests atomic.Uint64
	roundTrip, logStreams                     atomic.Int64
}

func (c *counters) stats() Stats {
	return Stats{
		Attempts:        c.attempts.Load(),
		Connects:        c.connects.Load(),
		HeartbeatsSent:  c.sent.Load(),
		HeartbeatsAcked: c.acked.Load(),
		Requests:        c.requests.Load(),
		RoundTrip:       time.Duration(c.roundTrip.Load()),
		LogStreams:      c.logStreams.Load(),
	}
}
