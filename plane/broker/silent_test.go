package broker

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
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

	dying := client()
	join := kmsg.NewPtrJoinGroupRequest()
	join.Group, join.ProtocolType, join.SessionTimeoutMillis, join.RebalanceTimeoutMillis = group, "consumer", 10_000, 10_000
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
	go func() { _, _ = join.RequestWith(ctx, dying) }()
	eventually(t, 10*time.Second, "the second member's joining", members("PreparingRebalance", 2))
	dying.Close()
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

func eventually(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", limit, what)
		}
	}
}
