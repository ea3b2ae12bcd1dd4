package operator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/plane/ca"
	"github.com/axion/runner-agent/plane/deadletters"
	"github.com/axion/runner-agent/plane/ledger"
	"github.com/axion/runner-agent/plane/registry"
	"github.com/axion/runner-agent/plane/store"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
	"github.com/axion/runner-agent/proto/jointoken"
	"github.com/axion/runner-agent/proto/operatorcontext"
)

const (
	token = "0123456789abcdef0123456789abcdef"
	// patience is how long a test waits for what must happen.
	patience = 20 * time.Second
)

// fleet is what a test makes of the sessions.
type fleet struct {
	connected    map[string]bool
	disconnected []string
	request      func(agentID string, req *runnerv1.Request) (*runnerv1.Response, error)
	logs         func(agentID string, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error
	metrics      map[string]*runnerv1.MetricsBatch
	manager      func(clusterID string) (string, error)
	managers     []string
}

func (f *fleet) Connected(agentID string) bool { return f.connected[agentID] }

func (f *fleet) Disconnect(agentID, _ string) { f.disconnected = append(f.disconnected, agentID) }

func (f *fleet) Request(_ context.Context, agentID string, req *runnerv1.Request) (*runnerv1.Response, error) {
	return f.request(agentID, req)
}

func (f *fleet) StreamLogs(_ context.Context, agentID string, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
	return f.logs(agentID, open, send)
}

func (f *fleet) LatestMetrics() map[string]*runnerv1.MetricsBatch { return f.metrics }

func (f *fleet) PickManager(clusterID string) (string, error) { return f.manager(clusterID) }

func (f *fleet) Managers(string, string) []string { return f.managers }

func (f *fleet) Warnings(string) []*runnerv1.HealthWarning {
	return []*runnerv1.HealthWarning{{Code: "w"}}
}

// kafka records what is taken away.
type kafka struct {
	removed []string
	err     error
}

func (k *kafka) Remove(_ context.Context, clusterID, agentID string) error {
	k.removed = append(k.removed, clusterID+"/"+agentID)
	return k.err
}

// plane is an operator server over TLS with a real registry and a real ledger.
type plane struct {
	t        *testing.T
	client   planev1.OperatorClient
	context  operatorcontext.Context
	registry *registry.Registry
	ledger   *ledger.Ledger
	fleet    *fleet
	kafka    *kafka
	letters  *deadletters.Letters
	brokers  []string // where letters come from, if a test has some
	ca       *ca.CA
	server   *Server
}

func start(t *testing.T, cfg ledger.Config) *plane {
	t.Helper()
	dir := t.TempDir()
	db, err := store.Open(t.Context(), filepath.Join(dir, "plane.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	authority, err := ca.Open(filepath.Join(dir, "ca"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{
		t: t, registry: registry.New(db, time.Now), ledger: ledger.New(cfg, db, time.Now), kafka: &kafka{}, ca: authority,
		fleet: &fleet{connected: map[string]bool{}, manager: func(id string) (string, error) { return "", errors.New("no manager in " + id) }},
	}
	p.letters, err = deadletters.New(deadletters.Config{Topic: dlqTopic}, deadletters.Deps{
		DB: db, Directory: directory{}, Log: slog.New(slog.DiscardHandler), Now: time.Now,
		ClientOpts: func() []kgo.Opt { return []kgo.Opt{kgo.SeedBrokers(p.brokers...)} },
	})
	if err != nil {
		t.Fatal(err)
	}
	server, err := New(Config{
		Token: token, CAHash: [sha256.Size]byte(authority.Hash()), CommandTopic: func(id string) string { return "runner.commands." + id },
	}, Deps{Registry: p.registry, Fleet: p.fleet, Kafka: p.kafka, Ledger: p.ledger, Letters: p.letters, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	p.server = server
	p.serve(server)
	return p
}

func (p *plane) serve(server *Server) {
	p.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	certificate, err := p.ca.IssueServer(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13})),
		grpc.MaxRecvMsgSize(16<<20),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := server.Authorize(ctx); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := server.Authorize(stream.Context()); err != nil {
				return err
			}
			return next(srv, stream)
		}),
	)
	planev1.RegisterOperatorServer(g, server)
	done := make(chan error, 1)
	go func() { done <- g.Serve(listener) }()
	p.t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
	})
	pem := p.ca.CertificatePEM()
	p.context = operatorcontext.Context{Address: listener.Addr().String(), CAPEM: string(pem), Token: token, CAHash: textHash(p.ca)}
	p.client = p.dial(p.context)
}

func textHash(c *ca.CA) string {
	text := jointoken.Token{CAHash: [sha256.Size]byte(c.Hash())}.String()
	return text[strings.LastIndex(text, ".")+1:]
}

