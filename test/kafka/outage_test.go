package kafka_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/axion/runner-agent/test/kafka"
)

// sent are commands that were submitted, by stack.
type sent struct {
	site    *site
	manager *runner
	prefix  string
	ids     []string
	times   []time.Time
}

// submit submits n commands, each for a stack of its own.
func (c *sent) submit(ctx context.Context, n int) error {
	for range n {
		id, err := c.site.deploy(ctx, c.manager.id.ClusterID(), "", c.stack(len(c.ids)))
		if err != nil {
			return fmt.Errorf("command %d: %w", len(c.ids), err)
		}
		c.ids, c.times = append(c.ids, id), append(c.times, time.Now())
	}
	return nil
}

func (c *sent) stack(i int) string { return fmt.Sprintf("%s-%d", c.prefix, i) }

func (c *sent) mustSubmit(t *testing.T, n int) {
	t.Helper()
	if err := c.submit(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

// done waits until all have succeeded, and checks that each was carried out once and sent once: the plane sends again what has no
// outcome after a minute, and would make up for a loss.
func (c *sent) done(t *testing.T) {
	t.Helper()
	for i, id := range c.ids {
		c.site.succeeds(id, c.manager.id.AgentID())
		if n := len(c.manager.commands.of(c.stack(i))); n != 1 {
			t.Errorf("the command for stack %s was carried out %d times", c.stack(i), n)
		}
	}
	if strings.Contains(c.site.log.String(), " sends=2") {
		t.Error("the plane had to send a command again")
	}
}

// testBrokerKilled: kill -9 of the only broker while commands are on their way; more are submitted while it is away.
func testBrokerKilled(t *testing.T, c *kafka.Cluster) {
	s := newSite(t)
	s.useSASL(c, sha512)
	s.cfg.KafkaAgentSCRAM = true
	s.start()
	manager := s.enrol("outage", "n1")
	manager.start()
	commands := &sent{site: s, manager: manager, prefix: "stack"}
	commands.mustSubmit(t, 1)
	commands.done(t) // the agent has joined

	release := manager.commands.holdBack()
	commands.mustSubmit(t, 10)
	eventually(t, "the first of them", func() bool { return len(manager.commands.of(commands.stack(1))) == 1 })
	c.Broker(0).Kill()
	release() // outcomes that Kafka cannot take yet
	commands.mustSubmit(t, 20)
	begun := time.Now()
	c.Broker(0).Start()
	c.AwaitReady(t.Context())
	figure(t, "start after the kill", time.Since(begun))
	begun = time.Now()
	commands.mustSubmit(t, 5)
	commands.done(t)
	figure(t, fmt.Sprintf("from ready to the last of %d outcomes", len(commands.ids)), time.Since(begun))
}

// testBrokerHangs: a broker that takes a command and does not answer must not keep the plane from stopping.
func testBrokerHangs(t *testing.T, c *kafka.Cluster) {
	s := newSite(t)
	s.useSASL(c, plain)
	s.start()
	commands := &sent{site: s, manager: s.enrol("hang", "n1"), prefix: "stack"}
	commands.mustSubmit(t, 1)
	eventually(t, "the first command", func() bool { return strings.Contains(s.log.String(), "command sent") }) // the connection is there
	c.Broker(0).Pause()
	defer c.Broker(0).Resume()
	commands.mustSubmit(t, 30)
	begun := time.Now()
	s.stop()
	figure(t, "end of the plane", time.Since(begun))
}

// TestThreeBrokers: a rolling restart under load. The brokers' certificates are of the plane's own CA, so that nobody must be told another.
func TestThreeBrokers(t *testing.T) {
	t.Parallel()
	for _, version := range kafka.Versions() {
		t.Run(version, func(t *testing.T) {
			s := newSite(t)
			begun := time.Now()
			c := kafka.Start(t, kafka.Options{
				Version: version, Brokers: 3, ClientCAs: s.ca.CertificatePEM(), Certificate: s.ca.IssueServer, SuperUsers: []string{planePrincipal},
			})
			figure(t, "start of the brokers", time.Since(begun))
			s.cfg.KafkaBrokers = c.Certificates()
			s.start()
			manager := s.enrol("rolling", "n1")
			if len(manager.access.GetCaPem()) != 0 {
				t.Error("the agent was told a CA although the brokers have the plane's")
			}
			manager.start()
			commands := &sent{site: s, manager: manager, prefix: "stack"}
			commands.mustSubmit(t, 1)
			commands.done(t)
			testReplicated(t, c, manager)

			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			load := make(chan error, 1)
			go func() { load <- commands.keepSubmitting(ctx) }()
			begun = time.Now()
			for i := range 3 {
				c.Broker(i).Stop()
				c.Broker(i).Start()
				c.AwaitReady(t.Context())
			}
			figure(t, "rolling restart", time.Since(begun))
			stop()
			if err := <-load; err != nil {
				t.Fatal(err)
			}
			begun = time.Now()
			commands.done(t)
			figure(t, fmt.Sprintf("from its end to the last of %d outcomes", len(commands.ids)), time.Since(begun))
		})
	}
}

// keepSubmitting submits commands, one after the other with pauses, until ctx ends.
func (c *sent) keepSubmitting(ctx context.Context) error {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := c.submit(context.WithoutCancel(ctx), 1); err != nil {
				return err
			}
		}
	}
}

// testReplicated: one broker may be away without a loss, and without a pause.
func testReplicated(t *testing.T, c *kafka.Cluster, manager *runner) {
	t.Helper()
	a := manager.access
	for _, topic := range []string{a.GetAgentTopic(), a.GetClusterTopic(), a.GetEventsTopic(), a.GetDlqTopic()} {
		details, err := c.Admin().ListTopics(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		configs, err := c.Admin().DescribeTopicConfigs(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		least := ""
		for _, setting := range configs[0].Configs {
			if setting.Key == "min.insync.replicas" {
				least = setting.MaybeValue()
			}
		}
		if n := len(details[topic].Partitions[0].Replicas); n != 3 || least != "2" {
			t.Errorf("topic %s has %d replicas, of which %s must be in sync; want 3 and 2", topic, n, least)
		}
	}
}
