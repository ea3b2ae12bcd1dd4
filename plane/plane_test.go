package plane_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/agent/identity"
	"github.com/axion/runner-agent/plane"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/deadletter"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
	"github.com/axion/runner-agent/proto/operatorcontext"
	"github.com/axion/runner-agent/test/logbuffer"
	"github.com/axion/runner-agent/test/loopback"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// world is a plane in a data directory that outlives its restarts.
type world struct {
	t    *testing.T
	cfg  plane.Config
	log  *logbuffer.Buffer
	stop func()

	ahead atomic.Int64 // nanoseconds by which the plane's clock is ahead
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, log: &logbuffer.Buffer{}, cfg: plane.Config{
		DataDir: filepath.Join(t.TempDir(), "data"), Listen: loopback.FreeAddress(t), KafkaListen: loopback.FreeAddress(t), HeartbeatInterval: time.Second,
	}}
	t.Cleanup(func() {
		if w.stop != nil {
			w.stop()
		}
		if t.Failed() {
			t.Log(w.log.String())
		}
	})
	return w
}

// start runs the plane until stop is called or the test ends, and waits until it is ready.
func (w *world) start() {
	w.t.Helper()
	p, err := plane.New(w.cfg, slog.New(slog.NewTextHandler(w.log, nil)), func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) })
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	w.stop = func() {
		w.stop = nil
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	}
	select {
	case <-p.Ready():
	case err := <-done:
		w.t.Fatalf("Run: %v", err)
	case <-time.After(patience):
		w.t.Fatalf("the plane is not ready: %s", w.log)
	}
}

// operator connects with the operator context that the plane wrote.
func (w *world) operator() planev1.OperatorClient {
	w.t.Helper()
	c, err := operatorcontext.Load(plane.ContextPath(w.cfg.DataDir))
	if err != nil {
		w.t.Fatal(err)
	}
	config, err := c.ClientTLS()
	if err != nil {
		w.t.Fatal(err)
	}
	conn, err := grpc.NewClient(c.Address, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithPerRPCCredentials(c.Credentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return planev1.NewOperatorClient(conn)
}

// noWarnings takes no warnings.
type noWarnings struct{}

func (noWarnings) Set(string, runnerv1.HealthSeverity, string, string) {}

func (noWarnings) Clear(string) {}

func facts(node string) *runnerv1.NodeFacts {
	return &runnerv1.NodeFacts{NodeId: node, Hostname: "host-" + node, Role: runnerv1.NodeRole_NODE_ROLE_MANAGER, SwarmClusterId: "swarm1"}
}

// enrol makes a join token for the cluster and an agent with a real identity.
func (w *world) enrol(cluster, node string) *identity.Identity {
	w.t.Helper()
	resp, err := w.operator().CreateToken(w.t.Context(), &planev1.CreateTokenRequest{ClusterId: cluster})
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := identity.New(identity.Config{
		StateDir: w.t.TempDir(), PlaneAddress: w.cfg.Listen, AgentVersion: "test",
		Token: func(context.Context) (string, error) { return resp.GetToken(), nil },
	}, identity.Deps{
		Node: func(context.Context) (*runnerv1.NodeFacts, error) { return facts(node), nil },
		Log:  slog.New(slog.DiscardHandler), Warn: noWarnings{},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- id.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	select {
	case <-id.Ready():
	case <-time.After(patience):
		w.t.Fatal("the agent did not enrol")
	}
	return id
}

// kafka connects with the agent's own certificate and credentials.
func (w *world) kafka(id *identity.Identity, topics ...string) *kgo.Client {
	w.t.Helper()
	access := id.Kafka()
	sasl := access.GetSasl()
	client, err := kgo.NewClient(kgo.SeedBrokers(access.GetBrokers()...), kgo.DialTLSConfig(id.KafkaTLS()), kgo.ConsumeTopics(topics...),
		kgo.SASL(scram.Auth{User: sasl.GetUsername(), Pass: sasl.GetPassword()}.AsSha512Mechanism()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(client.Close)
	return client
}

// receive returns the next command of the topic.
func (w *world) receive(client *kgo.Client) (envelope.Envelope, proto.Message) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for {
		fetches := client.PollRecords(ctx, 1)
		if ctx.Err() != nil {
			w.t.Fatalf("no command arrived: %v", fetches.Err())
		}
		for _, r := range fetches.Records() {
			var headers []envelope.Header
			for _, h := range r.Headers {
				headers = append(headers, envelope.Header{Key: h.Key, Value: h.Value})
			}
			e, err := envelope.Parse(headers, r.Value, 0)
			if err != nil {
				w.t.Fatal(err)
			}
			msg, err := e.Message()
			if err != nil {
				w.t.Fatal(err)
			}
			return e, msg
		}
	}
}

// publish writes an event about a command, signed with the agent's key.
func (w *world) publish(client *kgo.Client, id *identity.Identity, command envelope.Envelope, msg proto.Message) {
	w.t.Helper()
	e, err := envelope.New("/agents/"+id.AgentID(), msg, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	e.CausationID, e.CorrelationID, e.Subject = command.ID, command.CorrelationID, command.Subject
	if _, ok := msg.(*runnerv1.CommandOutcome); ok {
		e.ID = envelope.OutcomeID(command.ID)
	}
	if err := e.Sign(id.Signer()); err != nil {
		w.t.Fatal(err)
	}
	r := &kgo.Record{Topic: id.Kafka().GetEventsTopic(), Key: []byte(id.ClusterID()), Value: e.Data}
	for _, h := range e.Headers() {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if err := client.ProduceSync(ctx, r).FirstErr(); err != nil {
		w.t.Fatal(err)
	}
}

func deployment(stack, secret string) *planev1.SubmitCommandRequest {
	return &planev1.SubmitCommandRequest{CorrelationId: "corr-1", Command: &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: &runnerv1.StackDeploy{
		Stack: stack, Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: &runnerv1.BundleContent{
			WorkingDir: "/app", ComposeFiles: []string{"/app/compose.yml"}, Files: []*runnerv1.BundleFile{{Path: "/app/compose.yml", Content: []byte("services: {}")}},
			RegistryCredentials: []*runnerv1.RegistryCredential{{Server: "registry.example.com", Username: "u", Password: secret}},
		}}},
	}}}
}

// watch returns all events of a command until its stream ends.
func (w *world) watch(client planev1.OperatorClient, commandID string) []*planev1.EventRecord {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	stream, err := client.WatchEvents(ctx, &planev1.WatchEventsRequest{CommandId: commandID, Follow: true})
	if err != nil {
		w.t.Fatal(err)
	}
	var events []*planev1.EventRecord
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return events
		}
		if err != nil {
			w.t.Fatalf("after %d events: %v", len(events), err)
		}
		events = append(events, e)
	}
}

// eventually waits until the condition holds.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("in vain: %s", what)
		}
	}
}

