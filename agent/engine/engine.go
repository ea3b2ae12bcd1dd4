// Package engine is the agent's way to the Docker engine of its node: one client that is safe to share, what the engine says about the node and its Swarm,
// and the few things that are done to a single container. Besides the packages below stack/ it is the only one that talks to Docker.
//
// A docker client that negotiates its API version lazily must not be shared: reading its version races with the negotiation. So the version is agreed on with a
// throw-away client first, and the shared client is made for exactly that version. When the engine comes back after an outage it may be another engine, and
// everything is negotiated again.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/docker/docker/client"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// The warnings that this package sets.
const (
	// WarnUnreachable is set while the engine does not answer.
	WarnUnreachable = "engine_unreachable"
	// WarnNotInSwarm is set while the engine belongs to no Swarm.
	WarnNotInSwarm = "not_in_swarm"
)

const (
	// refreshInterval is how old node facts may become. An event of the engine refreshes them sooner.
	refreshInterval = 30 * time.Second
	// retryInterval is how often an engine that is away is asked again; a local socket costs next to nothing.
	retryInterval = time.Second
	// callTimeout bounds each of this package's own questions to the engine; an engine under load needs seconds for /info.
	callTimeout = 10 * time.Second
)

// Warner takes health warnings.
type Warner interface {
	Set(code string, severity runnerv1.HealthSeverity, title, text string)
	Clear(code string)
}

// Config says where the engine is.
type Config struct {
	// Host is the engine's address as docker writes it, for example "unix:///var/run/docker.sock".
	Host string
}

// Deps are what an Engine needs from outside.
type Deps struct {
	Log  *slog.Logger
	Warn Warner
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Engine is the node's Docker engine. It is safe for concurrent use.
type Engine struct {
	host string
	log  *slog.Logger
	warn Warner
	now  func() time.Time

	// refreshing lets one refresh run at a time.
	refreshing sync.Mutex

	mu sync.Mutex
	// client has a fixed API version. Until the engine has answered once it is the newest that this program knows.
	client     *client.Client
	negotiated bool
	reachable  bool
	facts      *runnerv1.NodeFacts // as last heard; nil before that and outside a Swarm
	asked      time.Time           // when the engine was last asked
	lastErr    error               // of the last refresh
	leader     leadership
	changed    chan struct{}
}

// New returns an Engine that has not spoken to the engine yet. It fails only if the host cannot be read.
func New(cfg Config, deps Deps) (*Engine, error) {
	c, err := client.NewClientWithOpts(client.WithHost(cfg.Host))
	if err != nil {
		return nil, failure.New(failure.Invalid, "bad_engine_host", cfg.Host, "engine host %q: %w", cfg.Host, err)
	}
	e := &Engine{host: cfg.Host, log: deps.Log, warn: deps.Warn, now: deps.Now, client: c, changed: make(chan struct{})}
	if e.now == nil {
		e.now = time.Now
	}
	return e, nil
}

// Client returns a client that may be shared: its API version is fixed. Take it anew for each piece of work, because it is replaced when the engine comes back
// after an outage. As long as the engine has never answered, the call tries to reach it (at most once a second, at most 10 s).
func (e *Engine) Client() *client.Client {
	e.mu.Lock()
	c, try := e.client, !e.negotiated && e.now().Sub(e.asked) >= retryInterval
	e.mu.Unlock()
	if !try {
		return c
	}
	_ = e.refresh(context.Background()) // what is wrong is told by the calls that are made with the client
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.client
}

// Reachable says whether the engine answered when it was last asked.
func (e *Engine) Reachable() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.reachable
}

// Changed returns a channel that is closed at the next change of the node's facts, of Reachable or of Quorum.
func (e *Engine) Changed() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changed
}

// Run keeps the facts fresh and notices when the engine or the Swarm's leader goes and comes back, until ctx ends; then it returns nil.
func (e *Engine) Run(ctx context.Context) error {
	var leader sync.WaitGroup
	leader.Go(func() { e.watchLeader(ctx) })
	defer leader.Wait()
	var w *watch
	defer func() { w.stop() }()
	for {
		_ = e.refresh(ctx) // recorded, and told as a warning
		if w == nil && e.Reachable() {
			w = watchEvents(ctx, e.Client())
		}
		asked := e.now()
		wait := time.NewTimer(e.pause())
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case <-wait.C:
		case <-w.changes():
		case <-w.ended():
			w.stop()
			w = nil
			e.suspect()
		}
		wait.Stop()
		if !sleep(ctx, retryInterval-e.now().Sub(asked)) { // a stream that ends at once must not make a busy loop
			return nil
		}
	}
}

