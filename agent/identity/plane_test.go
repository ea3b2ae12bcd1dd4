package identity_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/axion/runner-agent/agent/identity"
	"github.com/axion/runner-agent/plane/ca"
	"github.com/axion/runner-agent/plane/caller"
	"github.com/axion/runner-agent/plane/enroll"
	"github.com/axion/runner-agent/plane/registry"
	"github.com/axion/runner-agent/plane/store"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failurepb"
	"github.com/axion/runner-agent/proto/jointoken"
)

const (
	cluster = "shop"
	patient = 20 * time.Second // bound of each wait of these tests
)

// plane is a control plane as far as identity is concerned: real CA, registry and enrolment over gRPC and TLS on loopback.
type plane struct {
	t        *testing.T
	db       *store.DB
	ca       *ca.CA
	registry *registry.Registry
	address  string
	server   *grpc.Server
	done     chan struct{}

	mu      sync.Mutex
	live    map[string]bool
	serials []string // of the connections that opened a stream
	opened  int      // streams, also those that were refused
	broker  string
	calls   int // of Provision: enrolments and renewals
}

// newPlane starts a plane whose agents' certificates live that long.
func newPlane(t *testing.T, life time.Duration) *plane {
	t.Helper()
	authority, err := ca.Open(filepath.Join(t.TempDir(), "ca"), time.Now, ca.WithAgentLife(life))
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "plane.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	p := &plane{t: t, db: db, ca: authority, registry: registry.New(db, time.Now), live: map[string]bool{}, broker: "127.0.0.1:9092"}
	p.start("127.0.0.1:0")
	t.Cleanup(p.stop)
	return p
}

func (p *plane) start(address string) {
	p.t.Helper()
	enrolment, err := enroll.New(enroll.Config{HeartbeatInterval: 7 * time.Second}, enroll.Deps{
		Authority: p.ca, Registry: p.registry, Kafka: p, Live: p.isLive, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	config, err := p.ca.ServerTLS(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.address = listener.Addr().String()
	p.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	runnerv1.RegisterEnrollmentServer(p.server, enrolment)
	runnerv1.RegisterRunnerServer(p.server, &runner{plane: p})
	p.done = make(chan struct{})
	go func() {
		defer close(p.done)
		_ = p.server.Serve(listener)
	}()
}

func (p *plane) stop() {
	p.server.Stop()
	<-p.done
}

// Provision stands for the broker: the topics themselves are another package's matter.
func (p *plane) Provision(_ context.Context, clusterID, agentID string) (*runnerv1.KafkaAccess, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	return &runnerv1.KafkaAccess{
		Brokers: []string{p.broker}, AgentTopic: "runner.commands." + agentID, AgentGroup: "runner." + agentID,
		ClusterTopic: "runner.commands." + clusterID, ClusterGroup: "runner." + clusterID, EventsTopic: "runner.events", DlqTopic: "runner.commands.dlq",
		Sasl: &runnerv1.SaslCredentials{Mechanism: runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_512, Username: agentID, Password: "kafka-password"},
		Tls:  true,
	}, nil
}

func (p *plane) isLive(agentID string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live[agentID]
}

func (p *plane) setLive(agentID string, live bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live[agentID] = live
}

func (p *plane) lastSerial() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.serials[len(p.serials)-1]
}

// token makes a join token for the test's cluster.
func (p *plane) token(uses uint32) string {
	p.t.Helper()
	_, text := p.tokenWithID(uses)
	return text
}

func (p *plane) tokenWithID(uses uint32) (id, text string) {
	p.t.Helper()
	token, secret, err := p.registry.CreateToken(p.t.Context(), cluster, time.Hour, uses)
	if err != nil {
		p.t.Fatal(err)
	}
	return token.ID, jointoken.Token{Secret: secret, CAHash: [32]byte(p.ca.Hash())}.String()
}

func (p *plane) used() (used uint32) {
	p.t.Helper()
	tokens, err := p.registry.ListTokens(p.t.Context(), cluster)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, token := range tokens {
		used += token.Used
	}
	return used
}

// runner lets in agents whose certificates stand, welcomes whoever says hello, and answers each heartbeat on a stream with its sequence.
type runner struct {
	runnerv1.UnimplementedRunnerServer
	plane *plane
}

func (r *runner) Connect(stream grpc.BidiStreamingServer[runnerv1.AgentMessage, runnerv1.PlaneMessage]) error {
	from, _ := peer.FromContext(stream.Context())
	_, _, serial, err := ca.AgentFromTLS(from.AuthInfo.(credentials.TLSInfo).State)
	if err != nil {
		return err
	}
	_, _, refusal := caller.New(r.plane.registry, time.Now).Identify(stream.Context())
	r.plane.mu.Lock()
	r.plane.opened++
	if refusal != nil {
		r.plane.mu.Unlock()
		return failurepb.Status(refusal)
	}
	r.plane.serials = append(r.plane.serials, serial)
	r.plane.mu.Unlock()
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if msg.GetHello() != nil {
			if err := stream.Send(&runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_Welcome{Welcome: &runnerv1.Welcome{SessionId: serial}}}); err != nil {
				return err
			}
			continue
		}
		ack := &runnerv1.HeartbeatAck{Sequence: msg.GetHeartbeat().GetSequence()}
		if err := stream.Send(&runnerv1.PlaneMessage{Message: &runnerv1.PlaneMessage_HeartbeatAck{HeartbeatAck: ack}}); err != nil {
			return err
		}
	}
}

