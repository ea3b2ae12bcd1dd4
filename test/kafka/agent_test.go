package kafka_test

import (
	"cmp"
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/agent/health"
	"github.com/axion/runner-agent/agent/identity"
	"github.com/axion/runner-agent/agent/journal"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

// runner is the Kafka side of an agent: real identity, journal, producer, publisher and consumers. Its commands do nothing but succeed.
type runner struct {
	t        *testing.T
	id       *identity.Identity
	access   *runnerv1.KafkaAccess
	warnings *health.Tracker
	producer *bus.Producer
	commands *commands
}

// maxMessageBytes is the largest command that an agent can be configured to read.
const maxMessageBytes = 12 << 20

// enrol makes an identity with a join token of that cluster. The first manager of a cluster may read the cluster's topic.
func (s *site) enrol(cluster, node string) *runner {
	s.t.Helper()
	token := s.token(cluster)
	r := &runner{t: s.t, warnings: health.New(time.Now)}
	var err error
	r.id, err = identity.New(identity.Config{
		StateDir: s.t.TempDir(), PlaneAddress: s.cfg.Listen, AgentVersion: "test",
		Token: func(context.Context) (string, error) { return token, nil },
	}, identity.Deps{
		Node: func(context.Context) (*runnerv1.NodeFacts, error) {
			return &runnerv1.NodeFacts{NodeId: node, Hostname: "host-" + node, Role: runnerv1.NodeRole_NODE_ROLE_MANAGER, SwarmClusterId: cmp.Or(s.swarmID, "swarm-"+cluster)}, nil
		},
		Log: slog.New(slog.DiscardHandler), Warn: r.warnings,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	r.background(r.id.Run)
	select {
	case <-r.id.Ready():
	case <-time.After(patience):
		s.t.Fatal("the agent did not enrol")
	}
	r.access = r.id.Kafka()
	return r
}

// background runs f until the test ends.
func (r *runner) background(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
}

func (r *runner) client(name string) bus.Config {
	return bus.Config{Name: name, Brokers: r.access.GetBrokers(), TLS: r.id.KafkaTLS(), SASL: r.access.GetSasl(), ClientID: "axion-agent/" + r.id.AgentID()}
}

// start starts what an agent does once it has an identity.
func (r *runner) start() {
	r.t.Helper()
	dir := r.t.TempDir()
	store, err := journal.Open(filepath.Join(dir, "journal.db"), journal.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = store.Close() })
	topics := []string{r.access.GetEventsTopic(), r.access.GetDlqTopic(), r.access.GetClusterTopic()}
	if r.producer, err = bus.NewProducer(bus.ProducerConfig{Config: r.client("producer"), Topics: topics}, bus.ProducerDeps{Warn: r.warnings}); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.producer.Close)
	publisher, err := bus.NewPublisher(bus.PublisherConfig{EventsTopic: r.access.GetEventsTopic()}, bus.PublisherDeps{
		Outbox: store, Producer: r.producer, Warn: r.warnings,
		Sign: func(e *envelope.Envelope) error { return e.Sign(r.id.Signer()) },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.background(publisher.Run)
	r.commands = &commands{runner: r, journal: store, seen: map[string][]*runnerv1.StackDeploy{}}
	r.t.Cleanup(r.commands.wg.Wait)
	r.consume("commands", r.access.GetAgentTopic(), r.access.GetAgentGroup(), r.commands)
	r.consume("cluster", r.access.GetClusterTopic(), r.access.GetClusterGroup(), r.commands)
}

// consume reads a topic until the test ends.
func (r *runner) consume(name, topic, group string, handler bus.Handler) {
	r.t.Helper()
	c, err := bus.NewConsumer(bus.ConsumerConfig{Config: r.client(name), Topic: topic, Group: group}, bus.ConsumerDeps{Handler: handler, Warn: r.warnings})
	if err != nil {
		r.t.Fatal(err)
	}
	r.background(c.Run)
}

// warned says whether there is a health warning of that code.
func (r *runner) warned(code string) bool {
	return slices.ContainsFunc(r.warnings.Warnings(), func(w *runnerv1.HealthWarning) bool { return w.GetCode() == code })
}

// kafka connects with another client library and the agent's own certificate and credentials: what an attacker who has them could do.
func (r *runner) kafka(opts ...kgo.Opt) *kgo.Client {
	r.t.Helper()
	opts = append(opts, kgo.SeedBrokers(r.access.GetBrokers()...), kgo.DialTLSConfig(r.id.KafkaTLS()), kgo.RecordDeliveryTimeout(patience))
	if s := r.access.GetSasl(); s != nil {
		opts = append(opts, kgo.SASL(scram.Auth{User: s.GetUsername(), Pass: s.GetPassword()}.AsSha512Mechanism()))
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(client.Close)
	return client
}

// commands takes commands as an agent does: one of the agent's topic is handed on to the cluster's, one of the cluster's gets a signed outcome.
type commands struct {
	runner  *runner
	journal *journal.Bolt
	wg      sync.WaitGroup

	mu   sync.Mutex
	seen map[string][]*runnerv1.StackDeploy // by stack; a command that is delivered again is not noted again
	hold chan struct{}                      // outcomes wait until it is closed; nil means not at all
}

// Handle implements bus.Handler.
func (c *commands) Handle(ctx context.Context, m bus.Message) <-chan struct{} {
	settled := make(chan struct{})
	c.wg.Go(func() {
		if c.take(ctx, m) {
			close(settled)
		}
	})
	return settled
}

// take reports whether the message is settled. What cannot be done now is done when it is delivered again.
func (c *commands) take(ctx context.Context, m bus.Message) bool {
	access := c.runner.access
	if m.Topic == access.GetAgentTopic() {
		m.Topic, m.Partition, m.Offset = access.GetClusterTopic(), 0, 0
		return c.produce(ctx, m)
	}
	e, err := envelope.Parse(m.Headers, m.Value, maxMessageBytes)
	if err != nil {
		m.Topic, m.Partition, m.Offset = access.GetDlqTopic(), 0, 0
		return c.produce(ctx, m)
	}
	msg, err := e.Message()
	deploy, ok := msg.(*runnerv1.StackDeploy)
	if err != nil || !ok {
		c.runner.t.Errorf("command %s: %v", e.ID, err)
		return true
	}
	record, err := c.journal.Receive(e.ID, e.Type)
	if err != nil {
		c.runner.t.Error(err)
		return false
	}
	if !c.note(ctx, record, deploy) {
		return false
	}
	outcome, err := envelope.New("/agents/"+c.runner.id.AgentID(), &runnerv1.CommandOutcome{
		Type: e.Type, Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, Stack: deploy.GetStack(), Generation: deploy.GetGeneration(),
	}, time.Now())
	if err != nil {
		c.runner.t.Error(err)
		return false
	}
	outcome.ID, outcome.CausationID, outcome.CorrelationID, outcome.Subject = envelope.OutcomeID(e.ID), e.ID, e.CorrelationID, deploy.GetStack()
	if outcome, err = c.journal.Decide(e.ID, c.runner.id.ClusterID(), deploy.GetGeneration(), outcome); err != nil {
		c.runner.t.Error(err)
		return false
	}
	select {
	case <-c.journal.Settled(outcome.ID):
		return true
	case <-ctx.Done():
		return false
	}
}

// produce tries until Kafka has the message.
func (c *commands) produce(ctx context.Context, m bus.Message) bool {
	for c.runner.producer.Produce(ctx, []bus.Message{m}) != nil {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(100 * time.Millisecond):
		}
	}
	return true
}

// note notes a command, and waits while commands are held back.
func (c *commands) note(ctx context.Context, record journal.Record, deploy *runnerv1.StackDeploy) bool {
	c.mu.Lock()
	if record.Attempts == 1 {
		c.seen[deploy.GetStack()] = append(c.seen[deploy.GetStack()], deploy)
	}
	hold := c.hold
	c.mu.Unlock()
	if hold == nil {
		return true
	}
	select {
	case <-hold:
		return true
	case <-ctx.Done():
		return false
	}
}

// of returns the commands for a stack.
func (c *commands) of(name string) []*runnerv1.StackDeploy {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.seen[name])
}

// holdBack makes outcomes wait until the returned function is called.
func (c *commands) holdBack() (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	hold := make(chan struct{})
	c.hold = hold
	return sync.OnceFunc(func() {
		c.mu.Lock()
		c.hold = nil
		c.mu.Unlock()
		close(hold)
	})
}