func (p *plane) dial(c operatorcontext.Context) planev1.OperatorClient {
	p.t.Helper()
	cfg, err := c.ClientTLS()
	if err != nil {
		p.t.Fatal(err)
	}
	conn, err := grpc.NewClient(c.Address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithPerRPCCredentials(c.Credentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	return planev1.NewOperatorClient(conn)
}

// enrol puts the first manager's agent of a cluster into the registry and returns its id.
func (p *plane) enrol(cluster, node string) string {
	p.t.Helper()
	return p.enrolAs(cluster, node, runnerv1.NodeRole_NODE_ROLE_MANAGER)
}

// enrolWorker does it for a worker of the cluster that the manager's agent has told of.
func (p *plane) enrolWorker(cluster, manager, node string) string {
	p.t.Helper()
	first, err := p.registry.Agent(p.t.Context(), manager)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.registry.SetNodes(p.t.Context(), cluster, manager, &runnerv1.NodeList{SwarmClusterId: "swarm-" + cluster, Nodes: []*runnerv1.SwarmNode{
		{NodeId: first.NodeID, Role: runnerv1.NodeRole_NODE_ROLE_MANAGER}, {NodeId: node, Role: runnerv1.NodeRole_NODE_ROLE_WORKER},
	}}); err != nil {
		p.t.Fatal(err)
	}
	return p.enrolAs(cluster, node, runnerv1.NodeRole_NODE_ROLE_WORKER)
}

func (p *plane) enrolAs(cluster, node string, role runnerv1.NodeRole) string {
	p.t.Helper()
	_, secret, err := p.registry.CreateToken(p.t.Context(), cluster, time.Hour, 1)
	if err != nil {
		p.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	facts := &runnerv1.NodeFacts{NodeId: node, Hostname: "host-" + node, Role: role}
	if role == runnerv1.NodeRole_NODE_ROLE_MANAGER {
		facts.SwarmClusterId = "swarm-" + cluster
	}
	e, err := p.registry.Enrol(p.t.Context(), registry.EnrolParams{
		Secret: secret, PublicKey: &key.PublicKey, EncryptionKey: make([]byte, 32), Version: "1.2.3", Live: func(string) bool { return false }, Facts: facts,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return e.ID
}

func deploy(stack string) *runnerv1.StackDeploy {
	return &runnerv1.StackDeploy{Stack: stack, Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: &runnerv1.BundleContent{
		WorkingDir: "/app", ComposeFiles: []string{"/app/compose.yml"}, Files: []*runnerv1.BundleFile{{Path: "/app/compose.yml", Content: []byte("services: {}")}},
	}}}}
}

func submission(d *runnerv1.StackDeploy) *planev1.SubmitCommandRequest {
	return &planev1.SubmitCommandRequest{Command: &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: d}}
}

func (p *plane) submit(req *planev1.SubmitCommandRequest) *planev1.SubmitCommandResponse {
	p.t.Helper()
	resp, err := p.client.SubmitCommand(p.t.Context(), req)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp
}

func (p *plane) keep(causation string, msgs ...proto.Message) {
	p.t.Helper()
	p.keepOf("prod", causation, msgs...)
}

func (p *plane) keepOf(clusterID, causation string, msgs ...proto.Message) {
	p.t.Helper()
	for _, msg := range msgs {
		e, err := envelope.New("/agents/a-1", msg, time.Now())
		if err != nil {
			p.t.Fatal(err)
		}
		e.CausationID = causation
		if _, ok := msg.(*runnerv1.CommandOutcome); ok {
			e.ID = envelope.OutcomeID(causation)
		}
		if _, err := p.ledger.Store(p.t.Context(), []ledger.NewEvent{{Envelope: e, Message: msg, ClusterID: clusterID, AgentID: "a-1"}}, nil); err != nil {
			p.t.Fatal(err)
		}
	}
}

func codeOf(err error) string {
	if err == nil {
		return ""
	}
	return failure.Of(failurepb.FromStatus(err)).Code
}

func TestOnlyTheTokenOpensTheDoor(t *testing.T) {
	p := start(t, ledger.Config{})
	for name, tok := range map[string]string{"none": "", "wrong": "x" + token[1:], "shorter": token[:31], "longer": token + "x"} {
		t.Run(name, func(t *testing.T) {
			c := p.context
			c.Token = tok
			client := p.dial(c)
			if _, err := client.ListTokens(t.Context(), &planev1.ListTokensRequest{}); status.Code(err) != codes.Unauthenticated {
				t.Errorf("unary: %v", err)
			}
			stream, err := client.WatchEvents(t.Context(), &planev1.WatchEventsRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("stream: %v", err)
			}
			if tok != "" && strings.Contains(err.Error(), tok) {
				t.Errorf("the refusal repeats the token: %v", err)
			}
		})
	}
	if _, err := p.client.ListTokens(t.Context(), &planev1.ListTokensRequest{}); err != nil {
		t.Errorf("the right token: %v", err)
	}
	if _, err := New(Config{Token: "short"}, Deps{}); err == nil {
		t.Error("a short token was accepted")
	}
}

func TestTokens(t *testing.T) {
	p := start(t, ledger.Config{})
	resp, err := p.client.CreateToken(t.Context(), &planev1.CreateTokenRequest{ClusterId: "prod", Ttl: durationpb.New(time.Hour), Uses: 3})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jointoken.Parse(resp.GetToken())
	if err != nil || parsed.CAHash != [32]byte(p.ca.Hash()) {
		t.Errorf("%v, %v", parsed.CAHash, err)
	}
	if i := resp.GetInfo(); i.GetClusterId() != "prod" || i.GetUses() != 3 || i.GetExpiresAt().AsTime().Sub(i.GetCreatedAt().AsTime()) != time.Hour {
		t.Errorf("%v", i)
	}
	if _, err := p.client.RevokeToken(t.Context(), &planev1.RevokeTokenRequest{Id: resp.GetInfo().GetId()}); err != nil {
		t.Fatal(err)
	}
	list, err := p.client.ListTokens(t.Context(), &planev1.ListTokensRequest{ClusterId: "prod"})
	if err != nil || len(list.GetTokens()) != 1 || !list.GetTokens()[0].GetRevoked() {
		t.Errorf("%v, %v", list, err)
	}
	for name, tc := range map[string]struct {
		req  *planev1.CreateTokenRequest
		code string
	}{
		"bad cluster":  {&planev1.CreateTokenRequest{ClusterId: "a-b"}, "bad_cluster_id"},
		"negative ttl": {&planev1.CreateTokenRequest{ClusterId: "prod", Ttl: durationpb.New(-time.Hour)}, "bad_duration"},
		"zero ttl":     {&planev1.CreateTokenRequest{ClusterId: "prod", Ttl: durationpb.New(0)}, "bad_duration"},
		"long ttl":     {&planev1.CreateTokenRequest{ClusterId: "prod", Ttl: durationpb.New(1000 * time.Hour)}, "bad_token_ttl"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := p.client.CreateToken(t.Context(), tc.req); codeOf(err) != tc.code {
				t.Errorf("got %v, want %s", err, tc.code)
			}
		})
	}
	if _, err := p.client.RevokeToken(t.Context(), &planev1.RevokeTokenRequest{Id: "t-none"}); codeOf(err) != "no_such_token" {
		t.Errorf("got %v", err)
	}
}

func TestAgents(t *testing.T) {
	p := start(t, ledger.Config{})
	b, a := p.enrol("prod", "b"), p.enrol("alpha", "a")
	p.fleet.connected[b] = true
	list, err := p.client.ListAgents(t.Context(), &planev1.ListAgentsRequest{})
	if err != nil || len(list.GetAgents()) != 2 {
		t.Fatal(list, err)
	}
	first, second := list.GetAgents()[0], list.GetAgents()[1]
	if first.GetId() != a || second.GetId() != b || first.GetConnected() || !second.GetConnected() || second.GetNode().GetHostname() != "host-b" ||
		second.GetVersion() != "1.2.3" || !second.GetManagerConfirmed() || second.GetWarnings()[0].GetCode() != "w" || second.GetEnrolledAt() == nil {
		t.Errorf("%v", list)
	}
	p.kafka.err = errors.New("broker away")
	if _, err := p.client.RemoveAgent(t.Context(), &planev1.RemoveAgentRequest{Id: b}); codeOf(err) != "kafka_unavailable" {
		t.Errorf("got %v", err)
	}
	p.kafka.err = nil
	if _, err := p.client.RemoveAgent(t.Context(), &planev1.RemoveAgentRequest{Id: b}); err != nil {
		t.Errorf("the repetition: %v", err)
	}
	if len(p.kafka.removed) != 2 || p.kafka.removed[1] != "prod/"+b || p.fleet.disconnected[0] != b {
		t.Errorf("removed %v, disconnected %v", p.kafka.removed, p.fleet.disconnected)
	}
	list, err = p.client.ListAgents(t.Context(), &planev1.ListAgentsRequest{ClusterId: "prod"})
	if err != nil || len(list.GetAgents()) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := p.client.RemoveAgent(t.Context(), &planev1.RemoveAgentRequest{Id: "a-none"}); codeOf(err) != "no_such_agent" {
		t.Errorf("got %v", err)
	}
}

func TestAlarmsStandBesideTheManagers(t *testing.T) {
	p := start(t, ledger.Config{})
	manager := p.enrol("prod", "n1")
	worker := p.enrolWorker("prod", manager, "n2")
	p.enrol("test", "n3")
	warning := func(agentID string) string {
		t.Helper()
		list, err := p.client.ListAgents(t.Context(), &planev1.ListAgentsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, a := range list.GetAgents() {
			for _, w := range a.GetWarnings() {
				if a.GetId() == agentID && w.GetCode() == "generations_went_back" && w.GetSince() != nil {
					texts = append(texts, w.GetText())
				} else if a.GetId() != manager && w.GetCode() == "generations_went_back" {
					t.Errorf("agent %s has the warning", a.GetId())
				}
			}
		}
		return strings.Join(texts, "|")
	}
	if got := warning(manager); got != "" {
		t.Errorf("before: %s", got)
	}
	c, err := p.ledger.Command(t.Context(), p.submit(&planev1.SubmitCommandRequest{
		ClusterId: "prod", Command: &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: deploy("shop")},
	}).GetCommandId())
	if err != nil {
		t.Fatal(err)
	}
	p.keep(c.ID, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED})
	for _, stack := range []string{"blog", "shop"} {
		from := ledger.Head{Stack: stack, Generation: 7, Epoch: 2}
		if err := p.ledger.NoteHead(t.Context(), "prod", "swarm-prod", from); err != nil {
			t.Fatal(err)
		}
		if _, err := p.ledger.WentBack(t.Context(), ledger.WentBack{
			ClusterID: "prod", SwarmID: "swarm-prod", Topic: "runner.commands.prod", From: from, To: ledger.Head{Stack: stack, Generation: 3, Epoch: 1},
		}); err != nil {
			t.Fatal(err)
		}
	}
	want := "the Swarm was restored from a backup, or has lost what it knew: stack blog (generation 3, was 7; not_known: deploy it again), stack shop (generation 3, was 7; offered again)"
	if got := warning(manager); got != want {
		t.Errorf("got %s", got)
	}
	if got := warning(worker); got != "" {
		t.Errorf("a worker: %s", got)
	}
}

