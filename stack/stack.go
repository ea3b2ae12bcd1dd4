// Package stack does what docker stack deploy, rm, ls, ps, services and docker service scale, update --force, logs do, with docker/cli's own loader, converter and
// deployment, and then watches until the services have converged or failed.
//
// It is a library: it takes a Docker client and returns values, and knows nothing of who asks. Every write that docker/cli makes goes through a client
// that is wrapped for the operation (see recorder), which is how an operation can tell its steps.
package stack

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/stack/bundle"
)

const (
	// MaxStackName is the length of a stack's name in bytes.
	MaxStackName = 63
	// MaxReplicas is the number of tasks that a service may be scaled to.
	MaxReplicas = 100_000
	// defaultPoll is how often a watched stack is looked at.
	defaultPoll = 700 * time.Millisecond
	// defaultTimeout bounds a deployment or removal that does not say how long it may take.
	defaultTimeout = 10 * time.Minute
)

// Config is an Engine's configuration.
type Config struct {
	// WorkDir is a private folder, best on a tmpfs, for what docker/cli insists on reading from a disk. Each deployment has a folder of its own in it, which
	// is removed when the deployment ends.
	WorkDir string
	// Poll is how often a watched stack is looked at; 0 means 700 ms.
	Poll time.Duration
}

// Deps are the parts that an Engine works with.
type Deps struct {
	// Client speaks to a manager's engine. It should negotiate the API version (client.WithAPIVersionNegotiation).
	Client client.APIClient
	Log    *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Engine deploys, watches and removes stacks. It is safe for concurrent use; the order of operations on one stack is the caller's concern.
type Engine struct {
	workDir string
	poll    time.Duration
	client  client.APIClient
	log     *slog.Logger
	now     func() time.Time
}

// New returns an Engine; it asks the engine nothing.
func New(c Config, d Deps) (*Engine, error) {
	switch {
	case c.WorkDir == "":
		return nil, errors.New("stack: the work folder is missing")
	case c.Poll < 0:
		return nil, errors.New("stack: the poll interval is negative")
	case d.Client == nil || d.Log == nil:
		return nil, errors.New("stack: the client or the log is missing")
	}
	if c.Poll == 0 {
		c.Poll = defaultPoll
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	return &Engine{workDir: c.WorkDir, poll: c.Poll, client: d.Client, log: d.Log, now: d.Now}, nil
}

// ResolveImage is `docker stack deploy --resolve-image`.
type ResolveImage string

// When to ask the registry for an image's digest.
const (
	ResolveAlways  ResolveImage = "always"
	ResolveChanged ResolveImage = "changed"
	ResolveNever   ResolveImage = "never"
)

// Deployment is what to deploy, and how.
type Deployment struct {
	// Stack is the stack's name.
	Stack  string
	Bundle bundle.Content
	// Prune removes services that the compose files no longer name.
	Prune bool
	// WithRegistryAuth sends the bundle's credentials to the nodes.
	WithRegistryAuth bool
	// ResolveImage is docker's option; empty means ResolveAlways.
	ResolveImage ResolveImage
	// Timeout is how long the stack may take to converge; 0 means 10 min.
	Timeout time.Duration
}

// Deploy does what `docker stack deploy` does, then watches until the stack has converged or failed. It tells observe, which may be nil, each step in
// order. The error is a failure.Error; the result is filled as far as the deployment went, in any case. What is outside the bundle is denied, and what
// docker/cli refuses is invalid, before anything is changed. When ctx ends, the watch ends; what was written stays.
func (e *Engine) Deploy(ctx context.Context, d Deployment, observe func(Event)) (Result, error) {
	return e.deploy(ctx, d, observe)
}

// Remove does what `docker stack rm` does, then waits until the stack's services, tasks and networks are gone. timeout 0 means 10 min.
func (e *Engine) Remove(ctx context.Context, stack string, timeout time.Duration, observe func(Event)) (Result, error) {
	return e.remove(ctx, stack, timeout, observe)
}

// Scale does what `docker service scale` does, then watches until the service has converged or failed; timeout 0 returns when the engine has accepted it.
func (e *Engine) Scale(ctx context.Context, service string, replicas uint64, timeout time.Duration, observe func(Event)) (Result, error) {
	return e.scale(ctx, service, replicas, timeout, observe)
}

// Restart does what `docker service update --force` does: each of the service's tasks is replaced, at the pace of its update settings. Then it watches until the
// service has converged or failed; timeout 0 returns when the engine has accepted it.
func (e *Engine) Restart(ctx context.Context, service string, timeout time.Duration, observe func(Event)) (Result, error) {
	return e.restart(ctx, service, timeout, observe)
}
