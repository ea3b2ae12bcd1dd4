// Package fleet holds the live sessions of the plane's agents. It is the plane's side of the contract's Runner service: it welcomes agents, hears
// their heartbeats, sends them immediate commands, opens log streams, and keeps each agent's newest metrics. What it knows is in memory only and ends
// with the sessions; what lasts is in the registry, which it is given as functions.
//
// One identity has one live session. A second process with the same identity is refused; the same process that comes back replaces its old session
// at once, because that one is half-open. Each session is a loop that owns it (session.go) and is never repaired: what is wrong ends it, and the
// agent comes back.
package fleet

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// Fleet is the Runner service and what the rest of the plane asks of it. Make one with New and register it with runnerv1.RegisterRunnerServer.
type Fleet struct {
	runnerv1.UnimplementedRunnerServer
	cfg      Config
	deps     Deps
	interval atomic.Int64 // heartbeat interval that agents are asked for
	wg       sync.WaitGroup

	mu       sync.Mutex
	closing  bool
	sessions map[string]*session   // by agent id; the one that holds the identity
	leaders  map[string]string     // by cluster id: node id of the Swarm's leader as a confirmed manager last told it
	logs     map[string]*logStream // by stream id
}

// New returns a Fleet without sessions.
func New(cfg Config, deps Deps) (*Fleet, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := deps.validate(); err != nil {
		return nil, err
	}
	f := &Fleet{
		cfg:      cfg,
		deps:     deps,
		sessions: make(map[string]*session),
		leaders:  make(map[string]string),
		logs:     make(map[string]*logStream),
	}
	f.interval.Store(int64(cfg.HeartbeatInterval))
	return f, nil
}

// Run waits for ctx to end, then says goodbye to all agents with a hint of when to come back, refuses new ones, and returns when the sessions are
// closed or the time for it is over. Only then stop the gRPC server, with GracefulStop (and after a while Stop, for half-open connections):
// Stop alone would throw away the farewells that are still on their way.
func (f *Fleet) Run(ctx context.Context) error {
	<-ctx.Done()
	f.mu.Lock()
	f.closing = true
	sessions := make([]*session, 0, len(f.sessions))
	for _, s := range f.sessions {
		sessions = append(sessions, s)
	}
	f.mu.Unlock()
	window := returnWindow(len(sessions))
	for _, s := range sessions {
		s.leave(errShutdown, max(f.spread(window), time.Millisecond))
	}
	gone := make(chan struct{})
	go func() {
		f.wg.Wait()
		close(gone)
	}()
	late := time.NewTimer(f.cfg.Timing.Shutdown)
	defer late.Stop()
	select {
	case <-gone:
	case <-late.C:
	}
	return nil
}

var errShutdown = failure.New(failure.Unavailable, "plane_shutdown", "", "the plane is shutting down")

// SetHeartbeatInterval asks all agents for another interval, within the contract's 1 s to 5 min; each learns of it with its next heartbeat.
func (f *Fleet) SetHeartbeatInterval(d time.Duration) {
	f.interval.Store(int64(min(max(d, f.cfg.Timing.MinHeartbeat), maxHeartbeat)))
}

// returnWindow is the time over which n agents should come back: short for a few, so that a restart is hardly noticed.
func returnWindow(n int) time.Duration {
	return min(max(time.Duration(n)*returnPerAgent, minReturn), maxReturn)
}

func (f *Fleet) spread(window time.Duration) time.Duration {
	return time.Duration(f.deps.Random() * float64(window))
}

// enter counts a handler that Run has to wait for, and refuses it once the fleet is closing.
func (f *Fleet) enter() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return f.closed()
	}
	f.wg.Add(1)
	return nil
}

// closed is the refusal of a fleet that closes; f.mu is held.
func (f *Fleet) closed() error {
	return refusal(errShutdown, f.spread(returnWindow(len(f.sessions))))
}

// register gives a session its identity, or refuses it. It returns the session that it replaces.
func (f *Fleet) register(s *session) (replaced *session, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return nil, f.closed()
	}
	old := f.sessions[s.agentID]
	if old != nil && old.over() {
		old = nil
	}
	if old != nil && old.hello.GetInstanceId() != s.hello.GetInstanceId() {
		wait := old.challenged(s)
		return nil, refusal(failure.New(failure.Conflict, "duplicate_identity", s.agentID,
			"another live session uses the identity of agent %s", s.agentID).
			WithHint("if the machine was cloned, remove the agent's state volume on one of the two"), wait)
	}
	if old == nil && len(f.sessions) >= f.cfg.MaxSessions {
		return nil, refusal(failure.New(failure.Unavailable, "fleet_full", "", "the plane has %d live sessions and takes no more", f.cfg.MaxSessions), maxReturn)
	}
	f.sessions[s.agentID] = s
	return old, nil
}

// unregister takes a session out unless another one has its place.
func (f *Fleet) unregister(s *session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sessions[s.agentID] == s {
		delete(f.sessions, s.agentID)
	}
}

// live returns an agent's session if it was welcomed and has not ended.
func (f *Fleet) live(agentID string) (*session, error) {
	f.mu.Lock()
	s := f.sessions[agentID]
	f.mu.Unlock()
	if s == nil || !s.isLive() {
		return nil, failure.New(failure.Unavailable, "agent_not_connected", agentID, "agent %s is not connected", agentID)
	}
	return s, nil
}

// liveOn returns the session to which a further stream belongs: that of the same identity on the same connection. A clone, which has no session, has
// no streams either.
func (f *Fleet) liveOn(ctx context.Context) (*session, error) {
	_, agentID, err := f.deps.Identify(ctx)
	if err != nil {
		return nil, err
	}
	s, err := f.live(agentID)
	if err != nil {
		return nil, err
	}
	if peerOf(ctx) != s.peer {
		return nil, failure.New(failure.Conflict, "other_connection", agentID, "the session of agent %s is on another connection", agentID)
	}
	return s, nil
}

func peerOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// refusal is err as a gRPC status that carries a retry hint.
func refusal(err error, retryAfter time.Duration) error {
	st := status.Convert(failurepb.Status(err))
	with, detailErr := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
	if detailErr != nil {
		return st.Err()
	}
	return with.Err()
}

func newID() string { return rand.Text() }
