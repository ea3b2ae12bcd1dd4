package bus

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

func TestConsumerReceives(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	p := b.root()
	big := bytes.Repeat([]byte("0123456789"), 1<<20)
	if err := p.Produce(t.Context(), []Message{
		{Topic: topic, Key: []byte("shop"), Value: []byte("first"), Headers: []envelope.Header{{Key: "ce_id", Value: []byte("1")}, {Key: "empty"}}},
		{Topic: topic, Key: []byte("shop"), Value: big},
	}); err != nil {
		t.Fatal(err)
	}
	h, warn := newInbox(false), &warnings{}
	c, stop := run(t, b.consumer(), h, warn)
	eventually(t, "both messages", func() bool { return h.total() == 2 })
	if h.last.Offset != 1 || !bytes.Equal(h.last.Value, big) || string(h.last.Key) != "shop" || h.last.Topic != topic {
		t.Errorf("got offset %d, %d bytes, key %q", h.last.Offset, len(h.last.Value), h.last.Key)
	}
	if m := c.Membership(); m.GetGroup() != group || m.GetMemberId() == "" || m.GetGeneration() == 0 {
		t.Errorf("membership %v", m)
	}
	h.settle("first")
	eventually(t, "commit of 1", func() bool { return b.committed() == 1 })
	if h.ctx.Err() != nil {
		t.Error("the handler's context has ended")
	}
	stop()
	if c.Membership() != nil {
		t.Error("still a member")
	}
	if info := b.GroupInfo(group); len(info.Members) != 0 {
		t.Errorf("the group still has %d members", len(info.Members))
	}
	if codes := warn.codes(); codes != "" {
		t.Errorf("warnings %s", codes)
	}
}

func TestConsumerCommitsContiguous(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	h := newInbox(false)
	_, stop := run(t, b.consumer(), h, &warnings{})
	p := b.root()
	send(t, p, "0", "1", "2", "3", "4")
	eventually(t, "five messages", func() bool { return h.total() == 5 })
	h.settle("2", "1", "4")
	never(t, "a commit past an open message", func() bool { return b.committed() > 0 })
	h.settle("0")
	eventually(t, "commit of 3", func() bool { return b.committed() == 3 })
	never(t, "a commit past 3", func() bool { return b.committed() > 3 })
	stop()

	again := newInbox(true)
	run(t, b.consumer(), again, &warnings{})
	eventually(t, "redelivery", func() bool { return again.total() == 2 && b.committed() == 5 })
	if !slices.Equal(again.order, []string{"3", "4"}) {
		t.Errorf("redelivered %v", again.order)
	}
}

func TestConsumerCommitsWhenStopped(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	for i := range 5 { // a message that is settled in the same moment is committed in time or comes again, but the commit never passes the open one
		h := newInbox(false)
		_, stop := run(t, b.consumer(), h, &warnings{})
		send(t, b.root(), fmt.Sprint(i, "a"), fmt.Sprint(i, "b"))
		eventually(t, "messages", func() bool { return h.count(fmt.Sprint(i, "b")) == 1 })
		before := b.committed()
		h.settle(fmt.Sprint(i, "b"))
		stop()
		if after := b.committed(); after != before {
			t.Errorf("committed %d, then %d", before, after)
		}
	}
}

func TestConsumerBoundsMessagesInFlight(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	cfg := b.consumer()
	cfg.MaxInFlight = 4
	h := newInbox(false)
	run(t, cfg, h, &warnings{})
	var values []string
	for i := range 10 {
		values = append(values, fmt.Sprint(i))
	}
	send(t, b.root(), values...)
	eventually(t, "four messages", func() bool { return h.total() == 4 })
	never(t, "a fifth message", func() bool { return h.total() > 4 })
	h.settle("1", "2", "3") // not the first: nothing is committed, no slot is free
	never(t, "a fifth message", func() bool { return h.total() > 4 })
	h.settle("0")
	eventually(t, "four more", func() bool { return h.total() == 8 })
	never(t, "a ninth", func() bool { return h.total() > 8 })
}

func TestConsumerBoundsBytesInFlight(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	h := newInbox(false)
	run(t, b.consumer(), h, &warnings{})
	p := b.root()
	const each = 12 << 20
	fits := maxInFlightBytes / each
	for i := range fits + 2 {
		send(t, p, string(make([]byte, each+i)))
	}
	eventually(t, "as many as fit", func() bool { return h.total() == fits })
	never(t, "one more", func() bool { return h.total() > fits })
	h.settle(fmt.Sprint(each, " bytes"))
	eventually(t, "one more", func() bool { return h.total() == fits+1 })
	never(t, "two more", func() bool { return h.total() > fits+1 })
}