func TestSubmitFindsTheTarget(t *testing.T) {
	p := start(t, ledger.Config{})
	if _, err := p.client.SubmitCommand(t.Context(), submission(deploy("shop"))); codeOf(err) != "no_cluster" {
		t.Errorf("without clusters: %v", err)
	}
	agent := p.enrol("prod", "n1")
	resp := p.submit(submission(deploy("shop")))
	if resp.GetClusterId() != "prod" || resp.GetGeneration() != 1 || resp.GetExisting() {
		t.Errorf("%v", resp)
	}
	c, err := p.ledger.Command(t.Context(), resp.GetCommandId())
	if err != nil || c.Topic != "runner.commands.prod" || c.Deadline.Sub(c.CreatedAt) != 24*time.Hour {
		t.Errorf("%+v, %v", c, err)
	}
	toAgent := submission(deploy("shop"))
	toAgent.AgentId, toAgent.TimeToLive = agent, durationpb.New(time.Minute)
	resp = p.submit(toAgent)
	c, err = p.ledger.Command(t.Context(), resp.GetCommandId())
	if err != nil || c.Topic != "runner.commands."+agent || c.AgentID != agent || c.ClusterID != "prod" || c.Generation != 2 || c.Deadline.Sub(c.CreatedAt) != time.Minute {
		t.Errorf("%+v, %v", c, err)
	}
	other := p.enrol("test", "n2")
	_, err = p.client.SubmitCommand(t.Context(), submission(deploy("shop")))
	if f := failure.Of(failurepb.FromStatus(err)); f == nil || f.Code != "ambiguous_cluster" || !strings.Contains(f.Hint, "prod, test") {
		t.Errorf("two clusters: %+v", f)
	}
	if err := p.registry.Remove(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*planev1.SubmitCommandRequest)
		code   string
	}{
		"unknown cluster": {func(r *planev1.SubmitCommandRequest) { r.ClusterId = "prd" }, "no_such_cluster"},
		"unknown agent":   {func(r *planev1.SubmitCommandRequest) { r.AgentId = "a-none" }, "no_such_agent"},
		"removed agent":   {func(r *planev1.SubmitCommandRequest) { r.AgentId = other }, "agent_removed"},
		"two targets":     {func(r *planev1.SubmitCommandRequest) { r.AgentId, r.ClusterId = agent, "prod" }, "two_targets"},
	} {
		t.Run(name, func(t *testing.T) {
			req := submission(deploy("shop"))
			tc.change(req)
			if _, err := p.client.SubmitCommand(t.Context(), req); codeOf(err) != tc.code {
				t.Errorf("got %v, want %s", err, tc.code)
			}
		})
	}
}

