package fleet_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/axion/runner-agent/agent/session"
	"github.com/axion/runner-agent/plane/fleet"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/test/netproxy"
	"github.com/axion/runner-agent/test/testca"
)

const (
	// long is more than any step of these tests takes.
	long = 30 * time.Second
	// fast is a heartbeat interval for tests that wait for a deadline, calm for those in which none may pass on a busy machine.
	fast = 300 * time.Millisecond
	calm = 2 * time.Second

	clusterID = "shop"
	agentID   = "a-0123456789abcdef"
	nodeID    = "n1"
)

// plane is a real gRPC server over mTLS with a Fleet, behind a proxy that stays when the server restarts.
type plane struct {
	t      *testing.T
	ca     *testca.CA
	proxy  *netproxy.Proxy
	config fleet.Config

	fleet *fleet.Fleet
	stop  func() // ends fleet and server; again is harmless

	mu      sync.Mutex
	allowed map[string]bool
	revoked map[string]error
	removed bool
	touched []*runnerv1.NodeFacts
	nodes   []*runnerv1.NodeList
	noNodes error // what telling nodes is answered with
	events  []fleet.Event
}

func newPlane(t *testing.T, interval time.Duration) *plane {
	t.Helper()
	p := &plane{
		t:       t,
		ca:      testca.New(t),
		config:  fleet.Config{PlaneVersion: "1.0", HeartbeatInterval: interval, Timing: fleet.Timing{MinHeartbeat: 10 * time.Millisecond}},
		allowed: map[string]bool{},
		revoked: map[string]error{},
	}
	p.proxy = netproxy.Start(t, "127.0.0.1:1") // until start sets the target
	return p
}

// start starts the plane, a second time on another port as the same plane.
func (p *plane) start() *plane {
	p.t.Helper()
	f, err := fleet.New(p.config, fleet.Deps{
		Identify:            p.identify,
		Touch:               p.touch,
		SetNodes:            p.setNodes,
		ClusterTopicAllowed: p.clusterTopicAllowed,
		Observe:             p.observe,
		Log:                 logger(p.t),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(p.ca.Server())), grpc.MaxRecvMsgSize(fleet.MaxReceiveBytes), grpc.MaxConcurrentStreams(fleet.MaxStreams))
	runnerv1.RegisterRunnerServer(server, f)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = f.Run(ctx) })
	wg.Go(func() { _ = server.Serve(l) })
	p.fleet = f
	p.stop = func() {
		cancel()
		_ = f.Run(ctx)                                   // returns when it is closed
		hard := time.AfterFunc(time.Second, server.Stop) // for half-open connections, which never drain
		server.GracefulStop()
		hard.Stop()
		wg.Wait()
	}
	p.t.Cleanup(p.stop)
	p.proxy.SetTarget(l.Addr().String())
	return p
}

func (p *plane) identify(ctx context.Context) (string, string, error) {
	pr, ok := peer.FromContext(ctx)
	if !ok {
		return "", "", errors.New("no peer")
	}
	info, ok := pr.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return "", "", failure.New(failure.Denied, "no_certificate", "", "the client shows no certificate")
	}
	name := info.State.PeerCertificates[0].Subject
	p.mu.Lock()
	defer p.mu.Unlock()
	return name.Organization[0], name.CommonName, p.revoked[name.CommonName]
}

func (p *plane) touch(_ context.Context, _ string, facts *runnerv1.NodeFacts, _ string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.touched = append(p.touched, facts)
	if p.removed {
		return failure.New(failure.Denied, "agent_removed", agentID, "agent %s was removed", agentID)
	}
	if facts.GetNodeId() == "foreign" {
		return failure.New(failure.Conflict, "node_mismatch", agentID, "agent %s speaks for another node", agentID)
	}
	return nil
}

func (p *plane) setNodes(_ context.Context, _, _ string, nodes *runnerv1.NodeList) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodes = append(p.nodes, nodes)
	return p.noNodes
}