func TestConsumerSurvivesCutConnections(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	h := newInbox(true)
	run(t, b.consumer(), h, &warnings{})
	p := b.root()
	for i := range 5 {
		v := fmt.Sprint(i)
		send(t, p, v)
		eventually(t, "message "+v, func() bool { return h.count(v) > 0 })
		b.proxy.Cut() // the client answers some of these with a bare io.EOF
	}
	eventually(t, "commit", func() bool { return b.committed() >= 5 })
}

// TestConsumerSurvivesHalfOpenConnections: the broker is gone without a word, as when a NAT forgets a connection, while some connections are being set up.
func TestConsumerSurvivesHalfOpenConnections(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	h := newInbox(true)
	c, _ := run(t, b.consumer(), h, &warnings{})
	p := b.root()
	send(t, p, "before")
	eventually(t, "message before", func() bool { return h.count("before") == 1 })
	generation := c.Membership().GetGeneration()
	b.proxy.HalfOpen()
	send(t, p, "after")
	eventually(t, "message after", func() bool { return h.count("after") > 0 })
	eventually(t, "a commit in another generation", func() bool { return b.committed() == 2 && c.Membership().GetGeneration() > generation })
}

func TestConsumerKeepsHandlerThroughGenerations(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	h := newInbox(false)
	c, _ := run(t, b.consumer(), h, &warnings{})
	send(t, b.root(), "slow")
	eventually(t, "message", func() bool { return h.count("slow") == 1 })
	ctx, generation := h.ctx, c.Membership().GetGeneration()
	b.proxy.Cut()
	eventually(t, "redelivery in another generation", func() bool { return h.count("slow") == 2 })
	if ctx.Err() != nil {
		t.Error("the handler's context ended with the generation")
	}
	if c.Membership().GetGeneration() == generation {
		t.Error("the generation is the same")
	}
	h.settle("slow")
	eventually(t, "commit", func() bool { return b.committed() == 1 })
}

// TestConsumersNeverMoveTheOffsetBack cuts connections and evicts members while two consumers share a group and messages are settled out of order.
func TestConsumersNeverMoveTheOffsetBack(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	const total = 300
	h := newInbox(false)
	for range 2 {
		run(t, b.consumer(), h, &warnings{})
	}
	p := b.root()
	var values []string
	for i := range total {
		values = append(values, fmt.Sprint(i))
	}
	send(t, p, values...)
	settled, highest := map[string]bool{}, int64(-1)
	random := rand.New(rand.NewPCG(3, 4))
	eventually(t, "all is committed", func() bool {
		now := b.committed()
		if now < highest {
			t.Fatalf("the offset went back from %d to %d", highest, now)
		}
		highest = now
		for _, v := range h.open(settled) {
			if random.IntN(3) > 0 {
				settled[v] = true
				h.settle(v)
			}
		}
		for i := range now { // nothing is committed that is not settled
			if !settled[fmt.Sprint(i)] {
				t.Fatalf("%d is committed, but %d is not settled", now, i)
			}
		}
		switch random.IntN(20) {
		case 0:
			b.proxy.Cut()
		case 1:
			evictAll(t, b)
		}
		return now == total
	})
}

