package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// What the gRPC server must grant at least.
const (
	// MaxReceiveBytes is the largest message that an agent sends (a list of 10,000 nodes, an answer): grpc.MaxRecvMsgSize.
	MaxReceiveBytes = 4 << 20
	// MaxStreams is the number of streams that an agent has open at a time on its connection: Connect, Metrics, its logs and refusals of logs;
	// grpc.MaxConcurrentStreams must not be smaller.
	MaxStreams = 48
)

// Bounds on what agents send and on what waits for them. Those of the contract are in runner.proto.
const (
	maxSessions       = 10_000
	maxQueued         = 128 // messages to one agent; an agent that lets them pile up does not read
	maxRequests       = 64  // without an answer, to one agent
	maxLogStreams     = 32  // of one agent
	maxHeartbeatBytes = 512 << 10
	maxWarnings       = 32
	maxWarningText    = 4 << 10
	maxRunning        = 64
	maxStacks         = 1_000
	maxMembers        = 4
	maxNodes          = 10_000
	maxContainers     = 2_000
	maxLogBatchBytes  = 64 << 10
	maxReasonBytes    = 256
	minInstanceBytes  = 16
	maxIDBytes        = 64
	maxVersionBytes   = 64

	minHeartbeat = time.Second
	maxHeartbeat = 5 * time.Minute
	minCadence   = time.Second
	maxCadence   = 5 * time.Minute

	defaultRequestTimeout = 30 * time.Second // the contract's, for a request without one
	maxRequestTimeout     = 10 * time.Minute // the contract's

	// missedIntervals is after how many heartbeat intervals of silence a session counts as broken.
	missedIntervals = 3
	// The herd after a shutdown: so much time for each agent, within these bounds.
	returnPerAgent = 10 * time.Millisecond
	minReturn      = time.Second
	maxReturn      = time.Minute
)

// Config is what a Fleet needs to know. A zero field takes the value that its comment names.
type Config struct {
	// PlaneVersion is told to the agents; at most 64 bytes.
	PlaneVersion string
	// HeartbeatInterval is what agents are asked for, 1 s to 5 min: 5 s.
	HeartbeatInterval time.Duration
	// MetricsCadence is what agents are asked for, 1 s to 5 min: 10 s.
	MetricsCadence time.Duration
	// MaxSessions bounds the live sessions: 10,000.
	MaxSessions int
	// Timing is for tests; its zero value is right otherwise.
	Timing Timing
}

// Timing holds the fleet's times. A zero field takes the value that its comment names.
type Timing struct {
	// Hello bounds the wait for an agent's first message: 10 s.
	Hello time.Duration
	// OpenLogs bounds the wait for a log stream that was asked for: 10 s.
	OpenLogs time.Duration
	// RequestGrace is how much longer than its own timeout a request may take: 5 s.
	RequestGrace time.Duration
	// TouchEvery is how often a live session is noted in the registry: 60 s.
	TouchEvery time.Duration
	// Record bounds one call of a dependency: 15 s.
	Record time.Duration
	// Farewell bounds the goodbye to one agent: 1 s.
	Farewell time.Duration
	// Shutdown bounds the goodbye to all: 5 s.
	Shutdown time.Duration
	// MinHeartbeat replaces the contract's smallest heartbeat interval: 1 s.
	MinHeartbeat time.Duration
}

// Deps are the parts of the plane that a Fleet uses. Identify, Touch, SetNodes, ClusterTopicAllowed and Log are required.
type Deps struct {
	// Identify returns who speaks on the connection that ctx belongs to, by its client certificate. It must refuse a certificate that is revoked
	// or is no agent's (class denied). It is called for each stream, and for Connect again once the session is registered, so that a
	// revocation in between is not lost.
	Identify func(ctx context.Context) (clusterID, agentID string, err error)
	// Touch notes that an agent was heard of. facts may be nil and version empty: then those that are known stay. An error before Welcome
	// refuses the session; a later one ends it if its class is denied or conflict.
	Touch func(ctx context.Context, agentID string, facts *runnerv1.NodeFacts, version string) error
	// SetNodes takes the Swarm's nodes as an agent sees them.
	SetNodes func(ctx context.Context, clusterID, agentID string, nodes *runnerv1.NodeList) error
	// ClusterTopicAllowed reports whether an agent is a confirmed manager. It is asked with each heartbeat, but never holds one up.
	ClusterTopicAllowed func(ctx context.Context, agentID string) bool
	// Observe is told what happens to sessions. It must not block. May be nil.
	Observe func(Event)
	Log     *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Random returns numbers in [0, 1); nil means math/rand/v2.
	Random func() float64
}

// EventKind says what happened to a session.
type EventKind uint8

// The kinds.
const (
	// Opened: the agent was welcomed.
	Opened EventKind = 1 + iota
	// Closed: the session has ended.
	Closed
	// Duplicate: two live processes use one identity. The second was refused, and the first has shown since then that it lives.
	Duplicate
)

// Event is told to Deps.Observe.
type Event struct {
	Kind EventKind
	// Session is the session as it was last. For Duplicate it is the one that holds the identity.
	Session Session
	// Err is why it ended; nil if the agent said goodbye. Only for Closed.
	Err error
	// Lost says that the stream broke without a word (a reset, an end of file), as it does when the process dies. Session.Heartbeat then holds the groups of
	// which it was a member as far as it had told. Only for Closed.
	Lost bool
	// OtherPeer and OtherInstance say who was refused. Only for Duplicate.
	OtherPeer, OtherInstance string
}

func (c *Config) validate() error {
	if len(c.PlaneVersion) > maxVersionBytes {
		return fmt.Errorf("plane version %q is longer than %d bytes", c.PlaneVersion, maxVersionBytes)
	}
	t := &c.Timing
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.HeartbeatInterval, 5 * time.Second},
		{&c.MetricsCadence, 10 * time.Second},
		{&t.Hello, 10 * time.Second},
		{&t.OpenLogs, 10 * time.Second},
		{&t.RequestGrace, 5 * time.Second},
		{&t.TouchEvery, time.Minute},
		{&t.Record, 15 * time.Second},
		{&t.Farewell, time.Second},
		{&t.Shutdown, 5 * time.Second},
		{&t.MinHeartbeat, minHeartbeat},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	if c.MaxSessions <= 0 {
		c.MaxSessions = maxSessions
	}
	if c.HeartbeatInterval < t.MinHeartbeat || c.HeartbeatInterval > maxHeartbeat {
		return fmt.Errorf("heartbeat interval %s is not within %s to %s", c.HeartbeatInterval, t.MinHeartbeat, maxHeartbeat)
	}
	if c.MetricsCadence < minCadence || c.MetricsCadence > maxCadence {
		return fmt.Errorf("metrics cadence %s is not within %s to %s", c.MetricsCadence, minCadence, maxCadence)
	}
	return nil
}

func (d *Deps) validate() error {
	if d.Identify == nil || d.Touch == nil || d.SetNodes == nil || d.ClusterTopicAllowed == nil || d.Log == nil {
		return errors.New("fleet: Identify, Touch, SetNodes, ClusterTopicAllowed and Log are required")
	}
	if d.Observe == nil {
		d.Observe = func(Event) {}
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Random == nil {
		d.Random = mathrand.Float64
	}
	return nil
}