func TestSubmitIsIdempotentByKey(t *testing.T) {
	p := start(t, ledger.Config{})
	p.enrol("prod", "n1")
	req := submission(deploy("shop"))
	req.IdempotencyKey, req.CorrelationId = "build-7", "trace-1"
	first, second := p.submit(req), p.submit(req)
	if first.GetExisting() || !second.GetExisting() || first.GetCommandId() != second.GetCommandId() || second.GetGeneration() != 1 {
		t.Errorf("%v, %v", first, second)
	}
	if c, err := p.ledger.Command(t.Context(), first.GetCommandId()); err != nil || c.CorrelationID != "trace-1" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestARestartHasADeadlineAndNoGeneration(t *testing.T) {
	p := start(t, ledger.Config{})
	p.enrol("prod", "n1")
	req := &planev1.SubmitCommandRequest{Command: &planev1.SubmitCommandRequest_ServiceRestart{ServiceRestart: &runnerv1.ServiceRestart{Service: "shop_web"}}}
	for name, life := range map[string]*durationpb.Duration{"of its own": durationpb.New(time.Minute), "the default": nil} {
		req.TimeToLive = life
		resp := p.submit(req)
		c, err := p.ledger.Command(t.Context(), resp.GetCommandId())
		want := defaultTimeToLive
		if life != nil {
			want = life.AsDuration()
		}
		if err != nil || resp.GetGeneration() != 0 || c.Deadline.Sub(c.CreatedAt) != want || c.Subject != "shop_web" {
			t.Errorf("%s: %v, %+v, %v", name, resp, c, err)
		}
	}
}

func TestSubmitRefuses(t *testing.T) {
	p := start(t, ledger.Config{})
	p.enrol("prod", "n1")
	bundle := func(change func(*runnerv1.BundleContent)) func(*planev1.SubmitCommandRequest) {
		return func(r *planev1.SubmitCommandRequest) { change(r.GetStackDeploy().GetBundle().GetPlain()) }
	}
	stack := func(name string) func(*planev1.SubmitCommandRequest) {
		return func(r *planev1.SubmitCommandRequest) { r.GetStackDeploy().Stack = name }
	}
	scale := func(service string, replicas uint64) func(*planev1.SubmitCommandRequest) {
		return func(r *planev1.SubmitCommandRequest) {
			r.Command = &planev1.SubmitCommandRequest_ServiceScale{ServiceScale: &runnerv1.ServiceScale{Service: service, Replicas: replicas}}
		}
	}
	for name, tc := range map[string]struct {
		change func(*planev1.SubmitCommandRequest)
		code   string
	}{
		"nothing":             {func(r *planev1.SubmitCommandRequest) { r.Command = nil }, "no_command"},
		"no stack name":       {stack(""), "bad_stack_name"},
		"a slash":             {stack("a/b"), "bad_stack_name"},
		"a leading hyphen":    {stack("-a"), "bad_stack_name"},
		"a long name":         {stack(strings.Repeat("x", 64)), "bad_stack_name"},
		"a line end":          {stack("a\n"), "bad_stack_name"},
		"no service":          {scale("", 1), "bad_service_name"},
		"a long service":      {scale(strings.Repeat("x", 256), 1), "bad_service_name"},
		"a control character": {scale("a\x00b", 1), "bad_service_name"},
		"many replicas":       {scale("a", 100_001), "bad_replicas"},
		"restart of nothing": {func(r *planev1.SubmitCommandRequest) {
			r.Command = &planev1.SubmitCommandRequest_ServiceRestart{ServiceRestart: &runnerv1.ServiceRestart{}}
		}, "bad_service_name"},
		"bad removal": {func(r *planev1.SubmitCommandRequest) {
			r.Command = &planev1.SubmitCommandRequest_StackRemove{StackRemove: &runnerv1.StackRemove{Stack: "a b"}}
		}, "bad_stack_name"},
		"short life":      {func(r *planev1.SubmitCommandRequest) { r.TimeToLive = durationpb.New(time.Millisecond) }, "bad_time_to_live"},
		"long life":       {func(r *planev1.SubmitCommandRequest) { r.TimeToLive = durationpb.New(8 * 24 * time.Hour) }, "bad_time_to_live"},
		"impossible life": {func(r *planev1.SubmitCommandRequest) { r.TimeToLive = &durationpb.Duration{Seconds: 1, Nanos: -1} }, "bad_time_to_live"},
		"long timeout": {func(r *planev1.SubmitCommandRequest) {
			r.GetStackDeploy().Options = &runnerv1.DeployOptions{Timeout: durationpb.New(25 * time.Hour)}
		}, "bad_timeout"},
		"long key":          {func(r *planev1.SubmitCommandRequest) { r.IdempotencyKey = strings.Repeat("x", 129) }, "bad_idempotency_key"},
		"line in key":       {func(r *planev1.SubmitCommandRequest) { r.CorrelationId = "a\nb" }, "bad_correlation_id"},
		"no bundle":         {func(r *planev1.SubmitCommandRequest) { r.GetStackDeploy().Bundle = nil }, "no_bundle"},
		"no compose file":   {bundle(func(b *runnerv1.BundleContent) { b.ComposeFiles = nil }), "bad_bundle"},
		"a missing compose": {bundle(func(b *runnerv1.BundleContent) { b.ComposeFiles = []string{"/x"} }), "bad_bundle"},
		"a relative path":   {bundle(func(b *runnerv1.BundleContent) { b.Files[0].Path = "compose.yml" }), "bad_bundle"},
		"an uncleaned path": {bundle(func(b *runnerv1.BundleContent) { b.WorkingDir = "/app/../etc" }), "bad_bundle"},
		"the same twice":    {bundle(func(b *runnerv1.BundleContent) { b.Files = append(b.Files, b.Files[0]) }), "bad_bundle"},
		"a big variable":    {bundle(func(b *runnerv1.BundleContent) { b.Variables = map[string]string{"A": strings.Repeat("x", 64<<10)} }), "bad_bundle"},
		"many files": {bundle(func(b *runnerv1.BundleContent) {
			b.Files = append(b.Files, make([]*runnerv1.BundleFile, 1000)...)
			for i := range b.Files {
				b.Files[i] = &runnerv1.BundleFile{}
			}
		}), "bad_bundle"},
		"a big file": {bundle(func(b *runnerv1.BundleContent) { b.Files[0].Content = make([]byte, 9<<20) }), "too_large"},
		"sealed to nobody": {func(r *planev1.SubmitCommandRequest) {
			r.GetStackDeploy().Bundle = &runnerv1.Bundle{Content: &runnerv1.Bundle_Sealed{}}
		}, "bad_bundle"},
	} {
		t.Run(name, func(t *testing.T) {
			req := submission(deploy("shop"))
			tc.change(req)
			if _, err := p.client.SubmitCommand(t.Context(), req); codeOf(err) != tc.code || status.Code(err) != codes.InvalidArgument {
				t.Errorf("got %v, want %s", err, tc.code)
			}
		})
	}
	if g, err := p.ledger.Generation(t.Context(), "prod", "shop"); err != nil || g != 0 {
		t.Errorf("a refused command took generation %d, %v", g, err)
	}
}

// read receives n events, or all until the stream ends if n is 0.
func read(t *testing.T, stream grpc.ServerStreamingClient[planev1.EventRecord], n int) (positions []uint64) {
	t.Helper()
	for n == 0 || len(positions) < n {
		e, err := stream.Recv()
		if err != nil {
			if n == 0 && errors.Is(err, io.EOF) {
				return positions
			}
			t.Fatalf("after %v: %v", positions, err)
		}
		positions = append(positions, e.GetPosition())
	}
	return positions
}

func (p *plane) watch(req *planev1.WatchEventsRequest) grpc.ServerStreamingClient[planev1.EventRecord] {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	p.t.Cleanup(cancel)
	stream, err := p.client.WatchEvents(ctx, req)
	if err != nil {
		p.t.Fatal(err)
	}
	return stream
}

func TestWatchOfACommandEndsWithItsOutcome(t *testing.T) {
	p := start(t, ledger.Config{})
	p.enrol("prod", "n1")
	id := p.submit(submission(deploy("shop"))).GetCommandId()
	p.keep(id, &runnerv1.CommandReceived{})
	p.keep("another", &runnerv1.CommandReceived{})
	stream := p.watch(&planev1.WatchEventsRequest{CommandId: id, Follow: true})
	if got := read(t, stream, 1); got[0] != 1 {
		t.Errorf("history %v", got)
	}
	p.keep(id, &runnerv1.CommandProgress{Sequence: 1}, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED})
	if got := read(t, stream, 0); len(got) != 2 || got[0] != 3 || got[1] != 4 {
		t.Errorf("live %v", got)
	}
	for name, follow := range map[string]bool{"follow": true, "no follow": false} {
		if got := read(t, p.watch(&planev1.WatchEventsRequest{CommandId: id, Follow: follow}), 0); len(got) != 3 {
			t.Errorf("%s, after the end: %v", name, got)
		}
	}
	if got := read(t, p.watch(&planev1.WatchEventsRequest{CommandId: id, Follow: true, After: 4}), 0); len(got) != 0 {
		t.Errorf("after its outcome: %v", got)
	}
	_, err := p.watch(&planev1.WatchEventsRequest{CommandId: "nothing", Follow: true}).Recv()
	if codeOf(err) != "no_such_command" {
		t.Errorf("got %v", err)
	}
}