// evictAll takes all members out of the group.
func evictAll(t *testing.T, b *broker) {
	t.Helper()
	for _, m := range b.GroupInfo(group).Members {
		c, err := NewConsumer(b.consumer(), ConsumerDeps{Warn: &warnings{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.leaveGroup(t.Context(), m.MemberID); err != nil {
			t.Logf("evict %s: %v", m.MemberID, err)
		}
	}
}

func TestConsumerHandsOver(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	first, second := newInbox(true), newInbox(true)
	_, stop := run(t, b.consumer(), first, &warnings{})
	p := b.root()
	send(t, p, "a")
	eventually(t, "message at the first member", func() bool { return first.count("a") == 1 })
	_, _ = run(t, b.consumer(), second, &warnings{})
	eventually(t, "two members", func() bool { return len(b.GroupInfo(group).Members) == 2 })
	stop()
	send(t, p, "b")
	eventually(t, "message at the second member", func() bool { return second.count("b") == 1 })
	eventually(t, "commit", func() bool { return b.committed() == 2 })
}

func TestConsumerSurvivesBrokerRestart(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	h, warn := newInbox(true), &warnings{}
	run(t, b.consumer(), h, warn)
	p := b.root()
	send(t, p, "before")
	eventually(t, "message before", func() bool { return h.count("before") == 1 })
	b.Close()
	eventually(t, "a warning that names the broker", func() bool { return warn.text("kafka_commands_unreachable") != "" })
	b.start()
	send(t, p, "after")
	eventually(t, "message after", func() bool { return h.count("after") > 0 })
	eventually(t, "commit", func() bool { return b.committed() == 2 })
	if codes := warn.codes(); codes != "" {
		t.Errorf("warnings stay: %s", codes)
	}
}

// commitAs commits an offset for the empty group, as an operator's tool does.
func commitAs(t *testing.T, b *broker, offset int64) {
	t.Helper()
	cl := rootClient(t, b, kgo.MaxVersions(kversion.V3_0_0())) // which names topics, not their ids
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.Generation = group, -1
	rt := kmsg.NewOffsetCommitRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewOffsetCommitRequestTopicPartition()
	rp.Offset = offset
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	if err := kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode); err != nil {
		t.Fatal(err)
	}
}

func TestConsumerSaysWhatIsWrong(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	b.topic("runner.commands.other")
	foreign := x509.NewCertPool()
	for name, tc := range map[string]struct {
		change func(*ConsumerConfig)
		code   string
	}{
		"no broker":         {func(c *ConsumerConfig) { c.Brokers = []string{"127.0.0.1:1"} }, "kafka_commands_unreachable"},
		"no such name":      {func(c *ConsumerConfig) { c.Brokers = []string{"no-such-host.invalid:9092"} }, "kafka_commands_unreachable"},
		"no certificate":    {func(c *ConsumerConfig) { c.TLS = &tls.Config{RootCAs: b.ca.Pool()} }, "kafka_commands_tls"},
		"unknown CA":        {func(c *ConsumerConfig) { c.TLS = &tls.Config{RootCAs: foreign, Certificates: c.TLS.Certificates} }, "kafka_commands_tls"},
		"wrong server name": {func(c *ConsumerConfig) { c.TLS = c.TLS.Clone(); c.TLS.ServerName = "other.example" }, "kafka_commands_tls"},
		"wrong password": {func(c *ConsumerConfig) {
			c.SASL = &runnerv1.SaslCredentials{Mechanism: c.SASL.GetMechanism(), Username: "a-1", Password: "wrong"}
		}, "kafka_commands_auth"},
		"unknown user": {func(c *ConsumerConfig) {
			c.SASL = &runnerv1.SaslCredentials{Mechanism: c.SASL.GetMechanism(), Username: "a-9", Password: password}
		}, "kafka_commands_auth"},
		"foreign topic": {func(c *ConsumerConfig) { c.Topic = "runner.commands.other" }, "kafka_commands_denied"},
		"foreign group": {func(c *ConsumerConfig) { c.Group = "runner.other" }, "kafka_commands_denied"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, warn := b.consumer(), &warnings{}
			tc.change(&cfg)
			h := newInbox(true)
			run(t, cfg, h, warn)
			eventually(t, tc.code, func() bool { return warn.text(tc.code) != "" })
			if codes := warn.codes(); codes != tc.code {
				t.Errorf("warnings %s", codes)
			}
			if strings.Contains(warn.text(tc.code), password) {
				t.Error("the password is in the warning")
			}
		})
	}
}

func TestConsumerReportsLostRights(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	h, warn := newInbox(true), &warnings{}
	run(t, b.consumer(), h, warn)
	p := b.root()
	send(t, p, "a")
	eventually(t, "message", func() bool { return h.count("a") == 1 })
	fault := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Err: kerr.TopicAuthorizationFailed, Count: -1})
	eventually(t, "warning", func() bool { return warn.text("kafka_commands_denied") != "" })
	fault.Remove()
	send(t, p, "b")
	eventually(t, "message", func() bool { return h.count("b") == 1 })
	eventually(t, "no warning", func() bool { return warn.codes() == "" })
}

func TestConsumerEndsGenerationWhenCommitFails(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	h := newInbox(true)
	b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.CoordinatorNotAvailable, Count: commitAttempts})
	run(t, b.consumer(), h, &warnings{})
	send(t, b.root(), "a")
	eventually(t, "redelivery", func() bool { return h.count("a") == 2 })
	eventually(t, "commit", func() bool { return b.committed() == 1 })
}

