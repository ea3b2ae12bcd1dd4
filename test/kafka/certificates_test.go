package kafka_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/axion/runner-agent/agent/bus"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/test/kafka"
	"github.com/axion/runner-agent/test/testca"
)

// useCertificates makes a plane use the listener where clients show certificates.
func (s *site) useCertificates(c *kafka.Cluster) {
	s.cfg.KafkaBrokers, s.cfg.KafkaCAPEM = c.Certificates(), c.CAPEM()
}

// principal is whom the brokers see in an agent's certificate.
func principal(r *runner) string { return "User:CN=" + r.id.AgentID() + ",O=axion" }

// testCertificates: plane and agents are known by their certificates, from enrolment to removal.
func testCertificates(t *testing.T, c *kafka.Cluster, s *site) {
	t.Parallel()
	s = s.as(t)
	s.useCertificates(c)
	s.start()
	manager, second, stranger := s.enrol("prod", "n1"), s.enrol("prod", "n2"), s.enrol("other", "n1")
	for _, r := range []*runner{manager, second, stranger} {
		if !bytes.Equal(r.access.GetCaPem(), c.CAPEM()) || !r.access.GetTls() || r.access.GetSasl() != nil {
			t.Errorf("access: %v; it must carry the brokers' CA, TLS, and no credentials", r.access)
		}
	}
	manager.start()
	stranger.start()

	t.Run("topics and rights at enrolment", func(t *testing.T) { testProvisioned(t, c, manager, second) })
	t.Run("commands and outcomes", func(t *testing.T) {
		s := s.as(t)
		cluster, own := s.mustDeploy("prod", "", "shop"), s.mustDeploy("", manager.id.AgentID(), "blog")
		s.succeeds(cluster, manager.id.AgentID())
		s.succeeds(own, manager.id.AgentID())
		if len(manager.commands.of("shop")) != 1 || len(manager.commands.of("blog")) != 1 || len(stranger.commands.of("shop")) != 0 {
			t.Error("each command must be carried out once, on its own cluster")
		}
	})
	t.Run("another agent is refused", func(t *testing.T) { testForeign(t, manager, second, stranger) })
	t.Run("another agent's consumer", func(t *testing.T) {
		stranger.consume("spy", manager.access.GetClusterTopic(), manager.access.GetClusterGroup(), never{t})
		eventually(t, "the warning that Kafka denies access", func() bool { return stranger.warned("kafka_spy_denied") })
	})
	t.Run("forged events", func(t *testing.T) { testForged(t, s.as(t), manager, stranger) })
	t.Run("no certificate of the plane", func(t *testing.T) { testNoCertificate(t, c, manager) })
	t.Run("10 MiB", func(t *testing.T) { testLarge(t, c, manager) })
	t.Run("removal", func(t *testing.T) { testRemoval(t, c, s.as(t), manager, stranger) })
}

// as returns the site for a subtest.
func (s *site) as(t *testing.T) *site {
	sub := *s
	sub.t = t
	return &sub
}

func agentRights(r *runner) []string {
	return []string{
		"GROUP " + r.access.GetAgentGroup() + " READ", "TOPIC " + r.access.GetAgentTopic() + " READ",
		"TOPIC " + r.access.GetDlqTopic() + " WRITE", "TOPIC " + r.access.GetEventsTopic() + " WRITE",
	}
}

func managerRights(r *runner) []string {
	return append(agentRights(r), "GROUP "+r.access.GetClusterGroup()+" READ",
		"TOPIC "+r.access.GetClusterTopic()+" READ", "TOPIC "+r.access.GetClusterTopic()+" WRITE")
}

func rights(t *testing.T, c *kafka.Cluster, principal string) []string {
	t.Helper()
	have, err := c.ACLs(t.Context(), principal)
	if err != nil {
		t.Fatal(err)
	}
	return have
}

func testProvisioned(t *testing.T, c *kafka.Cluster, manager, second *runner) {
	for name, tc := range map[string]struct {
		who  *runner
		want []string
	}{
		"the manager":               {manager, managerRights(manager)},
		"a manager unconfirmed yet": {second, agentRights(second)},
	} {
		slices.Sort(tc.want)
		if have := rights(t, c, principal(tc.who)); !slices.Equal(have, tc.want) {
			t.Errorf("%s may do %q, want %q", name, have, tc.want)
		}
	}
	want := map[string]string{
		manager.access.GetAgentTopic(): "12582912", manager.access.GetClusterTopic(): "12582912",
		manager.access.GetEventsTopic(): "16777216", manager.access.GetDlqTopic(): "16777216",
	}
	for topic, maxBytes := range want {
		details, err := c.Admin().ListTopics(t.Context(), topic)
		if err != nil || len(details[topic].Partitions) != 1 {
			t.Errorf("topic %s: %v, %v", topic, details, err)
		}
		configs, err := c.Admin().DescribeTopicConfigs(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]string{}
		for _, setting := range configs[0].Configs {
			have[setting.Key] = setting.MaybeValue()
		}
		if have["max.message.bytes"] != maxBytes || have["retention.ms"] != "604800000" || have["min.insync.replicas"] != "1" {
			t.Errorf("topic %s: max.message.bytes %s, retention.ms %s, min.insync.replicas %s", topic, have["max.message.bytes"], have["retention.ms"], have["min.insync.replicas"])
		}
	}
}