// pause is the time until the next refresh, if nothing happens before.
func (e *Engine) pause() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lastErr != nil {
		return retryInterval
	}
	return refreshInterval
}

// suspect makes the next refresh negotiate again: the event stream broke, so the engine may have been replaced by another version.
func (e *Engine) suspect() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.negotiated = false
}

// refresh asks the engine for the node's facts and records the answer. It returns why there are none.
func (e *Engine) refresh(ctx context.Context) error {
	e.refreshing.Lock()
	defer e.refreshing.Unlock()
	facts, err := e.ask(ctx)
	if ctx.Err() != nil {
		return fmt.Errorf("ask the engine: %w", ctx.Err()) // says nothing about the engine
	}
	e.record(facts, err)
	return err
}

// ask returns the node's facts, from a freshly negotiated client if the engine was away.
func (e *Engine) ask(ctx context.Context) (*runnerv1.NodeFacts, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	e.mu.Lock()
	c, negotiate := e.client, !e.negotiated || !e.reachable
	e.mu.Unlock()
	if negotiate {
		fresh, err := e.connect(ctx)
		if err != nil {
			return nil, e.unreachable(err)
		}
		e.mu.Lock()
		e.client, e.negotiated = fresh, true
		e.mu.Unlock()
		_ = c.Close() // closes idle connections only; whoever still uses it may end in peace
		c = fresh
	}
	info, err := c.Info(ctx)
	if err != nil {
		return nil, e.unreachable(err)
	}
	return nodeFacts(info)
}

// connect agrees on an API version with a client of its own, then returns a client that has this version for good.
func (e *Engine) connect(ctx context.Context) (*client.Client, error) {
	scout, err := client.NewClientWithOpts(client.WithHost(e.host), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, err
	}
	defer scout.Close()
	ping, err := scout.Ping(ctx)
	if err != nil {
		return nil, err
	}
	scout.NegotiateAPIVersionPing(ping)
	return client.NewClientWithOpts(client.WithHost(e.host), client.WithVersion(scout.ClientVersion()))
}

// unreachable turns an error of an engine call into the failure that says so.
func (e *Engine) unreachable(err error) error {
	return failure.New(failure.Unavailable, WarnUnreachable, e.host, "engine at %s does not answer: %w", e.host, err).
		WithHint("check that the engine runs and that its socket is mounted into the agent")
}

// record keeps the outcome of a refresh and tells whoever watches.
func (e *Engine) record(facts *runnerv1.NodeFacts, err error) {
	reachable := failure.ClassOf(err) != failure.Unavailable
	e.mu.Lock()
	first := e.asked.IsZero()
	changed := reachable != e.reachable || reachable && !sameFacts(e.facts, facts)
	e.reachable, e.lastErr, e.asked = reachable, err, e.now()
	if reachable { // an engine that is away for a moment does not change what the node is
		e.facts = facts
	}
	if changed {
		close(e.changed)
		e.changed = make(chan struct{})
	}
	e.mu.Unlock()

	e.warnOf(err)
	switch {
	case changed && err == nil:
		e.log.Info("engine answers", "engine_version", facts.GetEngineVersion(), "node_id", facts.GetNodeId(), "role", facts.GetRole().String())
	case err != nil && (changed || first):
		e.log.Warn("engine is of no use", "error", err)
	}
}

// warnOf sets the warnings that go with the outcome of a refresh.
func (e *Engine) warnOf(err error) {
	var f *failure.Error
	if err == nil || !errors.As(err, &f) {
		e.warn.Clear(WarnUnreachable)
		e.warn.Clear(WarnNotInSwarm)
		return
	}
	if f.Code == WarnUnreachable {
		e.warn.Set(WarnUnreachable, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "Docker engine does not answer", f.Message+"; "+f.Hint)
		return
	}
	e.warn.Clear(WarnUnreachable)
	e.warn.Set(WarnNotInSwarm, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "Node belongs to no Swarm", f.Message+"; "+f.Hint)
}

// sleep waits that long and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