func TestConsumerWatchdog(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	h := newInbox(true)
	c, err := NewConsumer(b.consumer(), ConsumerDeps{Handler: h, Log: testLog(t), Warn: &warnings{}})
	if err != nil {
		t.Fatal(err)
	}
	c.timing.maxWait, c.timing.stall, c.timing.retryMax = 200*time.Millisecond, 0, 100*time.Millisecond
	c.timing.stall = -1 // every look at the reader finds it stalled
	joins := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Observe: true, Count: -1})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	eventually(t, "the group is built anew", func() bool { return joins.Hits() >= 2 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestConsumerEvictsItsPredecessor(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	send(t, b.root(), "a")
	cfg := b.consumer()
	cfg.MemberFile = filepath.Join(t.TempDir(), "member", "commands")
	c, err := NewConsumer(cfg, ConsumerDeps{Warn: &warnings{}})
	if err != nil {
		t.Fatal(err)
	}
	c.writeMember(deadMember(t, b))
	h := newInbox(true)
	begun := time.Now()
	c, stop := run(t, cfg, h, &warnings{})
	eventually(t, "message", func() bool { return h.count("a") == 1 })
	if took := time.Since(begun); took > deadSession/2 {
		t.Errorf("took %v, as if the dead member were still waited for", took)
	}
	if kept := c.readFormerMember(); kept != c.Membership().GetMemberId() {
		t.Errorf("kept %q, is %q", kept, c.Membership().GetMemberId())
	}
	stop()
	if _, err := os.Stat(cfg.MemberFile); !os.IsNotExist(err) {
		t.Errorf("the file stays after a good-bye: %v", err)
	}
}

// TestConsumerIsBackSoonAfterItsBroker: the client forgets its member id while the broker is away, and the broker goes on waiting for that member.
func TestConsumerIsBackSoonAfterItsBroker(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	h := newInbox(true)
	c, _ := runWith(t, b.consumer(), h, &warnings{}, func(t *timing) { t.session = deadSession })
	p := b.root()
	for i := range 2 { // the second time an eviction has just been, and the session is waited for
		before := fmt.Sprint("before ", i)
		send(t, p, before)
		eventually(t, before, func() bool { return h.count(before) == 1 })
		id := c.Membership().GetMemberId()
		b.Close()
		eventually(t, "the end of the membership", func() bool { return !c.former.gone() })
		b.start()
		evictions := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.LeaveGroup}, Observe: true, Count: -1})
		begun := time.Now()
		eventually(t, "another membership", func() bool { return c.Membership().GetMemberId() != id })
		took := time.Since(begun)
		t.Logf("outage %d: back after %v", i+1, took)
		if n := evictions.Hits(); n != 1 && i == 0 {
			t.Errorf("%d evictions", n)
		}
		if i == 0 && took > deadSession/2 {
			t.Errorf("took %v, as if its former self were waited for", took)
		}
		evictions.Remove()
	}
}

// deadSession is the session of a member that has died; nobody else gets its partition for so long.
const deadSession = 10 * time.Second

// deadMember joins the group and never speaks again. It returns its id.
func deadMember(t *testing.T, b *broker) string {
	t.Helper()
	cl := rootClient(t, b, kgo.MaxVersions(kversion.V2_1_0()))
	join := kmsg.NewPtrJoinGroupRequest()
	join.Group, join.ProtocolType = group, "consumer"
	join.SessionTimeoutMillis, join.RebalanceTimeoutMillis = int32(deadSession.Milliseconds()), int32(deadSession.Milliseconds())
	meta := kmsg.NewConsumerMemberMetadata()
	meta.Topics = []string{topic}
	protocol := kmsg.NewJoinGroupRequestProtocol()
	protocol.Name, protocol.Metadata = "range", meta.AppendTo(nil)
	join.Protocols = append(join.Protocols, protocol)
	joined, err := join.RequestWith(t.Context(), cl)
	if err == nil {
		err = kerr.ErrorForCode(joined.ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Group, sync.Generation, sync.MemberID = group, joined.Generation, joined.MemberID
	if _, err := sync.RequestWith(t.Context(), cl); err != nil {
		t.Fatal(err)
	}
	return joined.MemberID
}

func TestConsumerConfig(t *testing.T) {
	good := ConsumerConfig{Config: Config{Name: "n", Brokers: []string{"b:1"}}, Topic: "t", Group: "g"}
	for name, change := range map[string]func(*ConsumerConfig){
		"no name":         func(c *ConsumerConfig) { c.Name = "" },
		"no brokers":      func(c *ConsumerConfig) { c.Brokers = nil },
		"empty broker":    func(c *ConsumerConfig) { c.Brokers = []string{""} },
		"too many":        func(c *ConsumerConfig) { c.Brokers = slices.Repeat([]string{"b:1"}, maxBrokers+1) },
		"no topic":        func(c *ConsumerConfig) { c.Topic = "" },
		"no group":        func(c *ConsumerConfig) { c.Group = "" },
		"negative window": func(c *ConsumerConfig) { c.MaxInFlight = -1 },
		"no mechanism":    func(c *ConsumerConfig) { c.SASL = &runnerv1.SaslCredentials{Username: "u"} },
		"bad mechanism":   func(c *ConsumerConfig) { c.SASL = &runnerv1.SaslCredentials{Mechanism: 99} },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			change(&cfg)
			if _, err := NewConsumer(cfg, ConsumerDeps{Warn: &warnings{}}); err == nil {
				t.Error("accepted")
			}
		})
	}
	if _, err := NewConsumer(good, ConsumerDeps{Warn: &warnings{}}); err != nil {
		t.Error(err)
	}
}
