// Package session keeps the agent connected with its plane. It is the agent's side of the contract's Runner service: one gRPC connection over mTLS
// that carries the Connect stream (heartbeats, immediate commands), one Metrics stream, and a Logs stream for each log that somebody reads.
//
// A session lives and dies as a unit. Whatever fails - the network, a stream, a heartbeat that nobody answers - closes all of it, and after a
// back-off the next one begins from nothing. Nothing is repaired, so there is only one way in which a session can come to be.
//
// Client runs one session after the other and holds what outlives them. session is one life; heart.go, requests.go, logs.go, metrics.go and
// nodes.go are its organs, each with a goroutine of its own that ends with the session.
package session

import (
	"context"
	"time"

	"github.com/axion/runner-agent/internal/backoff"
	"github.com/axion/runner-agent/proto/failure"
)

// Client keeps one session with the plane open. Make one with New.
type Client struct {
	cfg     Config
	deps    Deps
	started time.Time
	pace    pace
	state   state
	count   counters
}

// New returns a Client; it does nothing until Run.
func New(cfg Config, deps Deps) (*Client, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := deps.validate(); err != nil {
		return nil, err
	}
	t := cfg.Timing
	return &Client{
		cfg:     cfg,
		deps:    deps,
		started: deps.Now(),
		pace: pace{
			backoff: backoff.Backoff{First: t.BackoffMin, Random: deps.Random}, healthyAfter: t.HealthyAfter, max: t.BackoffMax, soon: min(t.BackoffSoon, t.BackoffMax),
		},
		state: state{notify: deps.OnState, changed: make(chan struct{})},
	}, nil
}

// Connected reports whether the plane has welcomed the session that is open now.
func (c *Client) Connected() bool {
	connected, _, _ := c.state.get()
	return connected
}

// ClusterTopicAllowed reports whether the plane, when it was last heard, let this agent read its cluster's topic. It outlives the session: an agent
// goes on with its commands while the plane is away.
func (c *Client) ClusterTopicAllowed() bool {
	_, allowed, _ := c.state.get()
	return allowed
}

// Changed returns a channel that is closed when Connected or ClusterTopicAllowed changes next. Take it before you ask for the values.
func (c *Client) Changed() <-chan struct{} {
	_, _, changed := c.state.get()
	return changed
}

// Stats returns the figures until now.
func (c *Client) Stats() Stats { return c.count.stats() }

// Run keeps a session open until ctx ends; then it says goodbye to the plane and returns nil. It returns no other way.
func (c *Client) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		connectedFor, answered, err := c.once(ctx)
		if ctx.Err() != nil {
			break
		}
		wait := c.pace.next(connectedFor, retryAfter(err, c.cfg.Timing.MaxRetryAfter), answered)
		c.complain(err)
		f := failure.Of(err)
		if c.deps.Refused != nil && ofCertificate(f.Code) {
			c.deps.Refused(f.Code)
		}
		c.deps.Log.Warn("session ended", "plane", c.cfg.Address, "code", f.Code, "error", f.Message,
			"connected_for", connectedFor.Round(time.Millisecond), "retry_in", wait.Round(time.Millisecond))
		backoff.Sleep(ctx, wait)
	}
	c.clearWarnings()
	return nil
}

// once lives one session. It returns for how long it was connected, whether anybody took the connection, and why it ended.
func (c *Client) once(ctx context.Context) (connectedFor time.Duration, answered bool, _ error) {
	c.count.attempts.Add(1)
	s, answered, err := c.open(ctx)
	if err != nil {
		return 0, answered, err
	}
	c.count.connects.Add(1)
	since := c.deps.Now()
	c.deps.Log.Info("session open", "plane", c.cfg.Address, "session_id", s.welcome.GetSessionId(), "plane_version", s.welcome.GetPlaneVersion())
	c.clearWarnings()
	c.state.set(true, s.welcome.GetClusterTopicAllowed())
	err = s.run(ctx)
	c.state.setConnected(false)
	return c.deps.Now().Sub(since), true, err
}
