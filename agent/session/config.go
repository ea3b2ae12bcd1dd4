package session

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Bounds on what goes over the session. Those of the contract are in runner.proto.
const (
	maxReceiveBytes   = 1 << 20 // of one message of the plane; its largest is a Request
	maxSendBytes      = 4 << 20 // of one message of ours; the plane must take that much
	maxQueued         = 64      // messages that wait for the writer
	maxRequests       = 16      // immediate commands at a time
	maxAnswers        = 512     // answers remembered in a session
	maxAnswerBytes    = 4 << 10 // of a remembered answer
	maxLogStreams     = 32      // open at a time
	maxLogRefusals    = 8       // log streams that are being refused at a time
	maxLogBatchBytes  = 64 << 10
	maxNodes          = 10_000
	maxContainers     = 2_000
	maxWarnings       = 32
	maxWarningText    = 4 << 10
	maxRunning        = 64
	maxStacks         = 1_000
	maxMembers        = 4
	maxWarningsAnswer = 100
	maxIDBytes        = 64
	maxVersionBytes   = 64

	minRequestTimeout     = 100 * time.Millisecond
	maxRequestTimeout     = 10 * time.Minute
	defaultRequestTimeout = 30 * time.Second

	nodeTimeout  = 5 * time.Second  // to learn the node's facts before Hello
	nodesTimeout = 10 * time.Second // to list the Swarm's nodes
)

// Config is what a Client needs to know.
type Config struct {
	// Address is the plane's "host:port". The host must be one of the names in the plane's certificate.
	Address string
	// AgentVersion is told to the plane; at most 64 bytes.
	AgentVersion string
	// InstanceID is random for each process, 16 to 64 bytes; empty makes one. It lets the plane tell a reconnect from a cloned identity.
	InstanceID string
	// Timing is for tests; its zero value is right otherwise.
	Timing Timing
}

// Timing holds the session's times. A zero field takes the value that its comment names.
type Timing struct {
	// Dial bounds the wait for the plane's host to answer, and Handshake the time from dialling to Welcome: 4 s and 15 s.
	Dial, Handshake time.Duration
	// Heartbeat is the interval until the plane names one: 5 s.
	Heartbeat time.Duration
	// MinHeartbeat and MaxHeartbeat bound what the plane may name: 1 s and 5 min.
	MinHeartbeat, MaxHeartbeat time.Duration
	// AckTimeout is how long an answer to a heartbeat may take before the session counts as broken: three intervals, but not longer than this: 15 s.
	AckTimeout time.Duration
	// BackoffMin and BackoffMax bound the wait before the next session: 100 ms and 60 s. BackoffSoon bounds it after an attempt that was no burden for the
	// plane, because nobody answered or an open session broke: 3 s.
	BackoffMin, BackoffMax, BackoffSoon time.Duration
	// HealthyAfter is how long a session must have lasted for the back-off to begin anew: 60 s.
	HealthyAfter time.Duration
	// MaxRetryAfter bounds the plane's retry hints: 10 min.
	MaxRetryAfter time.Duration
	// NodesEvery is how often the list of nodes is looked at: 30 s.
	NodesEvery time.Duration
	// LogFlush is how long a log line may wait for others: 100 ms.
	LogFlush time.Duration
	// MetricsRetry is the wait after the source of metrics has failed: 30 s.
	MetricsRetry time.Duration
	// Leave bounds the farewell when Run's context ends: 2 s.
	Leave time.Duration
}

func (t Timing) withDefaults() Timing {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Dial, 4 * time.Second},
		{&t.Handshake, 15 * time.Second},
		{&t.Heartbeat, 5 * time.Second},
		{&t.MinHeartbeat, time.Second},
		{&t.MaxHeartbeat, 5 * time.Minute},
		{&t.AckTimeout, 15 * time.Second},
		{&t.BackoffMin, 100 * time.Millisecond},
		{&t.BackoffMax, time.Minute},
		{&t.BackoffSoon, 3 * time.Second},
		{&t.HealthyAfter, time.Minute},
		{&t.MaxRetryAfter, 10 * time.Minute},
		{&t.NodesEvery, 30 * time.Second},
		{&t.LogFlush, 100 * time.Millisecond},
		{&t.MetricsRetry, 30 * time.Second},
		{&t.Leave, 2 * time.Second},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return t
}