func succeeded() *runnerv1.CommandOutcome {
	return &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, Stack: "shop"}
}

func TestFromTokenToOutcome(t *testing.T) {
	w := newWorld(t)
	w.start()
	operator := w.operator()
	id := w.enrol("prod", "n1")
	const secret = "hunter2-registry-password"
	submitted, err := operator.SubmitCommand(t.Context(), deployment("shop", secret))
	if err != nil {
		t.Fatal(err)
	}
	client := w.kafka(id, id.Kafka().GetClusterTopic())
	command, msg := w.receive(client)
	deploy, ok := msg.(*runnerv1.StackDeploy)
	if !ok || command.ID != submitted.GetCommandId() || command.Generation != 1 || deploy.GetGeneration() != 1 || command.CorrelationID != "corr-1" {
		t.Fatalf("%+v, %v", command, msg)
	}
	w.publish(client, id, command, &runnerv1.CommandReceived{Type: command.Type, Attempt: 1})
	w.publish(client, id, command, succeeded())
	events := w.watch(operator, command.ID)
	if len(events) != 2 || events[0].GetType() != "axion.runner.v1.CommandReceived" || events[1].GetType() != "axion.runner.v1.CommandOutcome" ||
		events[1].GetAgentId() != id.AgentID() || events[1].GetClusterId() != "prod" || events[1].GetCorrelationId() != "corr-1" {
		t.Errorf("%v", events)
	}
	agents, err := operator.ListAgents(t.Context(), &planev1.ListAgentsRequest{})
	if err != nil || len(agents.GetAgents()) != 1 || agents.GetAgents()[0].GetConnected() || !agents.GetAgents()[0].GetManagerConfirmed() {
		t.Errorf("%v, %v", agents, err)
	}
	if strings.Contains(w.log.String(), secret) {
		t.Error("the log holds the registry's password")
	}
}

