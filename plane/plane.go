// Package plane is the reference control plane, put together: certificate authority, registry, embedded Kafka broker, enrolment, sessions, commands and the
// operator's API behind one TLS listener, with everything that lasts in one data directory. The parts are the packages below this one; this one wires them,
// decides who may call what (auth.go), keeps the broker in step with the registry (access.go), and starts and stops everything in order.
package plane

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/axion/runner-agent/internal/supervise"
	"github.com/axion/runner-agent/plane/broker"
	"github.com/axion/runner-agent/plane/ca"
	"github.com/axion/runner-agent/plane/caller"
	"github.com/axion/runner-agent/plane/deadletters"
	"github.com/axion/runner-agent/plane/dispatch"
	"github.com/axion/runner-agent/plane/enroll"
	"github.com/axion/runner-agent/plane/eviction"
	"github.com/axion/runner-agent/plane/fleet"
	"github.com/axion/runner-agent/plane/heads"
	"github.com/axion/runner-agent/plane/ledger"
	"github.com/axion/runner-agent/plane/operator"
	"github.com/axion/runner-agent/plane/registry"
	"github.com/axion/runner-agent/plane/store"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/operatorcontext"
	"github.com/axion/runner-agent/proto/version"
)

// Deadlines for the end of the components.
const (
	stopLoop   = 5 * time.Second  // one that only has to notice
	stopFleet  = 8 * time.Second  // goodbyes to all agents
	stopServer = 6 * time.Second  // drainTime and a little
	stopBroker = 10 * time.Second // it writes what it knows
)

// readyEvery is how often the plane looks whether it is ready, until it is and later.
const (
	readyFirst = 50 * time.Millisecond
	readyEvery = 10 * time.Second
	readyTime  = 5 * time.Second
)

// Plane is a control plane.
type Plane struct {
	cfg Config
	log *slog.Logger
	now func() time.Time

	ready     chan struct{}
	readyOnce sync.Once
}

// New checks the configuration. Nothing is opened before Run.
func New(cfg Config, log *slog.Logger, now func() time.Time) (*Plane, error) {
	if err := cfg.normalize(); err != nil {
		return nil, err
	}
	return &Plane{cfg: cfg, log: log, now: now, ready: make(chan struct{})}, nil
}

// Ready returns a channel that is closed when the plane is ready for the first time: it listens, and the broker has what the agents need.
func (p *Plane) Ready() <-chan struct{} { return p.ready }

// Run opens what the data directory has, serves until ctx ends, and stops in order. It returns nil if everything ended well.
func (p *Plane) Run(ctx context.Context) (err error) {
	if err := os.MkdirAll(p.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	held, err := lock(p.cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Close()) }()
	db, err := openStore(ctx, filepath.Join(p.cfg.DataDir, databaseFile))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	listener, err := net.Listen("tcp", p.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer func() { _ = listener.Close() }() // the server closes it too
	if err := writeAddress(p.cfg.DataDir, listener.Addr()); err != nil {
		return err
	}
	parts, err := p.assemble(db, listener)
	if err != nil {
		return err
	}
	s := supervise.New(p.log)
	defer func() { err = errors.Join(err, s.Stop()) }()
	parts.start(ctx, s)
	p.log.Info("plane started", "version", version.Version, "revision", version.Revisioned(), "address", listener.Addr().String(),
		"advertise", p.cfg.Advertise, "operator_context", ContextPath(p.cfg.DataDir))
	err = s.Wait(ctx)
	p.log.Info("plane stops")
	return err
}

// openStore opens the database. Open commands in it may hold credentials, so the file is its owner's only; SQLite gives its other files the same mode.
func openStore(ctx context.Context, path string) (*store.DB, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return store.Open(ctx, path)
}

// parts are the components of a running plane.
type parts struct {
	plane    *Plane
	db       *store.DB
	broker   *broker.Broker
	access   *access
	eviction *eviction.Evictor
	fleet    *fleet.Fleet
	dispatch *dispatch.Dispatch
	letters  *deadletters.Letters
	heads    *heads.Watch
	operator *operator.Server
	server   *grpc.Server
	health   *health.Server
	listener net.Listener
}

func (p *Plane) assemble(db *store.DB, listener net.Listener) (*parts, error) {
	var options []ca.Option
	if p.cfg.CertificateLife > 0 {
		options = append(options, ca.WithAgentLife(p.cfg.CertificateLife))
	}
	authority, err := ca.Open(filepath.Join(p.cfg.DataDir, caDir), p.now, options...)
	if err != nil {
		return nil, err
	}
	serverTLS, err := authority.ServerTLS(p.cfg.Advertise)
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return nil, err
	}
	operators, err := operatorContext(p.cfg.DataDir, authority, p.cfg.Advertise[0], port)
	if err != nil {
		return nil, err
	}
	x := &parts{plane: p, db: db, listener: listener, health: health.NewServer()}
	reg := registry.New(db, p.now)
	led := ledger.New(ledger.Config{ForgetBundles: p.cfg.ForgetBundles}, db, p.now)
	who := caller.New(reg, p.now)
	if x.broker, err = p.newBroker(authority, serverTLS, who); err != nil {
		return nil, err
	}
	x.access = newAccess(reg, x.broker, func(agentID string) { x.fleet.RefreshClusterTopic(agentID) }, p.component("access"))
	if x.eviction, err = p.newEviction(x.broker.Evict, func() *fleet.Fleet { return x.fleet }); err != nil {
		return nil, err
	}
	if x.fleet, err = p.newFleet(reg, who, x.access, x.eviction.Broke); err != nil {
		return nil, err
	}
	if x.heads, err = heads.New(heads.Deps{
		Sessions: x.fleet.Sessions, Swarms: swarms(reg), Ledger: led, CommandTopic: broker.CommandTopic, Log: p.component("heads"), Now: p.now,
	}); err != nil {
		return nil, err
	}
	if x.dispatch, err = dispatch.New(dispatch.Config{EventsTopic: broker.EventsTopic}, dispatch.Deps{
		Ledger: led, Signers: signers{reg}, ClientOpts: x.broker.ClientOpts, Log: p.component("dispatch"), Now: p.now,
	}); err != nil {
		return nil, err
	}
	if x.letters, err = deadletters.New(deadletters.Config{Topic: broker.DLQTopic}, deadletters.Deps{
		DB: db, Directory: directory{reg}, ClientOpts: x.broker.ClientOpts, Log: p.component("deadletters"), Now: p.now,
	}); err != nil {
		return nil, err
	}
	return x, p.serveAll(x, authority, reg, led, who, serverTLS, operators)
}