func TestWatchHasNeitherGapNorDuplicate(t *testing.T) {
	p := start(t, ledger.Config{})
	const total = 250
	p.keep("c", &runnerv1.CommandReceived{})
	streams := []grpc.ServerStreamingClient[planev1.EventRecord]{
		p.watch(&planev1.WatchEventsRequest{CommandId: "c", Follow: true}),
		p.watch(&planev1.WatchEventsRequest{ClusterId: "prod", Follow: true, After: 1}),
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := range total - 1 {
			p.keep("c", &runnerv1.CommandProgress{Sequence: uint64(i)})
		}
	}()
	for i, first := range []uint64{1, 2} {
		want := first
		for want <= total {
			for _, got := range read(t, streams[i], 1) {
				if got != want {
					t.Fatalf("stream %d: position %d, want %d", i, got, want)
				}
				want++
			}
		}
	}
	<-written
}

func TestWatchBegins(t *testing.T) {
	p := start(t, ledger.Config{})
	p.keep("c", &runnerv1.CommandReceived{}, &runnerv1.CommandProgress{})
	if got := read(t, p.watch(&planev1.WatchEventsRequest{}), 0); len(got) != 2 {
		t.Errorf("all: %v", got)
	}
	if got := read(t, p.watch(&planev1.WatchEventsRequest{After: 1}), 0); len(got) != 1 || got[0] != 2 {
		t.Errorf("after 1: %v", got)
	}
	if got := read(t, p.watch(&planev1.WatchEventsRequest{ClusterId: "other"}), 0); len(got) != 0 {
		t.Errorf("another cluster: %v", got)
	}
	// With follow and no position a stream begins now. When "now" is, its own header tells no one; so events are written until the first arrives.
	live := p.watch(&planev1.WatchEventsRequest{Follow: true})
	first := make(chan uint64, 1)
	go func() {
		e, err := live.Recv()
		if err != nil {
			t.Error(err)
		}
		first <- e.GetPosition()
	}()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		p.keep("c", &runnerv1.CommandProgress{})
		select {
		case position := <-first:
			if position < 3 {
				t.Errorf("begins with %d, which was there before", position)
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Error("nothing arrived")
}

func TestWatchTellsOfForgottenEvents(t *testing.T) {
	p := start(t, ledger.Config{MaxEvents: 2})
	p.keep("c", &runnerv1.CommandReceived{}, &runnerv1.CommandProgress{}, &runnerv1.CommandProgress{}, &runnerv1.CommandProgress{})
	if err := p.ledger.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, p.watch(&planev1.WatchEventsRequest{}), 0); len(got) != 2 || got[0] != 3 {
		t.Errorf("from the beginning: %v", got)
	}
	_, err := p.watch(&planev1.WatchEventsRequest{After: 1}).Recv()
	if codeOf(err) != "events_forgotten" {
		t.Errorf("from a forgotten position: %v", err)
	}
}

func TestWatchTellsOfEventsThatOneClusterHasLost(t *testing.T) {
	p := start(t, ledger.Config{MaxClusterEvents: 2})
	p.keepOf("blog", "c", &runnerv1.CommandReceived{}) // position 1
	p.keep("c", &runnerv1.CommandReceived{}, &runnerv1.CommandProgress{}, &runnerv1.CommandProgress{}, &runnerv1.CommandProgress{})
	if err := p.ledger.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, p.watch(&planev1.WatchEventsRequest{}), 0); !slices.Equal(got, []uint64{1, 4, 5}) {
		t.Errorf("from the beginning: %v", got)
	}
	if got := read(t, p.watch(&planev1.WatchEventsRequest{After: 3}), 0); !slices.Equal(got, []uint64{4, 5}) {
		t.Errorf("from behind what was forgotten: %v", got)
	}
	for name, req := range map[string]*planev1.WatchEventsRequest{
		"all clusters":               {After: 1},
		"the cluster that lost some": {After: 1, ClusterId: "prod"},
	} {
		if _, err := p.watch(req).Recv(); codeOf(err) != "events_forgotten" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWatchersAreBounded(t *testing.T) {
	p := start(t, ledger.Config{})
	p.keep("c", &runnerv1.CommandReceived{})
	for range maxWatchers {
		read(t, p.watch(&planev1.WatchEventsRequest{CommandId: "c", Follow: true}), 1)
	}
	_, err := p.watch(&planev1.WatchEventsRequest{CommandId: "c", Follow: true}).Recv()
	if codeOf(err) != "too_many_watchers" {
		t.Errorf("got %v", err)
	}
}

func TestWatchersEndWhenThePlaneStops(t *testing.T) {
	p := start(t, ledger.Config{})
	p.keep("c", &runnerv1.CommandReceived{})
	stream := p.watch(&planev1.WatchEventsRequest{CommandId: "c", Follow: true})
	read(t, stream, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.server.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); codeOf(err) != "plane_shutdown" {
		t.Errorf("got %v", err)
	}
}

func TestSendRequest(t *testing.T) {
	p := start(t, ledger.Config{})
	agent := p.enrol("prod", "n1")
	p.fleet.connected[agent] = true
	p.fleet.manager = func(string) (string, error) { return "a-manager", nil }
	var asked string
	p.fleet.request = func(agentID string, req *runnerv1.Request) (*runnerv1.Response, error) {
		asked = agentID
		if req.GetId() != "" {
			t.Errorf("the caller chose id %s", req.GetId())
		}
		if req.GetContainerStop() != nil {
			return nil, failure.New(failure.Invalid, "no_such_container", "x", "no such container: x")
		}
		return &runnerv1.Response{Id: "1", Warnings: []string{"careful"}}, nil
	}
	ping := &runnerv1.Request{Id: "mine", Command: &runnerv1.Request_Ping{Ping: &runnerv1.Ping{}}}
	for name, tc := range map[string]struct {
		req   *planev1.SendRequestRequest
		asked string
		code  string
	}{
		"to an agent":         {&planev1.SendRequestRequest{AgentId: agent, Request: ping}, agent, ""},
		"to the only cluster": {&planev1.SendRequestRequest{Request: ping}, "a-manager", ""},
		"to a cluster":        {&planev1.SendRequestRequest{ClusterId: "prod", Request: ping}, "a-manager", ""},
		"nothing":             {&planev1.SendRequestRequest{AgentId: agent, Request: &runnerv1.Request{}}, "", "no_command"},
		"no request":          {&planev1.SendRequestRequest{AgentId: agent}, "", "no_command"},
		"another cluster":     {&planev1.SendRequestRequest{AgentId: agent, ClusterId: "x", Request: ping}, "", "wrong_cluster"},
		"no such agent":       {&planev1.SendRequestRequest{AgentId: "a-x", Request: ping}, "", "no_such_agent"},
		"a failure":           {&planev1.SendRequestRequest{AgentId: agent, Request: &runnerv1.Request{Command: &runnerv1.Request_ContainerStop{}}}, agent, "no_such_container"},
		"a bad timeout": {&planev1.SendRequestRequest{AgentId: agent, Request: &runnerv1.Request{
			Timeout: durationpb.New(time.Hour), Command: &runnerv1.Request_Ping{},
		}}, "", "bad_timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			asked = ""
			resp, err := p.client.SendRequest(t.Context(), tc.req)
			if codeOf(err) != tc.code || asked != tc.asked {
				t.Errorf("asked %q: %v", asked, err)
			}
			if err == nil && resp.GetWarnings()[0] != "careful" {
				t.Errorf("%v", resp)
			}
		})
	}
	p.fleet.connected[agent] = false
	if _, err := p.client.SendRequest(t.Context(), &planev1.SendRequestRequest{AgentId: agent, Request: ping}); codeOf(err) != "agent_not_connected" {
		t.Errorf("got %v", err)
	}
}

func TestStreamLogs(t *testing.T) {
	p := start(t, ledger.Config{})
	agent := p.enrol("prod", "n1")
	p.fleet.connected[agent] = true
	p.fleet.logs = func(_ string, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
		if err := send(&runnerv1.LogBatch{Lines: []*runnerv1.LogLine{{Text: []byte(open.GetService() + "\n")}}}); err != nil {
			return err
		}
		return failure.New(failure.Invalid, "no_such_service", open.GetService(), "no such service")
	}
	stream, err := p.client.StreamLogs(t.Context(), &planev1.StreamLogsRequest{AgentId: agent, Open: &runnerv1.OpenLogs{Target: &runnerv1.OpenLogs_Service{Service: "shop_web"}}})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := stream.Recv()
	if err != nil || string(batch.GetLines()[0].GetText()) != "shop_web\n" {
		t.Errorf("%v, %v", batch, err)
	}
	if _, err := stream.Recv(); codeOf(err) != "no_such_service" {
		t.Errorf("got %v", err)
	}
	stream, err = p.client.StreamLogs(t.Context(), &planev1.StreamLogsRequest{AgentId: agent})
	if err == nil {
		_, err = stream.Recv()
	}
	if codeOf(err) != "no_log_target" {
		t.Errorf("got %v", err)
	}
}

func TestGetMetrics(t *testing.T) {
	p := start(t, ledger.Config{})
	p.fleet.metrics = map[string]*runnerv1.MetricsBatch{"a-1": {Host: &runnerv1.HostSample{Cpus: 2}}, "a-2": {}}
	for id, want := range map[string]int{"": 2, "a-1": 1, "a-3": 0} {
		resp, err := p.client.GetMetrics(t.Context(), &planev1.GetMetricsRequest{AgentId: id})
		if err != nil || len(resp.GetBatches()) != want {
			t.Errorf("%q: %v, %v", id, resp, err)
		}
	}
}
