package kafka_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/axion/runner-agent/agent"
	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/agent/config"
	"github.com/axion/runner-agent/agent/health"
	"github.com/axion/runner-agent/plane/broker"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/kafka"
	"github.com/axion/runner-agent/test/logbuffer"
	"github.com/axion/runner-agent/test/loopback"
)

// The SASL mechanisms, by the contract's names.
const (
	plain  = runnerv1.SaslMechanism_SASL_MECHANISM_PLAIN
	sha256 = runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_256
	sha512 = runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_512
)

// useSASL makes a plane use the listener where clients have passwords.
func (s *site) useSASL(c *kafka.Cluster, mechanism runnerv1.SaslMechanism) {
	s.cfg.KafkaBrokers, s.cfg.KafkaCAPEM = c.SASL(), c.CAPEM()
	s.cfg.KafkaSASL = &runnerv1.SaslCredentials{Mechanism: mechanism, Username: planeUser, Password: planePassword}
}

// testAgentSCRAM: the plane makes users for its agents, and takes them away.
func testAgentSCRAM(t *testing.T, c *kafka.Cluster) {
	t.Parallel()
	s := newSite(t)
	s.useSASL(c, sha512)
	s.cfg.KafkaAgentSCRAM = true
	s.start()
	manager, stranger := s.enrol("scram", "n1"), s.enrol("scram-other", "n1")
	if sasl := manager.access.GetSasl(); sasl.GetMechanism() != sha512 || sasl.GetUsername() != manager.id.AgentID() {
		t.Errorf("the agent has %v", sasl.GetMechanism())
	}
	manager.start()
	want := managerRights(manager)
	slices.Sort(want)
	if have := rights(t, c, "User:"+manager.id.AgentID()); !slices.Equal(have, want) {
		t.Errorf("the agent may do %q, want %q", have, want)
	}
	s.succeeds(s.mustDeploy("scram", "", "shop"), manager.id.AgentID())
	stranger.consume("spy", manager.access.GetClusterTopic(), manager.access.GetClusterGroup(), never{t})
	eventually(t, "the warning that Kafka denies access", func() bool { return stranger.warned("kafka_spy_denied") })

	if _, err := s.operator.RemoveAgent(t.Context(), &planev1.RemoveAgentRequest{Id: stranger.id.AgentID()}); err != nil {
		t.Fatal(err)
	}
	if have := rights(t, c, "User:"+stranger.id.AgentID()); len(have) != 0 {
		t.Errorf("the removed agent may still do %q", have)
	}
	stranger.consume("late", stranger.access.GetAgentTopic(), stranger.access.GetAgentGroup(), never{t})
	eventually(t, "the warning that Kafka refuses the credentials", func() bool { return stranger.warned("kafka_late_auth") })
}

// testOwnCredentials: a managed Kafka whose administrator makes the users; the agents' is in their nodes' configuration. A whole agent on this machine's engine
// takes commands from its own topic. It is not confirmed as a manager, so it hands them on and does nothing on the Swarm; another agent does them.
func testOwnCredentials(t *testing.T, c *kafka.Cluster) {
	for name, tc := range map[string]struct {
		plane, agent runnerv1.SaslMechanism
		configured   string
	}{
		"plane plain, agent scram-sha-256":         {plain, sha256, "scram-sha-256"},
		"plane scram-sha-256, agent plain":         {sha256, plain, "plain"},
		"plane scram-sha-512, agent scram-sha-512": {sha512, sha512, "scram-sha-512"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			info, err := engine.Client(t).Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s := newSite(t)
			s.swarmID = info.Swarm.Cluster.ID
			s.useSASL(c, tc.plane)
			s.start()
			cluster := "own-" + tc.configured
			manager := s.enrol(cluster, "n1")
			if manager.access.GetSasl() != nil {
				t.Error("the plane gave credentials that it does not have")
			}
			manager.access.Sasl = &runnerv1.SaslCredentials{Mechanism: tc.agent, Username: agentUser, Password: agentPassword}
			manager.start()
			runAgent(t, s.configure(cluster, tc.configured))
			var whole string
			eventually(t, "the agent", func() bool {
				agents, err := s.operator.ListAgents(t.Context(), &planev1.ListAgentsRequest{})
				for _, a := range agents.GetAgents() {
					if a.GetId() != manager.id.AgentID() {
						whole = a.GetId()
					}
				}
				return err == nil && whole != ""
			})
			s.succeeds(s.mustDeploy("", whole, "shop"), manager.id.AgentID())
		})
	}
}