// Handler does immediate commands. Handle is called for several requests at once; it must return soon after ctx ends and never return nil.
// The session fills in the response's id.
type Handler interface {
	Handle(ctx context.Context, req *runnerv1.Request) *runnerv1.Response
}

// LogSource reads logs. OpenLogs calls send with the lines in order until the source or ctx ends; batches may be of one line, the session puts them together.
// What is given to send belongs to the session from then on. The returned error is told to the reader at the plane. It must return soon after ctx ends.
type LogSource interface {
	OpenLogs(ctx context.Context, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error
}

// MetricsSource takes samples. Stream calls send once in the cadence that the plane names (the channel holds the newest one) until ctx ends or send fails.
type MetricsSource interface {
	Stream(ctx context.Context, cadence <-chan time.Duration, send func(*runnerv1.MetricsBatch) error) error
}

// Warner takes the warnings of the agent's health.
type Warner interface {
	Set(code string, severity runnerv1.HealthSeverity, title, text string)
	Clear(code string)
}

// Deps are the parts of the agent that a Client uses. TLS, Heartbeat, Handler, Log and Warn are required.
type Deps struct {
	// TLS returns the settings for the next connection: the agent's certificate and the plane's CA.
	TLS func() *tls.Config
	// Node returns the node's facts for Hello. An error is no hindrance: the plane keeps those that it has.
	Node func(ctx context.Context) (*runnerv1.NodeFacts, error)
	// Nodes returns the Swarm's nodes on a manager and nil on a worker.
	Nodes func(ctx context.Context) (*runnerv1.NodeList, error)
	// Heartbeat returns a new message with what the agent knows of itself; the session fills in sequence and time. It must not block.
	Heartbeat func() *runnerv1.Heartbeat
	// Beat asks for a heartbeat now, for each value, because it says something that cannot wait for the next one. May be nil.
	Beat <-chan struct{}
	// Handler does immediate commands.
	Handler Handler
	// Logs reads logs; nil refuses log streams.
	Logs LogSource
	// Metrics takes samples; nil means that there is no Metrics stream.
	Metrics MetricsSource
	// OnState is told every change of Connected and ClusterTopicAllowed, one call after the other. It must not block. May be nil.
	OnState func(connected, clusterTopicAllowed bool)
	// Refused is told the failure's code each time that there is no session because of a certificate, the agent's or the plane's: certificate_revoked,
	// certificate_expired, certificate_refused, agent_removed or plane_untrusted. It must not block. May be nil.
	Refused func(code string)
	Log     *slog.Logger
	Warn    Warner
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Random returns numbers in [0, 1); nil means math/rand/v2.
	Random func() float64
}

func (c *Config) validate() error {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fmt.Errorf("plane address %q: %w", c.Address, err)
	}
	if len(c.AgentVersion) > maxVersionBytes {
		return fmt.Errorf("agent version %q is longer than %d bytes", c.AgentVersion, maxVersionBytes)
	}
	if c.InstanceID == "" {
		c.InstanceID = rand.Text()
	}
	if n := len(c.InstanceID); n < 16 || n > maxIDBytes {
		return fmt.Errorf("instance id has %d bytes, not 16 to %d", n, maxIDBytes)
	}
	c.Timing = c.Timing.withDefaults()
	return nil
}

func (d *Deps) validate() error {
	if d.TLS == nil || d.Heartbeat == nil || d.Handler == nil || d.Log == nil || d.Warn == nil {
		return errors.New("session: TLS, Heartbeat, Handler, Log and Warn are required")
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Random == nil {
		d.Random = mathrand.Float64
	}
	return nil
}