func TestARestartInTheMiddleLosesNothing(t *testing.T) {
	w := newWorld(t)
	w.start()
	id := w.enrol("prod", "n1")
	first, err := w.operator().SubmitCommand(t.Context(), deployment("shop", "x"))
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(plane.ContextPath(w.cfg.DataDir))
	if err != nil {
		t.Fatal(err)
	}
	client := w.kafka(id, id.Kafka().GetClusterTopic())
	command, _ := w.receive(client)
	w.publish(client, id, command, &runnerv1.CommandReceived{Attempt: 1})

	w.stop()
	w.start()

	after, err := os.ReadFile(plane.ContextPath(w.cfg.DataDir))
	if err != nil || string(after) != string(before) {
		t.Errorf("the operator context has changed: %v", err)
	}
	operator := w.operator()
	second, err := operator.SubmitCommand(t.Context(), deployment("shop", "x"))
	if err != nil || second.GetGeneration() != 2 {
		t.Fatalf("%v, %v", second, err)
	}
	next, _ := w.receive(client) // the same client, over the restart
	if next.ID != second.GetCommandId() {
		t.Errorf("command %s arrived, want %s: one that was sent is not sent again at once", next.ID, second.GetCommandId())
	}
	w.publish(client, id, command, succeeded())
	w.publish(client, id, next, succeeded())
	if events := w.watch(operator, first.GetCommandId()); len(events) != 2 {
		t.Errorf("%d events of the first command, want the one before and the one after the restart: %v", len(events), events)
	}
	if events := w.watch(operator, second.GetCommandId()); len(events) != 1 {
		t.Errorf("%v", events)
	}
}

func TestADeadLetterIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.start()
	operator, id := w.operator(), w.enrol("prod", "n1")
	client := w.kafka(id, id.Kafka().GetAgentTopic())
	original, err := envelope.New("/people/me", &runnerv1.ServiceScale{Service: "shop_web", Replicas: 2}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	give := func(agentID string) {
		r := &kgo.Record{Topic: id.Kafka().GetDlqTopic(), Key: []byte("shop"), Value: original.Data}
		for _, h := range (deadletter.Notice{AgentID: agentID, Topic: id.Kafka().GetAgentTopic(), Code: "unknown_type"}).Headers(original.Headers()) {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
		}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	give(id.AgentID())
	give("a-0000000000000000")
	var letters []*planev1.DeadLetter
	for deadline := time.Now().Add(patience); len(letters) < 2; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("got %v", letters)
		}
		list, err := operator.ListDeadLetters(t.Context(), &planev1.ListDeadLettersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		letters = list.GetLetters()
	}
	forged, honest := letters[0], letters[1]
	if forged.GetVerified() || !honest.GetVerified() || honest.GetClusterId() != "prod" || honest.GetAgentId() != id.AgentID() {
		t.Errorf("got %v", letters)
	}
	if _, err := operator.ReplayDeadLetter(t.Context(), &planev1.ReplayDeadLetterRequest{Id: honest.GetId()}); err != nil {
		t.Fatal(err)
	}
	got, msg := w.receive(client)
	if got.ID != original.ID || msg.(*runnerv1.ServiceScale).GetReplicas() != 2 {
		t.Errorf("got %+v", got)
	}
	if _, err := operator.RemoveAgent(t.Context(), &planev1.RemoveAgentRequest{Id: id.AgentID()}); err != nil {
		t.Fatal(err)
	}
	_, err = operator.ReplayDeadLetter(t.Context(), &planev1.ReplayDeadLetterRequest{Id: forged.GetId(), AllowUnverified: true})
	if f := failure.Of(failurepb.FromStatus(err)); f == nil || f.Code != "no_command_topic" {
		t.Errorf("to the topic of an agent that was removed: %v", err)
	}
}

