package broker

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/plane/ca"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/test/kafka"
)

const (
	cluster = "shop"
	one     = "a-0000000000000001"
	two     = "a-0000000000000002"
)

// site is a CA and the broker's place.
type site struct {
	ca     *ca.CA
	dir    string
	listen string
	secret []byte
	verify func(tls.ConnectionState) error
	log    *syncBuffer
}

func newSite(t *testing.T) *site {
	t.Helper()
	authority, err := ca.Open(filepath.Join(t.TempDir(), "ca"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return &site{ca: authority, dir: filepath.Join(t.TempDir(), "kafka"), listen: "127.0.0.1:0", secret: bytes.Repeat([]byte{7}, 32), log: &syncBuffer{}}
}

func (p *site) config(t *testing.T) Config {
	t.Helper()
	server, err := p.ca.ServerTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	server.VerifyConnection = p.verify
	client, err := p.ca.IssueClient("kafka-client")
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Embedded: true, DataDir: p.dir, Listen: p.listen, Secret: p.secret, ServerTLS: server,
		ClientTLS: &tls.Config{RootCAs: p.ca.Pool(), Certificates: []tls.Certificate{client}}, CAPEM: p.ca.CertificatePEM(),
	}
}

// start runs the embedded broker until stop is called; the next start takes the same address.
func (p *site) start(t *testing.T) (b *Broker, stop func()) {
	t.Helper()
	b, err := New(p.config(t), Deps{Log: slog.New(slog.NewTextHandler(p.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	p.listen = b.embedded.guard.listener.Addr().String()
	return b, runBroker(t, b)
}

func runBroker(t *testing.T, b *Broker) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	wait, done := context.WithTimeout(t.Context(), 10*time.Second)
	defer done()
	if err := errors.Join(b.Ready(wait), b.EnsureBase(wait)); err != nil {
		t.Fatal(err)
	}
	return stop
}

// certificate is an agent's.
func (p *site) certificate(t *testing.T, agentID string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := p.ca.IssueAgent(csr, cluster, agentID)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(issued.PEM, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func (p *site) agentTLS(t *testing.T, agentID string) *tls.Config {
	return &tls.Config{RootCAs: p.ca.Pool(), Certificates: []tls.Certificate{p.certificate(t, agentID)}}
}

func provision(t *testing.T, b *Broker, agentID string) *runnerv1.KafkaAccess {
	t.Helper()
	access, err := b.Provision(t.Context(), cluster, agentID)
	if err != nil {
		t.Fatal(err)
	}
	return access
}

// agent is a Kafka client of an agent.
func (p *site) agent(t *testing.T, access *runnerv1.KafkaAccess, agentID string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	return newClient(t, append([]kgo.Opt{
		kgo.SeedBrokers(access.GetBrokers()...), kgo.DialTLSConfig(p.agentTLS(t, agentID)),
		kgo.SASL(scram.Auth{User: access.GetSasl().GetUsername(), Pass: access.GetSasl().GetPassword()}.AsSha512Mechanism()),
	}, opts...)...)
}

func newClient(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.DisableIdempotentWrite(), kgo.RecordRetries(1), kgo.RequestRetries(1), kgo.RetryTimeout(2 * time.Second), kgo.UnknownTopicRetries(0), kgo.MetadataMinAge(50 * time.Millisecond),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func produce(t *testing.T, cl *kgo.Client, topic, value string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	return cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr()
}

// consume reads one message of a group's topic.
func consume(t *testing.T, cl *kgo.Client) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	fetches := cl.PollFetches(ctx)
	if err := fetches.Err(); err != nil {
		return "", err
	}
	value := string(fetches.Records()[0].Value)
	return value, cl.CommitUncommittedOffsets(ctx)
}

func group(topic, group string) []kgo.Opt {
	return []kgo.Opt{kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())}
}

func TestAgentsRights(t *testing.T) {
	p := newSite(t)
	b, _ := p.start(t)
	access, other := provision(t, b, one), provision(t, b, two)
	if access.GetAgentTopic() != "runner.commands."+one || access.GetAgentGroup() != "runner."+one || access.GetClusterTopic() != "runner.commands.shop" ||
		access.GetClusterGroup() != "runner.shop" || access.GetEventsTopic() != "runner.events" || access.GetDlqTopic() != "runner.commands.dlq" ||
		!access.GetTls() || !bytes.Equal(access.GetCaPem(), p.ca.CertificatePEM()) || access.GetSasl().GetUsername() != one {
		t.Errorf("access %v", access)
	}
	if access.GetSasl().GetPassword() == other.GetSasl().GetPassword() || access.GetSasl().GetPassword() == password(p.secret, planeUser) {
		t.Error("passwords are the same")
	}
	plane := newClient(t, b.ClientOpts()...)
	for _, topic := range []string{access.GetAgentTopic(), other.GetAgentTopic(), access.GetClusterTopic()} {
		if err := produce(t, plane, topic, "for "+topic); err != nil {
			t.Fatal(err)
		}
	}

	if v, err := consume(t, p.agent(t, access, one, group(access.GetAgentTopic(), access.GetAgentGroup())...)); err != nil || v != "for "+access.GetAgentTopic() {
		t.Errorf("own topic: %q %v", v, err)
	}
	writer := p.agent(t, access, one)
	for _, topic := range []string{access.GetEventsTopic(), access.GetDlqTopic()} {
		if err := produce(t, writer, topic, "x"); err != nil {
			t.Errorf("write %s: %v", topic, err)
		}
	}
	for _, topic := range []string{access.GetAgentTopic(), other.GetAgentTopic(), access.GetClusterTopic()} {
		if err := produce(t, writer, topic, "forged"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
			t.Errorf("write %s: %v", topic, err)
		}
	}
	for name, opts := range map[string][]kgo.Opt{
		"foreign topic":       group(other.GetAgentTopic(), access.GetAgentGroup()),
		"foreign group":       group(access.GetAgentTopic(), other.GetAgentGroup()),
		"events":              group(EventsTopic, access.GetAgentGroup()),
		"cluster topic":       group(access.GetClusterTopic(), access.GetClusterGroup()),
		"topic without group": {kgo.ConsumeTopics(other.GetAgentTopic())},
	} {
		t.Run(name, func(t *testing.T) {
			if v, err := consume(t, p.agent(t, access, one, opts...)); err == nil {
				t.Errorf("read %q", v)
			} else if !errors.Is(err, kerr.TopicAuthorizationFailed) && !errors.Is(err, kerr.GroupAuthorizationFailed) {
				t.Errorf("refused, but with %v", err)
			}
		})
	}
	admin := kadm.NewClient(writer)
	if _, err := admin.CreateTopic(t.Context(), 1, 1, nil, "runner.commands.mine"); !errors.Is(err, kerr.TopicAuthorizationFailed) && !errors.Is(err, kerr.ClusterAuthorizationFailed) {
		t.Errorf("make a topic: %v", err)
	}
	if err := b.withRights(t, writer); err == nil {
		t.Error("an agent gave itself rights")
	}

	// The cluster's topic, once the agent's node is a confirmed manager, and no longer.
	if err := b.AllowClusterTopic(t.Context(), cluster, one, true); err != nil {
		t.Fatal(err)
	}
	if err := produce(t, writer, access.GetClusterTopic(), "handed on"); err != nil {
		t.Errorf("hand on: %v", err)
	}
	if v, err := consume(t, p.agent(t, access, one, group(access.GetClusterTopic(), access.GetClusterGroup())...)); err != nil || v == "" {
		t.Errorf("cluster topic: %q %v", v, err)
	}
	if err := b.AllowClusterTopic(t.Context(), cluster, one, false); err != nil {
		t.Fatal(err)
	}
	if err := produce(t, writer, access.GetClusterTopic(), "x"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("hand on as no manager: %v", err)
	}
	if v, err := consume(t, p.agent(t, access, one, group(access.GetClusterTopic(), access.GetClusterGroup())...)); err == nil {
		t.Errorf("read %q as no manager", v)
	}
	if v, err := consume(t, p.agent(t, other, two, group(other.GetAgentTopic(), other.GetAgentGroup())...)); err != nil || v == "" {
		t.Errorf("the other agent: %q %v", v, err)
	}
}

// withRights tries to change access rights as someone else.
func (b *Broker) withRights(t *testing.T, cl *kgo.Client) error {
	t.Helper()
	mine := &Broker{admin: kadm.NewClient(cl), log: b.log}
	return mine.allow(t.Context(), "User:"+one, clusterRights(cluster))
}

func TestConnectionsAreRefused(t *testing.T) {
	p := newSite(t)
	var revoked sync.Map
	p.verify = func(state tls.ConnectionState) error {
		if _, is := revoked.Load(state.PeerCertificates[0].SerialNumber.String()); is {
			return errors.New("certificate is revoked")
		}
		return nil
	}
	b, _ := p.start(t)
	access, other := provision(t, b, one), provision(t, b, two)
	good := p.agentTLS(t, one)
	user := func(user, pass string) kgo.Opt {
		return kgo.SASL(scram.Auth{User: user, Pass: pass}.AsSha512Mechanism())
	}
	gone := p.agentTLS(t, one)
	leaf, err := x509.ParseCertificate(gone.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	revoked.Store(leaf.SerialNumber.String(), true)
	foreign := newSite(t).agentTLS(t, one)
	foreign.RootCAs = p.ca.Pool()
	for name, opts := range map[string][]kgo.Opt{
		"wrong password":            {kgo.DialTLSConfig(good), user(one, "wrong")},
		"another agent's user":      {kgo.DialTLSConfig(good), user(two, access.GetSasl().GetPassword())},
		"the plane's user":          {kgo.DialTLSConfig(good), user(planeUser, access.GetSasl().GetPassword())},
		"unknown user":              {kgo.DialTLSConfig(good), user("a-none", other.GetSasl().GetPassword())},
		"no password":               {kgo.DialTLSConfig(good)},
		"no certificate":            {kgo.DialTLSConfig(&tls.Config{RootCAs: p.ca.Pool()}), user(one, access.GetSasl().GetPassword())},
		"certificate of another CA": {kgo.DialTLSConfig(foreign), user(one, access.GetSasl().GetPassword())},
		"revoked certificate":       {kgo.DialTLSConfig(gone), user(one, access.GetSasl().GetPassword())},
		"no TLS":                    {user(one, access.GetSasl().GetPassword())},
	} {
		t.Run(name, func(t *testing.T) {
			cl := newClient(t, append(opts, kgo.SeedBrokers(access.GetBrokers()...))...)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if _, err := kadm.NewClient(cl).ListTopics(ctx); err == nil {
				t.Error("accepted")
			}
		})
	}
	cl := newClient(t, kgo.DialTLSConfig(good), user(one, access.GetSasl().GetPassword()), kgo.SeedBrokers(access.GetBrokers()...))
	if _, err := kadm.NewClient(cl).ListTopics(t.Context()); err != nil {
		t.Errorf("the good one is refused as well: %v", err)
	}
	for _, secret := range []string{access.GetSasl().GetPassword(), other.GetSasl().GetPassword(), password(p.secret, planeUser)} {
		if strings.Contains(p.log.String(), secret) {
			t.Error("a password is in the log")
		}
	}
}

func TestRemove(t *testing.T) {
	p := newSite(t)
	b, _ := p.start(t)
	access, other := provision(t, b, one), provision(t, b, two)
	plane := newClient(t, b.ClientOpts()...)
	reader := p.agent(t, access, one, group(access.GetAgentTopic(), access.GetAgentGroup())...)
	if err := produce(t, plane, access.GetAgentTopic(), "before"); err != nil {
		t.Fatal(err)
	}
	if _, err := consume(t, reader); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it may be repeated
		if err := b.Remove(t.Context(), cluster, one); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.Disconnect(one); n != 0 {
		t.Errorf("%d connections survived", n)
	}
	if err := produce(t, p.agent(t, access, one), EventsTopic, "after"); err == nil {
		t.Error("a removed agent writes events")
	}
	topics, err := b.admin.ListTopics(t.Context())
	if err != nil || topics.Has(access.GetAgentTopic()) || !topics.Has(access.GetClusterTopic()) {
		t.Errorf("topics %v %v", topics.Names(), err)
	}
	if err := produce(t, p.agent(t, other, two), EventsTopic, "x"); err != nil {
		t.Errorf("another agent lost its rights: %v", err)
	}
	again := provision(t, b, one)
	if err := produce(t, p.agent(t, again, one), EventsTopic, "back"); err != nil {
		t.Errorf("an agent that comes back: %v", err)
	}
}

func TestDisconnect(t *testing.T) {
	p := newSite(t)
	b, _ := p.start(t)
	access := provision(t, b, one)
	cl := p.agent(t, access, one)
	if err := produce(t, cl, EventsTopic, "x"); err != nil {
		t.Fatal(err)
	}
	if n := b.Disconnect(one); n == 0 {
		t.Error("no connection was ended")
	}
	if n := b.Disconnect(two); n != 0 {
		t.Errorf("%d connections of another agent", n)
	}
}

func TestDataSurvives(t *testing.T) {
	p := newSite(t)
	b, stop := p.start(t)
	access := provision(t, b, one)
	plane := newClient(t, b.ClientOpts()...)
	for _, v := range []string{"1", "2"} {
		if err := produce(t, plane, access.GetAgentTopic(), v); err != nil {
			t.Fatal(err)
		}
	}
	reader := p.agent(t, access, one, append(group(access.GetAgentTopic(), access.GetAgentGroup()), kgo.MaxConcurrentFetches(1))...)
	fetches := reader.PollRecords(t.Context(), 1)
	if err := errors.Join(fetches.Err(), reader.CommitRecords(t.Context(), fetches.Records()...)); err != nil {
		t.Fatal(err)
	}
	reader.Close()

	check := func(t *testing.T, p *site) {
		t.Helper()
		b, _ := p.start(t)
		again := p.agent(t, access, one, group(access.GetAgentTopic(), access.GetAgentGroup())...) // with the credentials that it had
		again.UpdateSeedBrokers(b.Addresses()...)
		if v, err := consume(t, again); err != nil || v != "2" {
			t.Errorf("got %q %v", v, err)
		}
		if err := produce(t, again, CommandTopic(cluster), "x"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
			t.Errorf("the access rights changed: %v", err)
		}
	}
	t.Run("kill", func(t *testing.T) { // what is on disk now is what a kill leaves
		killed := *p
		killed.dir, killed.listen = filepath.Join(t.TempDir(), "kafka"), "127.0.0.1:0"
		if err := os.CopyFS(killed.dir, os.DirFS(p.dir)); err != nil {
			t.Fatal(err)
		}
		check(t, &killed)
	})
	t.Run("restart", func(t *testing.T) {
		stop()
		check(t, p)
	})
	info, err := os.Stat(p.dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder is open to others: %v %v", info.Mode(), err)
	}
}

func TestNewSecret(t *testing.T) {
	p := newSite(t)
	b, stop := p.start(t)
	before := provision(t, b, one)
	stop()
	p.secret = bytes.Repeat([]byte{8}, 32)
	b, _ = p.start(t) // the plane's own password changed, too
	if err := produce(t, p.agent(t, before, one), EventsTopic, "x"); err == nil {
		t.Error("the old password still works")
	}
	after := provision(t, b, one)
	if err := produce(t, p.agent(t, after, one), EventsTopic, "x"); err != nil {
		t.Errorf("the new password: %v", err)
	}
}

// TestAgentThroughRestart is the way of a command: the plane writes, the agent's own client reads and commits, and the plane is restarted in between.
func TestAgentThroughRestart(t *testing.T) {
	p := newSite(t)
	b, stop := p.start(t)
	access := provision(t, b, one)
	h := &inbox{}
	consumer, err := bus.NewConsumer(bus.ConsumerConfig{
		Config: bus.Config{Name: "commands", Brokers: access.GetBrokers(), TLS: p.agentTLS(t, one), SASL: access.GetSasl(), ClientID: one},
		Topic:  access.GetAgentTopic(), Group: access.GetAgentGroup(),
	}, bus.ConsumerDeps{Handler: h, Warn: noWarner{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = consumer.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	large := strings.Repeat("x", 10<<20)
	for i, v := range []string{"first", large} {
		cl := newClient(t, append(b.ClientOpts(), kgo.ProducerBatchMaxBytes(commandBytes))...)
		if err := produce(t, cl, access.GetAgentTopic(), v); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(20 * time.Second)
		for !h.has(v) && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
		if !h.has(v) {
			t.Fatalf("message %d did not come", i)
		}
		if i == 0 {
			stop()
			b, _ = p.start(t)
		}
	}
}

type inbox struct {
	mu  sync.Mutex
	got []string
}

func (h *inbox) Handle(_ context.Context, m bus.Message) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got = append(h.got, string(m.Value))
	done := make(chan struct{})
	close(done)
	return done
}

func (h *inbox) has(v string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, got := range h.got {
		if got == v {
			return true
		}
	}
	return false
}

type noWarner struct{}

func (noWarner) Set(string, runnerv1.HealthSeverity, string, string) {}
func (noWarner) Clear(string)                                        {}

func TestTopics(t *testing.T) {
	p := newSite(t)
	b, _ := p.start(t)
	provision(t, b, one)
	small := "1000"
	if _, err := b.admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &small}}, CommandTopic(one)); err != nil {
		t.Fatal(err)
	}
	provision(t, b, one) // brings the limit back
	for topic, want := range map[string]string{CommandTopic(one): "12582912", CommandTopic(cluster): "12582912", EventsTopic: "16777216", DLQTopic: "16777216"} {
		topics, err := b.admin.ListTopics(t.Context(), topic)
		if err != nil || len(topics[topic].Partitions) != 1 {
			t.Errorf("%s: %d partitions, %v", topic, len(topics[topic].Partitions), err)
		}
		if got := topicSetting(t, b, topic, "max.message.bytes"); got != want {
			t.Errorf("%s: max.message.bytes %s, want %s", topic, got, want)
		}
		if got := topicSetting(t, b, topic, "retention.ms"); got != "604800000" {
			t.Errorf("%s: retention.ms %s", topic, got)
		}
	}
	b.embedded.applyRetention()
}

func topicSetting(t *testing.T, b *Broker, topic, name string) string {
	t.Helper()
	configs, err := b.admin.DescribeTopicConfigs(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs[0].Configs {
		if c.Key == name {
			return c.MaybeValue()
		}
	}
	return ""
}

func TestEvict(t *testing.T) {
	p := newSite(t)
	b, _ := p.start(t)
	access := provision(t, b, one)
	member := p.agent(t, access, one, append(group(access.GetAgentTopic(), access.GetAgentGroup()), kgo.HeartbeatInterval(100*time.Millisecond))...)
	evict(t, b, member, access.GetAgentGroup())
}

func TestEvictOnRealKafka(t *testing.T) {
	for _, version := range kafka.Versions() {
		t.Run(version, func(t *testing.T) {
			c := kafka.Start(t, kafka.Options{
				Version: version, SuperUsers: []string{"User:plane"}, PlainUsers: map[string]string{"plane": "secret"},
				Properties: map[string]string{"group.initial.rebalance.delay.ms": "0"},
			})
			b, err := New(Config{
				Brokers: c.SASL(), ClientTLS: c.ClientTLS("plane", "axion"),
				SASL: &runnerv1.SaslCredentials{Mechanism: runnerv1.SaslMechanism_SASL_MECHANISM_PLAIN, Username: "plane", Password: "secret"},
			}, Deps{})
			if err != nil {
				t.Fatal(err)
			}
			runBroker(t, b)
			access := provision(t, b, one)
			member := newClient(t, append(append(b.ClientOpts(), group(access.GetAgentTopic(), access.GetAgentGroup())...), kgo.HeartbeatInterval(100*time.Millisecond))...)
			evict(t, b, member, access.GetAgentGroup())
		})
	}
}

// evict takes a member that lives out of its group, after some that are not there.
func evict(t *testing.T, b *Broker, member *kgo.Client, memberOf string) {
	t.Helper()
	id := func() string { id, _ := member.GroupMetadata(); return id }
	waitFor := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("in vain: %s", what)
			}
		}
	}
	waitFor("it is a member", func() bool {
		groups, err := b.admin.DescribeGroups(t.Context(), memberOf)
		return err == nil && groups[memberOf].State == "Stable" && len(groups[memberOf].Members) == 1 && id() == groups[memberOf].Members[0].MemberID
	})
	former := id()
	for name, tc := range map[string]struct{ group, member string }{
		"no such group":  {Group("none"), former},
		"no such member": {memberOf, former + "x"},
	} {
		if had, err := b.Evict(t.Context(), tc.group, tc.member); had || err != nil {
			t.Errorf("%s: %v, %v", name, had, err)
		}
	}
	if id() != former {
		t.Error("another one was evicted")
	}
	if had, err := b.Evict(t.Context(), memberOf, former); !had || err != nil {
		t.Fatalf("%v, %v", had, err)
	}
	if had, err := b.Evict(t.Context(), memberOf, former); had || err != nil {
		t.Errorf("again: %v, %v", had, err)
	}
	waitFor("one that lives joins again", func() bool { return id() != "" && id() != former })
}

func TestCommandTopicID(t *testing.T) {
	for topic, want := range map[string]string{
		"runner.commands.prod": "prod", CommandTopic(one): one, DLQTopic: "", EventsTopic: "", "runner.commands.": "", "runner.commands.A": "", "prod": "",
		"runner.commands." + strings.Repeat("a", 41): "",
	} {
		if got, ok := CommandTopicID(topic); ok != (want != "") || (ok && got != want) {
			t.Errorf("%s: %q, %v", topic, got, ok)
		}
	}
}

func TestBadIDs(t *testing.T) {
	b := &Broker{}
	for _, tc := range []struct{ cluster, agent string }{
		{"dlq", one}, {"a-cluster", one}, {"", one}, {"Shop", one}, {"shop", "shop"}, {"shop", "a-A"}, {"shop", ""}, {"shop", "a-*"}, {strings.Repeat("x", 41), one},
	} {
		t.Run(tc.cluster+"/"+tc.agent, func(t *testing.T) {
			_, err := b.Provision(t.Context(), tc.cluster, tc.agent)
			for _, err := range []error{err, b.Remove(t.Context(), tc.cluster, tc.agent), b.AllowClusterTopic(t.Context(), tc.cluster, tc.agent, true)} {
				if f := failure.Of(err); f == nil || f.Code != "bad_id" {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}

func TestConfig(t *testing.T) {
	p := newSite(t)
	good := p.config(t)
	for name, change := range map[string]func(*Config){
		"no secret":            func(c *Config) { c.Secret = nil },
		"no TLS":               func(c *Config) { c.ServerTLS = nil },
		"no client CA":         func(c *Config) { c.ServerTLS = c.ServerTLS.Clone(); c.ServerTLS.ClientCAs = nil },
		"no client TLS":        func(c *Config) { c.ClientTLS = nil },
		"no folder":            func(c *Config) { c.DataDir = "" },
		"bad address":          func(c *Config) { c.Listen = "nonsense" },
		"nothing to advertise": func(c *Config) { c.Listen = "0.0.0.0:0" },
		"no brokers":           func(c *Config) { c.Embedded = false },
		"bad mechanism": func(c *Config) {
			c.Embedded, c.Brokers, c.SASL = false, []string{"k:9092"}, &runnerv1.SaslCredentials{Username: "u"}
		},
		"agents' SCRAM without secret": func(c *Config) { c.Embedded, c.Brokers, c.AgentSCRAM, c.Secret = false, []string{"k:9092"}, true, nil },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			change(&cfg)
			if _, err := New(cfg, Deps{}); err == nil {
				t.Error("accepted")
			}
		})
	}
	for advertise, want := range map[string]string{"": "127.0.0.1:", "plane.example": "plane.example:", "plane.example:7": "plane.example:7"} {
		cfg := good
		cfg.Advertise = advertise
		b, err := New(cfg, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		_ = b.embedded.guard.Close()
		if got := b.Addresses()[0]; !strings.HasPrefix(got, want) || strings.HasSuffix(got, ":0") {
			t.Errorf("advertise %q: %s", advertise, got)
		}
	}
}

func TestGuardRefusesWhatTheBrokerCannotSurvive(t *testing.T) {
	p := newSite(t)
	b, _ := p.start(t)
	frame := func(size uint32, key, version uint16) []byte {
		f := binary.BigEndian.AppendUint32(nil, size)
		f = binary.BigEndian.AppendUint16(f, key)
		return append(binary.BigEndian.AppendUint16(f, version), make([]byte, 12)...)
	}
	for name, request := range map[string][]byte{
		"unknown request":  frame(12, 999, 0),
		"negative request": frame(12, 0xffff, 0),
		"unknown version":  frame(12, 0, 99),
		"negative version": frame(12, 18, 0xffff),
		"huge":             frame(1<<31, 18, 0),
		"tiny":             frame(3, 18, 0),
		"no TLS":           nil,
	} {
		t.Run(name, func(t *testing.T) {
			var conn net.Conn
			var err error
			if request == nil {
				request = frame(12, 18, 0)
				conn, err = net.Dial("tcp", b.Addresses()[0])
			} else {
				conn, err = tls.Dial("tcp", b.Addresses()[0], p.agentTLS(t, one))
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := conn.Write(request); err != nil {
				return
			}
			if n, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the connection stays open, %d bytes", n)
			}
		})
	}
	if err := b.ping(t.Context()); err != nil {
		t.Errorf("the broker is gone: %v", err)
	}
}

func TestGuardBoundsConnections(t *testing.T) {
	g := newGuard(nil, &tls.Config{}, "x:1", slog.New(slog.DiscardHandler))
	var last error
	conns := []*guardedConn{}
	for range maxPerName + 1 {
		c := &guardedConn{guard: g}
		if !g.add(c) {
			t.Fatal("refused too early")
		}
		last = g.identify(c, one)
		conns = append(conns, c)
	}
	if last == nil {
		t.Error("one name has too many connections")
	}
	for _, c := range conns {
		g.remove(c)
		g.remove(c)
	}
	if len(g.conns) != 0 || len(g.names) != 0 {
		t.Errorf("left: %v %v", g.conns, g.names)
	}
}

// FuzzCheckRequest: what passes is a request that the broker's decoder knows.
func FuzzCheckRequest(f *testing.F) {
	f.Add([]byte{0, 0, 0, 12, 0, 18, 0, 0})
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		var head [8]byte
		copy(head[:], b)
		if checkRequest(head) != nil {
			return
		}
		key := int16(binary.BigEndian.Uint16(head[4:6]))
		request := kmsg.RequestForKey(key)
		request.SetVersion(int16(binary.BigEndian.Uint16(head[6:8])))
		_ = request.IsFlexible()
		if len(b) > 8 {
			_ = request.ReadFrom(b[8:])
		}
	})
}

// TestExternal uses three brokers that know neither users nor rights, as a real Kafka may.
func TestExternal(t *testing.T) {
	p := newSite(t)
	cfg := p.config(t)
	server := cfg.ServerTLS.Clone()
	server.ClientAuth = tls.RequireAndVerifyClientCert
	kafka, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.TLS(server))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	b, err := New(Config{Brokers: kafka.ListenAddrs(), ClientTLS: cfg.ClientTLS}, Deps{Log: slog.New(slog.NewTextHandler(p.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	runBroker(t, b)
	access := provision(t, b, one)
	if access.GetSasl() != nil || !access.GetTls() || len(access.GetBrokers()) != 3 {
		t.Errorf("access %v", access)
	}
	acls, err := b.admin.DescribeACLs(t.Context(), kadm.NewACLs().AnyResource().Allow().AllowHosts().Operations().ResourcePatternType(kadm.ACLPatternAny))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range acls {
		for _, a := range r.Described {
			if a.Principal != "User:CN="+one+",O=axion" {
				t.Errorf("principal %s", a.Principal)
			}
			got = append(got, fmt.Sprintf("%s %s", a.Operation, a.Name))
		}
	}
	if len(got) != 4 {
		t.Errorf("rights %v", got)
	}
	topics, err := b.admin.ListTopics(t.Context(), EventsTopic)
	if err != nil || len(topics[EventsTopic].Partitions[0].Replicas) != 3 {
		t.Errorf("replicas %v %v", topics[EventsTopic].Partitions[0].Replicas, err)
	}
	if got := topicSetting(t, b, EventsTopic, "min.insync.replicas"); got != "2" {
		t.Errorf("min.insync.replicas %s", got)
	}

	kafka.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateACLs, kmsg.DeleteACLs}, Err: kerr.SecurityDisabled, Count: -1})
	if _, err := b.Provision(t.Context(), cluster, two); err != nil {
		t.Errorf("without an authorizer: %v", err)
	}
	if err := b.Remove(t.Context(), cluster, two); err != nil {
		t.Errorf("without an authorizer: %v", err)
	}
	if n := strings.Count(p.log.String(), "kafka has no authorizer"); n != 1 {
		t.Errorf("warned %d times", n)
	}
}

// TestWithoutACLs is a Kafka that does not let the plane change access rights.
func TestWithoutACLs(t *testing.T) {
	p := newSite(t)
	cfg := p.config(t)
	server := cfg.ServerTLS.Clone()
	server.ClientAuth = tls.RequireAndVerifyClientCert
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.TLS(server))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	acls := []kmsg.Key{kmsg.CreateACLs, kmsg.DeleteACLs, kmsg.DescribeACLs}
	kafka.Fault(kfake.Fault{Keys: acls, Err: kerr.ClusterAuthorizationFailed, Count: -1})
	log := slog.New(slog.NewTextHandler(p.log, nil))
	strict, err := New(Config{Brokers: kafka.ListenAddrs(), ClientTLS: cfg.ClientTLS}, Deps{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	runBroker(t, strict)
	if _, err := strict.Provision(t.Context(), cluster, one); failure.Of(err) == nil || failure.Of(err).Code != "acls_denied" || !strings.Contains(failure.Of(err).Hint, "--kafka-acls=off") {
		t.Errorf("a plane that needs them: %v", err)
	}
	if strings.Contains(p.log.String(), "sets no access rights") {
		t.Error("warned although it sets them")
	}
	asked := make(chan kmsg.Key, 64)
	b, err := New(Config{Brokers: kafka.ListenAddrs(), ClientTLS: cfg.ClientTLS, NoACLs: true}, Deps{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range acls {
		kafka.ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
			kafka.KeepControl()
			asked <- key
			return nil, nil, false
		})
	}
	runBroker(t, b)
	access := provision(t, b, one)
	if access.GetAgentTopic() != CommandTopic(one) {
		t.Errorf("access %v", access)
	}
	for _, allowed := range []bool{true, false} {
		if err := b.AllowClusterTopic(t.Context(), cluster, one, allowed); err != nil {
			t.Errorf("allowed %v: %v", allowed, err)
		}
	}
	agent := newClient(t, append([]kgo.Opt{kgo.SeedBrokers(kafka.ListenAddrs()...), kgo.DialTLSConfig(p.agentTLS(t, one))}, group(CommandTopic(one), Group(one))...)...)
	plane := newClient(t, b.ClientOpts()...)
	if err := produce(t, plane, CommandTopic(one), "a command"); err != nil {
		t.Error(err)
	}
	if got, err := consume(t, agent); err != nil || got != "a command" {
		t.Errorf("the agent reads %q, %v", got, err)
	}
	if err := b.Remove(t.Context(), cluster, one); err != nil {
		t.Error(err)
	}
	select {
	case key := <-asked:
		t.Errorf("%s was sent", key.Name())
	default:
	}
	if n := strings.Count(p.log.String(), "sets no access rights"); n != 1 {
		t.Errorf("warned %d times", n)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
