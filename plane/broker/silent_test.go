package broker

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/axion/runner-agent/agent/bus"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// TestSilentMember: a member whose connection breaks before it is told that it has joined does not keep a partition for ever.
func TestSilentMember(t *testing.T) {
	p := newSite(t)
	b, _ := p.start(t)
	client := func(opts ...kgo.Opt) *kgo.Client {
		c, err := kgo.NewClient(append(b.ClientOpts(), opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	const group = "runner.silent"
	alive := client(kgo.ConsumerGroup(group), kgo.ConsumeTopics(EventsTopic), kgo.HeartbeatInterval(2*time.Second), kgo.SessionTimeout(10*time.Second),
		kgo.Balancers(kgo.RangeBalancer()))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			alive.PollFetches(ctx)
		}
	}()
	members := func(state string, n int) func() bool {
		return func() bool {
			info := b.embedded.cluster.GroupInfo(group)
			return info != nil && info.State == state && len(info.Members) == n
		}
	}
	eventually(t, 10*time.Second, "the first member", members("Stable", 1))

	dieJoining(t, b, group)
	eventually(t, 10*time.Second, "the group with its dead member", members("Stable", 2))
	eventually(t, silentFor+10*time.Second, "the dead member's eviction", members("Stable", 1))
	select { // and the living one stays
	case <-time.After(2 * silentEvery):
	case <-ctx.Done():
	}
	if !members("Stable", 1)() {
		t.Error("the living member was taken out as well")
	}
}

// dieJoining adds a member to a group whose connection breaks before it is told that it has joined.
func dieJoining(t *testing.T, b *Broker, group string) {
	t.Helper()
	dying, err := kgo.NewClient(b.ClientOpts()...)
	if err != nil {
		t.Fatal(err)
	}
	defer dying.Close()
	join := kmsg.NewPtrJoinGroupRequest()
	join.Group, join.ProtocolType, join.SessionTimeoutMillis, join.RebalanceTimeoutMillis = group, "consumer", 10_000, 5_000
	protocol := kmsg.NewJoinGroupRequestProtocol()
	metadata := kmsg.NewConsumerMemberMetadata()
	metadata.Topics = []string{EventsTopic}
	protocol.Name, protocol.Metadata = "range", metadata.AppendTo(nil)
	join.Protocols = append(join.Protocols, protocol)
	first, err := join.RequestWith(t.Context(), dying)
	if err != nil {
		t.Fatal(err)
	}
	join.MemberID = first.MemberID // the broker asks for it
	before := len(b.embedded.cluster.GroupInfo(group).Members)
	go func() { _, _ = join.RequestWith(t.Context(), dying) }()
	eventually(t, 10*time.Second, "the joining of the one that dies", func() bool {
		info := b.embedded.cluster.GroupInfo(group)
		return info.State == "PreparingRebalance" && len(info.Members) == before+1
	})
}

// TestJoinsPastTheDead: agents that join a group with a dead member are in it before their sessions end, and do not begin to wait for it again and again.
func TestJoinsPastTheDead(t *testing.T) {
	p := newSite(t)
	b, _ := p.start(t)
	const group = "runner.dead"
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	consumer := func() *bus.Consumer {
		user := PlaneUser(p.secret)
		c, err := bus.NewConsumer(bus.ConsumerConfig{
			Config: bus.Config{
				Name: "dead", Brokers: b.Addresses(), TLS: b.embedded.client, ClientID: "dead",
				SASL: &runnerv1.SaslCredentials{Mechanism: runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_512, Username: user.User, Password: user.Pass},
			},
			Topic: EventsTopic, Group: group,
		}, bus.ConsumerDeps{Handler: nothing{}, Log: slog.New(slog.DiscardHandler), Warn: nothing{}})
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() { _ = c.Run(ctx) })
		return c
	}
	first := consumer()
	eventually(t, 10*time.Second, "the first member", func() bool { return first.Membership() != nil })
	dieJoining(t, b, group)
	eventually(t, 10*time.Second, "the group with its dead member", func() bool {
		info := b.embedded.cluster.GroupInfo(group)
		return info.State == "Stable" && len(info.Members) == 2
	})
	second := consumer()
	begun := time.Now()
	eventually(t, 9*time.Second, "the second member, before the first one's session ends", func() bool { return second.Membership() != nil })
	t.Logf("joined after %.1f s", time.Since(begun).Seconds())
}

// nothing handles no message and takes no warning.
type nothing struct{}

func (nothing) Handle(context.Context, bus.Message) <-chan struct{} { return nil }
func (nothing) Set(string, runnerv1.HealthSeverity, string, string) {}
func (nothing) Clear(string)                                        {}

func eventually(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", limit, what)
		}
	}
}