// session is an open stream to the plane.
type session struct {
	stream grpc.BidiStreamingClient[runnerv1.AgentMessage, runnerv1.PlaneMessage]
	beats  uint64
}

func connect(t *testing.T, address string, config *tls.Config) *session {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := runnerv1.NewRunnerClient(conn).Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := &session{stream: stream}
	if err := s.beat(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *session) beat() error {
	s.beats++
	beat := &runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Heartbeat{Heartbeat: &runnerv1.Heartbeat{Sequence: s.beats}}}
	if err := s.stream.Send(beat); err != nil {
		return err
	}
	ack, err := s.stream.Recv()
	if err == nil && ack.GetHeartbeatAck().GetSequence() != s.beats {
		err = errors.New("the answer is not to this heartbeat")
	}
	return err
}

// host is a node on which an agent runs: its state volume, its engine, its token, and what the agent warns of.
type host struct {
	t       *testing.T
	dir     string
	address string
	log     *slog.Logger
	skew    time.Duration // of the node's clock

	mu       sync.Mutex
	facts    *runnerv1.NodeFacts
	nodeErr  error
	token    string
	reads    int // of the token
	warnings map[string]string
	titles   map[string]string
}

func newHost(t *testing.T, address, nodeID string, role runnerv1.NodeRole) *host {
	t.Helper()
	facts := &runnerv1.NodeFacts{NodeId: nodeID, Hostname: "host-" + nodeID, Role: role}
	if role == runnerv1.NodeRole_NODE_ROLE_MANAGER {
		facts.SwarmClusterId = "swarm1"
	}
	return &host{
		t: t, dir: filepath.Join(t.TempDir(), "state"), address: address, facts: facts,
		warnings: map[string]string{}, titles: map[string]string{}, log: slog.New(slog.DiscardHandler),
	}
}

func newManager(t *testing.T, p *plane, nodeID string) *host {
	t.Helper()
	return newHost(t, p.address, nodeID, runnerv1.NodeRole_NODE_ROLE_MANAGER)
}

// setToken gives the agent another token; an empty one takes it away.
func (h *host) setToken(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.token = text
}

// asked is how often the token was read.
func (h *host) asked() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reads
}

func (h *host) setFacts(change func(*runnerv1.NodeFacts)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h.facts)
}

// Set and Clear make a host a Warner.
func (h *host) Set(code string, _ runnerv1.HealthSeverity, title, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.warnings[code], h.titles[code] = text, title
}

func (h *host) Clear(code string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.warnings, code)
}

func (h *host) all() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make(map[string]string, len(h.warnings))
	for code, text := range h.warnings {
		all[code] = text
	}
	return all
}

// waitFor waits for a warning and returns its text.
func (h *host) waitFor(code string) string {
	h.t.Helper()
	var text string
	eventually(h.t, func() bool {
		text = h.all()[code]
		return text != ""
	}, func() string {
		return "the warning " + code + " did not come; there are " + strings.Join(keys(h.all()), ", ")
	})
	return text
}