// serveAll makes the gRPC server and its services.
func (p *Plane) serveAll(x *parts, authority *ca.CA, reg *registry.Registry, led *ledger.Ledger, who *caller.Agents, serverTLS *tls.Config,
	operators operatorcontext.Context,
) error {
	desk, err := enroll.New(enroll.Config{HeartbeatInterval: p.cfg.HeartbeatInterval}, enroll.Deps{
		Authority: authority, Registry: reg, Kafka: x.access, Live: x.fleet.Connected, Enrolled: x.enrolled,
		Log: p.component("enroll"), Now: p.now,
	})
	if err != nil {
		return err
	}
	x.operator, err = operator.New(operator.Config{
		Token: operators.Token, CAHash: [sha256.Size]byte(authority.Hash()), CommandTopic: broker.CommandTopic,
	}, operator.Deps{Registry: reg, Fleet: x.fleet, Kafka: x.access, Ledger: led, Letters: x.letters, Log: p.component("operator")})
	if err != nil {
		return err
	}
	x.server = newServer(serverTLS, &gate{operator: x.operator.Authorize, agent: who.Identify, log: p.log})
	x.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	healthv1.RegisterHealthServer(x.server, x.health)
	runnerv1.RegisterEnrollmentServer(x.server, desk)
	runnerv1.RegisterRunnerServer(x.server, x.fleet)
	planev1.RegisterOperatorServer(x.server, x.operator)
	return nil
}

// enrolled is told of new agents and new keys. What an old key had opened is closed; the registry has revoked its certificates.
func (x *parts) enrolled(e registry.Enrolment) {
	if e.Rekeyed {
		x.broker.Disconnect(e.ID)
	}
	x.access.poke()
}

func (p *Plane) component(name string) *slog.Logger { return p.log.With("component", name) }

// start starts the components in the order in which they build on each other. Fleet and operator come after the server, so that they end their streams while
// the server still has the connections.
func (x *parts) start(ctx context.Context, s *supervise.Supervisor) {
	s.Start(ctx, "broker", stopBroker, x.broker.Run)
	s.Start(ctx, "access", stopLoop, x.access.run)
	s.Start(ctx, "dispatch", stopLoop, x.access.afterTopics(x.dispatch.Run))
	s.Start(ctx, "deadletters", stopLoop, x.access.afterTopics(x.letters.Run))
	s.Start(ctx, "eviction", stopLoop, x.eviction.Run)
	s.Start(ctx, "server", stopServer, func(ctx context.Context) error { return serve(ctx, x.server, x.listener) })
	s.Start(ctx, "operator", stopLoop, x.operator.Run)
	s.Start(ctx, "fleet", stopFleet, x.fleet.Run)
	s.Start(ctx, "heads", stopLoop, x.heads.Run)
	s.Start(ctx, "readiness", stopLoop, x.watchReadiness)
}

// watchReadiness tells the health service whether the plane is ready.
func (x *parts) watchReadiness(ctx context.Context) error {
	defer x.health.Shutdown() // not serving from now on
	wait, was := readyFirst, errors.New("it has not started")
	for {
		err := x.check(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			wait = readyEvery
			x.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
			x.plane.readyOnce.Do(func() { close(x.plane.ready) })
		default:
			x.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
			wait = min(2*wait, readyEvery)
		}
		if (err == nil) != (was == nil) {
			x.plane.log.Info("readiness changed", "ready", err == nil, "error", err)
		}
		was = err
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

func (x *parts) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	if err := x.db.PingContext(ctx); err != nil {
		return fmt.Errorf("the database does not answer: %w", err)
	}
	if err := x.broker.Ready(ctx); err != nil {
		return fmt.Errorf("the broker is not ready: %w", err)
	}
	if !x.access.settled() {
		return errors.New("the agents' access to Kafka has not been set up yet")
	}
	return nil
}
