// Package agent is the daemon: it builds the components, joins them, starts them in order and stops them in reverse.
//
// First comes what works without an identity: the engine, health, the local socket, and the identity itself, which enrols patiently. When there is one,
// the rest follows: the journal, Kafka in both directions, the session with the plane. The cluster's commands are read only while this node is a manager
// and the plane allows it.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/axion/runner-agent/agent/command"
	"github.com/axion/runner-agent/agent/config"
	"github.com/axion/runner-agent/agent/engine"
	"github.com/axion/runner-agent/agent/health"
	"github.com/axion/runner-agent/agent/identity"
	"github.com/axion/runner-agent/agent/local"
	"github.com/axion/runner-agent/internal/supervise"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/version"
	"github.com/axion/runner-agent/stack"
)

// How long each part may take to end. They end one after the other; together they stay within the 10 s that Swarm gives a task by default, because most
// end at once.
const (
	stopQuickly  = time.Second
	stopBus      = 3 * time.Second // leaves the consumer group, so that another manager takes over at once
	stopSession  = 2500 * time.Millisecond
	stopCommands = 3 * time.Second
	stopEvents   = 2 * time.Second
)

// Agent is the daemon.
type Agent struct {
	cfg      config.Config
	log      *slog.Logger
	started  time.Time
	warnings *health.Tracker
	engine   *engine.Engine
	identity *identity.Identity
	health   *health.Server
	local    *local.Server

	online atomic.Pointer[online] // nil until there is an identity
}

// New builds the parts that work without an identity; it starts nothing.
func New(cfg config.Config, log *slog.Logger) (*Agent, error) {
	a := &Agent{cfg: cfg, log: log, started: time.Now(), warnings: health.New(time.Now)}
	var err error
	if a.engine, err = engine.New(engine.Config{Host: cfg.Engine.Host}, engine.Deps{Log: log, Warn: a.warnings}); err != nil {
		return nil, err
	}
	if a.identity, err = identity.New(
		identity.Config{StateDir: cfg.Agent.StateDir, PlaneAddress: cfg.Plane.Address, AgentVersion: version.Version, Token: a.token},
		identity.Deps{Node: a.engine.Node, Log: log, Warn: a.warnings}); err != nil {
		return nil, err
	}
	a.health = health.NewServer(
		health.Config{Listen: cfg.Health.Listen, Version: version.Version, Revision: version.Revision},
		health.Deps{Warnings: a.warnings.Warnings, AgentID: a.agentID, EngineReachable: a.engine.Reachable, Log: log})
	if err = a.health.Register(newFigures(a)); err != nil {
		return nil, err
	}
	a.local = local.New(
		local.Config{Socket: cfg.Local.Socket, Group: cfg.Local.Group},
		local.Deps{Status: a.status, Stack: a.stackStatus, Logs: a.logs(), Log: log, Warn: a.warnings})
	return a, nil
}

// Run runs the agent until ctx ends, then stops it: nil. An error says which part could not go on; the process should end and be started again.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.cleanWorkDir(); err != nil {
		return err
	}
	s := supervise.New(a.log)
	s.Start(ctx, "engine", stopQuickly, a.engine.Run)
	s.Start(ctx, "health", stopQuickly, a.health.Run)
	s.Start(ctx, "local socket", stopQuickly, a.local.Run)
	s.Start(ctx, "identity", stopQuickly, a.identity.Run)
	err := s.Wait(a.untilEnrolled(ctx))
	if err == nil && ctx.Err() == nil {
		if err = a.goOnline(ctx, s); err == nil {
			err = s.Wait(ctx)
		}
	}
	return errors.Join(err, s.Stop(), a.online.Load().close())
}

// untilEnrolled returns a context that ends with ctx, or as soon as there is an identity.
func (a *Agent) untilEnrolled(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		select {
		case <-a.identity.Ready():
		case <-ctx.Done():
		}
	}()
	return ctx
}

// goOnline builds and starts what needs an identity.
func (a *Agent) goOnline(ctx context.Context, s *supervise.Supervisor) error {
	o, err := a.newOnline()
	if err != nil {
		return errors.Join(err, o.close())
	}
	a.online.Store(o)
	s.Start(ctx, "events", stopEvents, o.publisher.Run)
	s.Start(ctx, "commands", stopCommands, o.runCommands)
	s.Start(ctx, "fence", stopQuickly, o.fence.Run)
	s.Start(ctx, "journal keeper", stopQuickly, o.keepJournal)
	if o.telemetry != nil {
		s.Start(ctx, "telemetry", stopQuickly, o.telemetry.Run)
	}
	s.Start(ctx, "session", stopSession, o.session.Run)
	if a.cfg.Kafka.SASLMechanism == "" { // else the credentials are not the plane's to give
		care := newCredentialCare(a.warnings.Warnings, a.identity.RenewNow, o.log)
		s.Start(ctx, "kafka credentials", stopQuickly, care.run)
	}
	s.Start(ctx, "agent's commands", stopBus, o.own.Run)
	s.Start(ctx, "cluster's commands", stopBus, o.whileManager)
	o.log.Info("agent is online", "cluster_id", a.identity.ClusterID(), "version", version.Version)
	return nil
}

// cleanWorkDir makes the work folder and removes what a killed agent left in it: bundles may hold secrets.
func (a *Agent) cleanWorkDir() error {
	dir := a.cfg.Agent.WorkDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("work folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("work folder: %w", err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("work folder: %w", err)
		}
	}
	return nil
}

func (a *Agent) token(context.Context) (string, error) {
	return readSecret(a.cfg.Plane.TokenFile)
}

func (a *Agent) agentID() string {
	select {
	case <-a.identity.Ready():
		return a.identity.AgentID()
	default:
		return ""
	}
}

// role is the node's role as the engine last told it.
func (a *Agent) role() runnerv1.NodeRole {
	facts, err := a.engine.Node(context.Background())
	if err != nil {
		return runnerv1.NodeRole_NODE_ROLE_UNSPECIFIED
	}
	return facts.GetRole()
}

// stacks returns a stack engine with the engine's client of now.
func (a *Agent) stacks() (*stack.Engine, error) {
	return stack.New(stack.Config{WorkDir: a.cfg.Agent.WorkDir}, stack.Deps{Client: a.engine.Client(), Log: a.log})
}

func (a *Agent) commandStacks() (command.Stacks, error) { return a.stacks() }

// fencedStacks returns a stack engine whose writes are the claim's.
func (a *Agent) fencedStacks(claim command.Claim) (command.Stacks, error) {
	return stack.New(stack.Config{WorkDir: a.cfg.Agent.WorkDir}, stack.Deps{Client: claim.Client(a.engine.Client()), Log: a.log})
}

func (a *Agent) logs() *logs { return &logs{stacks: a.stacks, engine: a.engine, role: a.role} }

func (a *Agent) stackStatus(ctx context.Context, name string) (*runnerv1.StackStatusResult, error) {
	return a.immediate(nil).StackStatus(ctx, &runnerv1.StackStatus{Stack: name})
}

func (a *Agent) immediate(cancel func(ctx context.Context, id, stack string) error) *command.Immediate {
	return &command.Immediate{Containers: a.engine, Stacks: a.commandStacks, Role: a.role, Cancel: cancel}
}