func (h *host) waitForNoWarning() {
	h.t.Helper()
	eventually(h.t, func() bool { return len(h.all()) == 0 }, func() string { return "warnings are left: " + strings.Join(keys(h.all()), ", ") })
}

func (h *host) open() *identity.Identity {
	h.t.Helper()
	i, err := identity.New(identity.Config{
		StateDir: h.dir, PlaneAddress: h.address, AgentVersion: "1.2.3",
		Token: func(context.Context) (string, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.reads++
			if h.token == "" {
				return "", os.ErrNotExist
			}
			return h.token, nil
		},
	}, identity.Deps{
		Node: func(context.Context) (*runnerv1.NodeFacts, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.nodeErr != nil {
				return nil, h.nodeErr
			}
			return &runnerv1.NodeFacts{NodeId: h.facts.NodeId, Hostname: h.facts.Hostname, Role: h.facts.Role, SwarmClusterId: h.facts.SwarmClusterId}, nil
		},
		Log: h.log, Warn: h, Now: func() time.Time { return time.Now().Add(h.skew) },
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return i
}

// running is an agent's identity that runs.
type running struct {
	*identity.Identity
	t      *testing.T
	cancel context.CancelFunc
	err    chan error
}

// prepare loads the agent's identity.
func (h *host) prepare() *running {
	h.t.Helper()
	return &running{Identity: h.open(), t: h.t, cancel: func() {}, err: make(chan error, 1)}
}

// begin starts it; it stops at the end of the test at the latest.
func (r *running) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.err <- r.Run(ctx) }()
	r.t.Cleanup(r.stop)
}

func (h *host) run() *running {
	h.t.Helper()
	r := h.prepare()
	r.begin()
	return r
}

// runReady starts the agent and waits until it has an identity.
func (h *host) runReady() *running {
	h.t.Helper()
	r := h.run()
	r.waitReady(h)
	return r
}

func (r *running) waitReady(h *host) {
	r.t.Helper()
	select {
	case <-r.Ready():
	case <-time.After(patient):
		r.t.Fatalf("the agent did not become ready; warnings: %v", h.all())
	}
}

func (r *running) isReady() bool {
	select {
	case <-r.Ready():
		return true
	default:
		return false
	}
}

// stop ends Run; doing it again is harmless.
func (r *running) stop() {
	r.cancel()
	select {
	case err := <-r.err:
		r.err <- err
	case <-time.After(patient):
		r.t.Error("Run did not end")
	}
}

// ended waits until Run returns by itself.
func (r *running) ended() error {
	r.t.Helper()
	select {
	case err := <-r.err:
		r.err <- err
		return err
	case <-time.After(patient):
		r.t.Fatal("Run did not end")
		return nil
	}
}

func eventually(t *testing.T, ok func() bool, why func() string) {
	t.Helper()
	deadline := time.Now().Add(patient)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal(why())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func keys(m map[string]string) []string {
	var list []string
	for k := range m {
		list = append(list, k)
	}
	return list
}

// tokenMadeBefore makes a token that was good for an hour, that long ago.
func (p *plane) tokenMadeBefore(ago time.Duration) string {
	p.t.Helper()
	past := registry.New(p.db, func() time.Time { return time.Now().Add(-ago) })
	_, secret, err := past.CreateToken(p.t.Context(), cluster, time.Hour, 1)
	if err != nil {
		p.t.Fatal(err)
	}
	return jointoken.Token{Secret: secret, CAHash: [32]byte(p.ca.Hash())}.String()
}

// relay hands each connection on to another address, until the test ends.
func relay(t *testing.T, listener net.Listener, to string) {
	t.Helper()
	var work sync.WaitGroup
	work.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			work.Go(func() { _, _ = io.Copy(out, in); out.Close() })
			work.Go(func() { _, _ = io.Copy(in, out); in.Close() })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		work.Wait()
	})
}

// runBlocked starts the agent on a volume where that file cannot be replaced: a folder is in its place.
func (h *host) runBlocked(path string) *running {
	h.t.Helper()
	r := h.prepare()
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil {
		h.t.Fatal(err)
	}
	r.begin()
	return r
}

// lockedBuffer is a buffer that many may write to.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