func (p *plane) clusterTopicAllowed(_ context.Context, id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.allowed[id]
}

func (p *plane) allow(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.allowed[id] = true
}

func (p *plane) observe(e fleet.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
}

func (p *plane) seen(kind fleet.EventKind) (list []fleet.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if e.Kind == kind {
			list = append(list, e)
		}
	}
	return list
}

// agent is a real session of an agent.
type agent struct {
	*session.Client
	warn *warnings
	stop func() // ends it and waits
}

type options struct {
	address  string // the proxy's if empty
	id       string
	instance string
	tls      *tls.Config
	node     *runnerv1.NodeFacts
	nodes    func(context.Context) (*runnerv1.NodeList, error)
	beat     func() *runnerv1.Heartbeat
	handler  handlerFunc
	logs     session.LogSource
	metrics  session.MetricsSource
}

func (p *plane) agent(o options) *agent {
	p.t.Helper()
	if o.address == "" {
		o.address = p.proxy.Addr()
	}
	if o.id == "" {
		o.id = agentID
	}
	if o.tls == nil {
		o.tls = p.ca.Client(o.id, clusterID)
	}
	if o.node == nil {
		o.node = &runnerv1.NodeFacts{NodeId: nodeID, Role: runnerv1.NodeRole_NODE_ROLE_MANAGER}
	}
	if o.beat == nil {
		o.beat = func() *runnerv1.Heartbeat { return &runnerv1.Heartbeat{EngineReachable: true} }
	}
	if o.handler == nil {
		o.handler = func(context.Context, *runnerv1.Request) *runnerv1.Response { return &runnerv1.Response{} }
	}
	w := &warnings{set: map[string]string{}}
	c, err := session.New(session.Config{
		Address: o.address, AgentVersion: "1.0", InstanceID: o.instance,
		Timing: session.Timing{MinHeartbeat: 10 * time.Millisecond, BackoffMin: time.Millisecond, BackoffMax: 50 * time.Millisecond, NodesEvery: 20 * time.Millisecond},
	}, session.Deps{
		TLS:       func() *tls.Config { return o.tls },
		Node:      func(context.Context) (*runnerv1.NodeFacts, error) { return o.node, nil },
		Nodes:     o.nodes,
		Heartbeat: o.beat,
		Handler:   o.handler,
		Logs:      o.logs,
		Metrics:   o.metrics,
		Log:       logger(p.t),
		Warn:      w,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	a := &agent{Client: c, warn: w, stop: func() { cancel(); wg.Wait() }}
	p.t.Cleanup(a.stop)
	return a
}

// join starts an agent and waits until both sides have it connected.
func (p *plane) join(o options) *agent {
	p.t.Helper()
	a := p.agent(o)
	id := o.id
	if id == "" {
		id = agentID
	}
	eventually(p.t, "agent is connected", func() bool { return a.Connected() && p.fleet.Connected(id) })
	return a
}

type handlerFunc func(context.Context, *runnerv1.Request) *runnerv1.Response

func (f handlerFunc) Handle(ctx context.Context, req *runnerv1.Request) *runnerv1.Response {
	return f(ctx, req)
}

type warnings struct {
	mu  sync.Mutex
	set map[string]string
}

func (w *warnings) Set(code string, _ runnerv1.HealthSeverity, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set[code] = text
}

func (w *warnings) Clear(code string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.set, code)
}

func (w *warnings) text(code string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set[code]
}

// eventually waits until the condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(long); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", long, what)
		}
	}
}

// receive takes a value from a channel that must have one soon.
func receive[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(long):
		t.Fatalf("not within %s: %s", long, what)
		panic("unreachable")
	}
}

func wantFailure(t *testing.T, err error, class failure.Class, code string) {
	t.Helper()
	f := failure.Of(err)
	if f == nil || f.Class != class || f.Code != code {
		t.Fatalf("got %+v, want %v %s", f, class, code)
	}
}

// logger writes to the test's log.
func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}