// configure writes an agent's configuration file with credentials of its own for Kafka.
func (s *site) configure(cluster, mechanism string) config.Config {
	s.t.Helper()
	dir, err := os.MkdirTemp("", "axt-kafka-") // the name of a socket must be short
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	token, password, file := filepath.Join(dir, "token"), filepath.Join(dir, "password"), filepath.Join(dir, "agent.toml")
	text := fmt.Sprintf(`
[agent]
state_dir = %q
work_dir = %q
[plane]
address = %q
token_file = %q
[kafka]
sasl_mechanism = %q
sasl_username = %q
sasl_password_file = %q
[health]
listen = %q
[local]
socket = %q
[telemetry]
enabled = false
`, filepath.Join(dir, "state"), filepath.Join(dir, "work"), s.cfg.Listen, token, mechanism, agentUser, password, loopback.FreeAddress(s.t), filepath.Join(dir, "agent.sock"))
	for path, content := range map[string]string{token: s.token(cluster), password: agentPassword + "\n", file: text} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	cfg, err := config.Load(config.Sources{File: file})
	if err != nil {
		s.t.Fatal(err)
	}
	return cfg
}

// runAgent runs a whole agent on the machine's engine until the test ends.
func runAgent(t *testing.T, cfg config.Config) {
	t.Helper()
	log := &logbuffer.Buffer{}
	a, err := agent.New(cfg, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", log)
		}
	})
}

// testWrongCredentials: what a person with a wrong password is told.
func testWrongCredentials(t *testing.T, c *kafka.Cluster) {
	t.Parallel()
	for _, mechanism := range []runnerv1.SaslMechanism{plain, sha256, sha512} {
		for name, credentials := range map[string]*runnerv1.SaslCredentials{
			"wrong password": {Mechanism: mechanism, Username: agentUser, Password: "wrong"},
			"unknown user":   {Mechanism: mechanism, Username: "nobody", Password: "wrong"},
		} {
			t.Run(mechanism.String()+" "+name, func(t *testing.T) {
				t.Parallel()
				warnings := health.New(time.Now)
				p, err := bus.NewProducer(bus.ProducerConfig{
					Config: bus.Config{Name: "x", Brokers: c.SASL(), TLS: c.ClientTLS("x", "x"), SASL: credentials}, Topics: []string{"runner.events"},
				}, bus.ProducerDeps{Warn: warnings})
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				err = p.Produce(t.Context(), []bus.Message{{Topic: "runner.events", Value: []byte("x")}})
				r := runner{t: t, warnings: warnings}
				if err == nil || !r.warned("kafka_x_auth") {
					t.Errorf("got %v and %v, want a refusal of the credentials", err, warnings.Warnings())
				}
			})
		}
	}
}

// testUnknownCA: a plane that was not told the brokers' CA learns why it does not reach them.
func testUnknownCA(t *testing.T, c *kafka.Cluster) {
	t.Parallel()
	b, err := broker.New(broker.Config{
		Brokers: c.SASL(), ClientTLS: &tls.Config{RootCAs: newSite(t).ca.Pool(), MinVersion: tls.VersionTLS12},
		SASL: &runnerv1.SaslCredentials{Mechanism: sha512, Username: planeUser, Password: planePassword},
	}, broker.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	eventually(t, "the reason", func() bool {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		return errors.As(b.Ready(ctx), new(x509.UnknownAuthorityError))
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