func TestTheLargestBundleArrives(t *testing.T) {
	w := newWorld(t)
	w.start()
	id := w.enrol("prod", "n1")
	content := make([]byte, envelope.DefaultMaxData-4096)
	_, _ = rand.Read(content) // so that it cannot be compressed
	req := deployment("shop", "x")
	req.GetStackDeploy().GetBundle().GetPlain().Files[0].Content = content
	if _, err := w.operator().SubmitCommand(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	_, msg := w.receive(w.kafka(id, id.Kafka().GetClusterTopic()))
	if got := msg.(*runnerv1.StackDeploy).GetBundle().GetPlain().GetFiles()[0].GetContent(); !bytes.Equal(got, content) {
		t.Errorf("%d bytes arrived, or others than were sent", len(got))
	}
}

func TestWhoMayCallWhat(t *testing.T) {
	w := newWorld(t)
	w.start()
	id := w.enrol("prod", "n1")
	local, err := plane.LocalTLS(w.cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(c credentials.TransportCredentials) *grpc.ClientConn {
		conn, err := grpc.NewClient(w.cfg.Listen, grpc.WithTransportCredentials(c))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	nobody, agent := dial(credentials.NewTLS(local)), dial(credentials.NewTLS(id.PlaneTLS()))
	for name, conn := range map[string]*grpc.ClientConn{"nobody": nobody, "an agent": agent} {
		if _, err := planev1.NewOperatorClient(conn).ListTokens(t.Context(), &planev1.ListTokensRequest{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s calls Operator: %v", name, err)
		}
	}
	hello := &runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Hello{Hello: &runnerv1.Hello{
		AgentVersion: "test", Node: facts("n1"), InstanceId: "0123456789abcdef", StartedAt: timestamppb.Now(),
	}}}
	connect := func(conn *grpc.ClientConn) (*runnerv1.PlaneMessage, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		t.Cleanup(cancel)
		stream, err := runnerv1.NewRunnerClient(conn).Connect(ctx)
		if err != nil {
			return nil, err
		}
		if err := stream.Send(hello); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		return stream.Recv()
	}
	if _, err := connect(nobody); status.Code(err) != codes.PermissionDenied {
		t.Errorf("nobody calls Runner: %v", err)
	}
	welcome, err := connect(agent)
	if err != nil || !welcome.GetWelcome().GetClusterTopicAllowed() {
		t.Fatalf("%v, %v", welcome, err)
	}
	operator := w.operator()
	if _, err := operator.RemoveAgent(t.Context(), &planev1.RemoveAgentRequest{Id: id.AgentID()}); err != nil {
		t.Fatal(err)
	}
	_, err = connect(agent)
	if f := failure.Of(failurepb.FromStatus(err)); f == nil || f.Class != failure.Denied {
		t.Errorf("a removed agent calls Runner: %v", err)
	}
	_, err = operator.SubmitCommand(t.Context(), &planev1.SubmitCommandRequest{AgentId: id.AgentID(), Command: deployment("shop", "x").GetCommand()})
	if f := failure.Of(failurepb.FromStatus(err)); f == nil || f.Code != "agent_removed" {
		t.Errorf("a command for a removed agent: %v", err)
	}
}

// TestADeadAgentIsEvicted breaks an agent's stream without a goodbye and sees that the member that its last heartbeat named is taken out of the group.
func TestADeadAgentIsEvicted(t *testing.T) {
	w := newWorld(t)
	w.start()
	id := w.enrol("prod", "n1")
	access := id.Kafka()
	sasl := access.GetSasl()
	member, err := kgo.NewClient(kgo.SeedBrokers(access.GetBrokers()...), kgo.DialTLSConfig(id.KafkaTLS()), kgo.HeartbeatInterval(100*time.Millisecond),
		kgo.ConsumeTopics(access.GetClusterTopic()), kgo.ConsumerGroup(access.GetClusterGroup()), kgo.DisableAutoCommit(),
		kgo.SASL(scram.Auth{User: sasl.GetUsername(), Pass: sasl.GetPassword()}.AsSha512Mechanism()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(member.Close)
	memberID := func() string { id, _ := member.GroupMetadata(); return id }
	w.eventually("it is a member", func() bool { return memberID() != "" })
	former := memberID()

	// connect tells of the membership and returns how to end the connection.
	connect := func() (stream grpc.BidiStreamingClient[runnerv1.AgentMessage, runnerv1.PlaneMessage], end func()) {
		conn, err := grpc.NewClient(w.cfg.Listen, grpc.WithTransportCredentials(credentials.NewTLS(id.PlaneTLS())))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if stream, err = runnerv1.NewRunnerClient(conn).Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, m := range []*runnerv1.AgentMessage{
			{Message: &runnerv1.AgentMessage_Hello{Hello: &runnerv1.Hello{AgentVersion: "test", Node: facts("n1"), InstanceId: "0123456789abcdef"}}},
			{Message: &runnerv1.AgentMessage_Heartbeat{Heartbeat: &runnerv1.Heartbeat{
				Sequence: 1, Members: []*runnerv1.GroupMember{{Group: access.GetClusterGroup(), MemberId: memberID()}},
			}}},
		} {
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		return stream, func() { _ = conn.Close() }
	}
	stream, end := connect()
	if err := stream.Send(&runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Goodbye{Goodbye: &runnerv1.Goodbye{}}}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the goodbye is heard", func() bool { return strings.Contains(w.log.String(), "session closed by the agent") })
	end()
	_, end = connect()
	end()
	w.eventually("the member is evicted and, because it lives, joins again", func() bool { return memberID() != "" && memberID() != former })
	if got := strings.Count(w.log.String(), "evicted a member from its group"); got != 1 {
		t.Errorf("%d evictions; a goodbye is no reason for one", got)
	}
}

func TestHealthCheck(t *testing.T) {
	w := newWorld(t)
	if err := plane.Check(t.Context(), w.cfg.DataDir); failure.Of(err) == nil || failure.Of(err).Code != "no_plane" {
		t.Errorf("before the first start: %v", err)
	}
	w.start()
	if err := plane.Check(t.Context(), w.cfg.DataDir); err != nil {
		t.Errorf("running: %v", err)
	}
	w.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := plane.Check(ctx, w.cfg.DataDir); err == nil {
		t.Error("stopped: no error")
	}
}

func TestOneDataDirectoryOnePlane(t *testing.T) {
	w := newWorld(t)
	w.start()
	cfg := w.cfg
	cfg.Listen, cfg.KafkaListen = loopback.FreeAddress(t), loopback.FreeAddress(t)
	p, err := plane.New(cfg, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another plane") {
		t.Errorf("got %v", err)
	}
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	w := newWorld(t)
	w.start()
	for _, name := range []string{"operator.toml", "kafka.secret", "plane.db", "plane.db-wal", filepath.Join("ca", "ca.key")} {
		info, err := os.Stat(filepath.Join(w.cfg.DataDir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	info, err := os.Stat(w.cfg.DataDir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v, %v", info.Mode(), err)
	}
}

func TestConfigRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*plane.Config)
		word   string
	}{
		"no data directory": {func(c *plane.Config) { c.DataDir = "" }, "data directory"},
		"no port":           {func(c *plane.Config) { c.Listen = "127.0.0.1" }, "listen"},
		"no Kafka port":     {func(c *plane.Config) { c.KafkaListen = "x" }, "kafka-listen"},
		"bad broker":        {func(c *plane.Config) { c.KafkaBrokers = []string{"b1"} }, "kafka-brokers"},
		"advertised port":   {func(c *plane.Config) { c.Advertise = []string{"plane.example.com:9443"} }, "advertise"},
		"no name":           {func(c *plane.Config) { c.Advertise = []string{""} }, "advertise"},
		"SASL for nothing":  {func(c *plane.Config) { c.KafkaSASL = &runnerv1.SaslCredentials{Username: "u", Password: "p"} }, "kafka-brokers"},
		"ACLs of nothing":   {func(c *plane.Config) { c.KafkaNoACLs = true }, "kafka-brokers"},
		"SASL without user": {func(c *plane.Config) {
			c.KafkaBrokers, c.KafkaSASL = []string{"b:9093"}, &runnerv1.SaslCredentials{Password: "p"}
		}, "kafka-sasl"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := plane.Config{DataDir: t.TempDir()}
			tc.change(&cfg)
			if _, err := plane.New(cfg, slog.New(slog.DiscardHandler), time.Now); err == nil || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestLocalAddress(t *testing.T) {
	for listening, want := range map[string]string{
		"0.0.0.0:9443\n": "127.0.0.1:9443", ":9443": "127.0.0.1:9443", "[::]:9443": "127.0.0.1:9443", "10.0.0.1:9443": "10.0.0.1:9443", "9443": "", "": "",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "address"), []byte(listening), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := plane.LocalAddress(dir)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", listening, got, err)
		}
	}
}