// testForeign tries with an agent's certificate what only others may do.
func testForeign(t *testing.T, manager, second, stranger *runner) {
	read := func(topic string) func(*testing.T, *runner) error {
		return func(t *testing.T, r *runner) error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			fetches := r.as(t).kafka(kgo.ConsumeTopics(topic)).PollRecords(ctx, 1)
			if n := fetches.NumRecords(); n > 0 {
				t.Errorf("%d records were read", n)
			}
			return fetches.Err()
		}
	}
	join := func(group, topic string) func(*testing.T, *runner) error {
		return func(t *testing.T, r *runner) error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			return r.as(t).kafka(kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic)).PollRecords(ctx, 1).Err()
		}
	}
	write := func(topic string) func(*testing.T, *runner) error {
		return func(t *testing.T, r *runner) error {
			return r.as(t).kafka().ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr()
		}
	}
	own, cluster := manager.access.GetAgentTopic(), manager.access.GetClusterTopic()
	for name, tc := range map[string]struct {
		who  *runner
		try  func(*testing.T, *runner) error
		want error
	}{
		"read another agent's topic":                  {stranger, read(own), kerr.TopicAuthorizationFailed},
		"read another cluster's topic":                {stranger, read(cluster), kerr.TopicAuthorizationFailed},
		"read its cluster's topic, unconfirmed":       {second, read(cluster), kerr.TopicAuthorizationFailed},
		"read the events":                             {stranger, read(manager.access.GetEventsTopic()), kerr.TopicAuthorizationFailed},
		"read what could not be read":                 {manager, read(manager.access.GetDlqTopic()), kerr.TopicAuthorizationFailed},
		"join another agent's group":                  {stranger, join(manager.access.GetAgentGroup(), stranger.access.GetAgentTopic()), kerr.GroupAuthorizationFailed},
		"join its cluster's group, unconfirmed":       {second, join(manager.access.GetClusterGroup(), second.access.GetAgentTopic()), kerr.GroupAuthorizationFailed},
		"write to another agent's topic":              {stranger, write(own), kerr.TopicAuthorizationFailed},
		"write to another cluster's topic":            {stranger, write(cluster), kerr.TopicAuthorizationFailed},
		"write to its own topic":                      {manager, write(own), kerr.TopicAuthorizationFailed},
		"write to its cluster's topic as unconfirmed": {second, write(cluster), kerr.TopicAuthorizationFailed},
		"make a topic": {manager, func(t *testing.T, r *runner) error {
			_, err := kadm.NewClient(r.as(t).kafka()).CreateTopic(t.Context(), 1, 1, nil, "runner.commands.mine")
			return err
		}, kerr.TopicAuthorizationFailed},
		"delete a topic": {manager, func(t *testing.T, r *runner) error {
			resp, err := kadm.NewClient(r.as(t).kafka()).DeleteTopic(t.Context(), own)
			return errors.Join(err, resp.Err)
		}, kerr.TopicAuthorizationFailed},
		"give itself rights": {manager, func(t *testing.T, r *runner) error {
			results, err := kadm.NewClient(r.as(t).kafka()).CreateACLs(t.Context(), kadm.NewACLs().Allow(principal(r)).AllowHosts("*").
				ResourcePatternType(kadm.ACLPatternPrefixed).Topics("runner.").Operations(kadm.OpAll))
			for _, result := range results {
				err = errors.Join(err, result.Err)
			}
			return err
		}, kerr.ClusterAuthorizationFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := tc.try(t, tc.who); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// as returns the runner for a subtest.
func (r *runner) as(t *testing.T) *runner {
	sub := *r
	sub.t = t
	return &sub
}

// never is a handler that must get no message.
type never struct{ t *testing.T }

// Handle implements bus.Handler.
func (n never) Handle(_ context.Context, m bus.Message) <-chan struct{} {
	n.t.Errorf("a message of topic %s at offset %d leaked", m.Topic, m.Offset)
	return nil
}

// forge writes an outcome of that command to the topic of events.
func forge(t *testing.T, author *runner, source, commandID string) {
	t.Helper()
	e, err := envelope.New("/agents/"+source, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED, Stack: "forged"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	e.ID, e.CausationID = envelope.OutcomeID(commandID), commandID
	if err := e.Sign(author.id.Signer()); err != nil {
		t.Fatal(err)
	}
	r := &kgo.Record{Topic: author.access.GetEventsTopic(), Key: []byte(author.id.ClusterID()), Value: e.Data}
	for _, h := range e.Headers() {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	if err := author.as(t).kafka().ProduceSync(t.Context(), r).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// testForged: the broker lets every agent write events, so the plane must tell whose they are.
func testForged(t *testing.T, s *site, manager, stranger *runner) {
	release := manager.commands.holdBack()
	defer release()
	id := s.mustDeploy("prod", "", "held")
	eventually(t, "the command", func() bool { return len(manager.commands.of("held")) == 1 })
	forge(t, stranger, manager.id.AgentID(), id)  // in another's name, with its own key
	forge(t, stranger, stranger.id.AgentID(), id) // in its own name, about another cluster's command
	for _, reason := range []string{"reason=bad_signature", "reason=foreign_command"} {
		eventually(t, reason, func() bool { return strings.Contains(s.log.String(), reason) })
	}
	release()
	s.succeeds(id, manager.id.AgentID())
}

// testNoCertificate: the right name is not enough.
func testNoCertificate(t *testing.T, c *kafka.Cluster, manager *runner) {
	forged := testca.New(t).Client(manager.id.AgentID(), "axion")
	for name, certificates := range map[string][]tls.Certificate{"none": nil, "another CA's": forged.Certificates} {
		config := &tls.Config{RootCAs: manager.id.KafkaTLS().RootCAs, Certificates: certificates, MinVersion: tls.VersionTLS12}
		r := manager.as(t)
		dead, err := bus.NewProducer(bus.ProducerConfig{
			Config: bus.Config{Name: "x", Brokers: c.Certificates(), TLS: config}, Topics: []string{r.access.GetEventsTopic()},
		}, bus.ProducerDeps{Warn: r.warnings})
		if err != nil {
			t.Fatal(err)
		}
		defer dead.Close()
		if err := dead.Produce(t.Context(), []bus.Message{{Topic: r.access.GetEventsTopic(), Value: []byte("x")}}); err == nil || !r.warned("kafka_x_tls") {
			t.Errorf("%s: got %v, want a refusal of TLS", name, err)
		}
	}
}

// testLarge: a message of 10 MiB comes through in both directions, as a command and as what could not be read.
func testLarge(t *testing.T, c *kafka.Cluster, manager *runner) {
	const size = 10 << 20
	content := make([]byte, size)
	_, _ = rand.Read(content) // does not compress
	deploy := deployment("large", content)
	e, err := envelope.New("/test", deploy, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	topic := manager.access.GetClusterTopic()
	if err := manager.producer.Produce(t.Context(), []bus.Message{{Topic: topic, Key: []byte("large"), Value: e.Data, Headers: e.Headers()}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the command", func() bool { return len(manager.commands.of("large")) == 1 })
	figure(t, "10 MiB, produced and received", time.Since(begun))
	if files := manager.commands.of("large")[0].GetBundle().GetPlain().GetFiles(); len(files) != 1 || !bytes.Equal(files[0].GetContent(), content) {
		t.Error("the file arrived changed")
	}

	if err := manager.producer.Produce(t.Context(), []bus.Message{{Topic: topic, Value: content}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	reader, err := kgo.NewClient(append(c.AdminOpts(), kgo.ConsumeTopics(manager.access.GetDlqTopic()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for {
		fetches := reader.PollRecords(ctx, 1)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		for _, r := range fetches.Records() {
			if bytes.Equal(r.Value, content) {
				return
			}
		}
	}
}

// testRemoval: what was given at enrolment is taken away, and an open connection is of no use any more.
func testRemoval(t *testing.T, c *kafka.Cluster, s *site, manager, stranger *runner) {
	writer := stranger.as(t).kafka()
	event := &kgo.Record{Topic: stranger.access.GetEventsTopic(), Value: []byte("unreadable")}
	if err := writer.ProduceSync(t.Context(), event).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.operator.RemoveAgent(t.Context(), &planev1.RemoveAgentRequest{Id: stranger.id.AgentID()}); err != nil {
		t.Fatal(err)
	}
	if have := rights(t, c, principal(stranger)); len(have) != 0 {
		t.Errorf("the removed agent may still do %q", have)
	}
	late := &kgo.Record{Topic: stranger.access.GetEventsTopic(), Value: []byte("unreadable")}
	if err := writer.ProduceSync(t.Context(), late).FirstErr(); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("the removed agent writes an event on its open connection: %v", err)
	}
	eventually(t, "the warning that Kafka denies access", func() bool {
		return stranger.warned("kafka_commands_denied") && stranger.warned("kafka_cluster_denied")
	})
	topics, err := c.Admin().ListTopics(t.Context())
	if err != nil || topics.Has(stranger.access.GetAgentTopic()) || !topics.Has(stranger.access.GetClusterTopic()) {
		t.Errorf("the agent's topic must be gone and its cluster's must stay: %v, %v", topics.Names(), err)
	}
	want := managerRights(manager)
	slices.Sort(want)
	if have := rights(t, c, principal(manager)); !slices.Equal(have, want) {
		t.Errorf("another agent may do %q, want %q", have, want)
	}
}
