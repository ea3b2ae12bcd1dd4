package bus

import (
	"crypto/tls"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/test/testca"
)

// The traps of the Kafka client, a test each. `go test -run TestTrap` runs them; the package's comment lists them.

// TestTrapEOF: the client answers with a bare io.EOF when the broker closes a connection, whatever was asked on it. That is not the end.
func TestTrapEOF(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	var cut atomic.Int32
	for _, key := range []kmsg.Key{kmsg.JoinGroup, kmsg.SyncGroup, kmsg.OffsetFetch, kmsg.ListOffsets, kmsg.Fetch, kmsg.Heartbeat, kmsg.OffsetCommit} {
		b.ControlKey(key.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) {
			cut.Add(1)
			return nil, errors.New("the connection is closed"), true // once for each kind of request
		})
	}
	h := newInbox(true)
	run(t, b.consumer(), h, &warnings{})
	send(t, b.root(), "a")
	eventually(t, "message", func() bool { return h.count("a") > 0 })
	eventually(t, "commit", func() bool { return b.committed() == 1 })
	if n := cut.Load(); n < 6 {
		t.Errorf("only %d requests were cut off", n)
	}
}

// TestTrapTopicMissing: a group whose topic is missing joins a thousand times a second.
func TestTrapTopicMissing(t *testing.T) {
	b := newBroker(t)
	h, warn := newInbox(true), &warnings{}
	joins := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Observe: true, Count: -1})
	run(t, b.consumer(), h, warn)
	eventually(t, "warning", func() bool { return strings.Contains(warn.text("kafka_commands_topic_missing"), topic) })
	b.topic(topic)
	send(t, b.root(), "late")
	eventually(t, "message", func() bool { return h.count("late") == 1 })
	eventually(t, "no warning", func() bool { return warn.codes() == "" })

	// It goes away and comes back: no hot loop of joins.
	if err := b.DeleteTopic(topic); err != nil {
		t.Fatal(err)
	}
	eventually(t, "warning", func() bool { return strings.Contains(warn.text("kafka_commands_topic_missing"), topic) })
	if n := joins.Hits(); n > 3*maxShortGenerations {
		t.Errorf("%d joins", n)
	}
	b.topic(topic)
	send(t, b.root(), "again")
	eventually(t, "message", func() bool { return h.count("again") == 1 })
}

// TestTrapOffsetOutOfRange: the committed offset lies beyond the end. Without OffsetOutOfRangeError the reader is silent for ever.
func TestTrapOffsetOutOfRange(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	h, warn := newInbox(true), &warnings{}
	_, stop := run(t, b.consumer(), h, warn)
	p := b.root()
	send(t, p, "0", "1", "2", "3", "4")
	eventually(t, "commit of 5", func() bool { return b.committed() == 5 })
	stop()
	if err := b.DeleteTopic(topic); err != nil { // the group's commit goes with it, so it is put back
		t.Fatal(err)
	}
	b.topic(topic)
	commitAs(t, b, 5)
	send(t, p, "new")
	run(t, b.consumer(), h, warn)
	eventually(t, "the message of the new topic", func() bool { return h.count("new") == 1 })
	eventually(t, "commit of 1", func() bool { return b.committed() == 1 })
	if text := warn.text("kafka_commands_offset_lost"); !strings.Contains(text, topic) {
		t.Errorf("warning %q", text)
	}
}

// TestTrapSlowLink: a message that takes longer than the client's default ReadBatchTimeout (10 s) or than small messages may take is downloaded, or sent, again
// and again.
func TestTrapSlowLink(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as the timeouts")
	}
	b := newBroker(t)
	b.topic(topic)
	b.topic(events)
	const size = 12 << 20
	send(t, b.root(), string(make([]byte, size)))
	c := newTestProducer(t, b.config("events"), events)
	h := newInbox(true)
	b.proxy.Limit(size / 12) // 12 s each way
	written := make(chan error, 1)
	go func() { written <- c.Produce(t.Context(), []Message{{Topic: events, Value: make([]byte, size)}}) }()
	run(t, b.consumer(), h, &warnings{})
	for deadline := time.Now().Add(40 * time.Second); h.total() == 0 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
	}
	if h.total() != 1 {
		t.Errorf("received %d times, want once", h.total())
	}
	if err := <-written; err != nil {
		t.Errorf("write: %v", err)
	}
	if n := b.PartitionInfo(events, 0).HighWatermark; n != 1 {
		t.Errorf("written %d times", n)
	}
}

// TestTrapQueueCapacity: the client reads ahead by 100 messages, whatever their size.
func TestTrapQueueCapacity(t *testing.T) {
	b := newQuietBroker(t) // nothing else uses memory meanwhile
	b.topic(topic)
	const each, many = 6 << 20, 40
	p := b.root()
	for i := range many {
		send(t, p, string(make([]byte, each+i)))
	}
	p.Close()
	before := heap()
	h := newInbox(false)
	run(t, b.consumer(), h, &warnings{})
	fits := maxInFlightBytes / each
	eventually(t, "as many as fit", func() bool { return h.total() == fits })
	grown := int64(0)
	for range 10 { // the client reads on in the background
		never(t, "one more", func() bool { return h.total() > fits })
		grown = max(grown, heap()-before)
	}
	// The handler keeps nothing: what remains is a message that waits for room, one in the client's queue, and the batch that is being read.
	if most := int64(4 * MaxMessageBytes); grown > most {
		t.Errorf("the heap has grown by %d MiB, at most %d are right", grown>>20, most>>20)
	}
	t.Logf("%d MiB wait, the heap has grown by %d MiB", many*each>>20, grown>>20)
}

// heap is how much memory is in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestTrapRequiredAcks: the client's default waits for nobody.
func TestTrapRequiredAcks(t *testing.T) {
	b := newBroker(t)
	b.topic(events)
	var acks atomic.Int32
	acks.Store(99)
	b.ControlKey(kmsg.Produce.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) {
		acks.Store(int32(req.(*kmsg.ProduceRequest).Acks))
		return nil, nil, false
	})
	p := newTestProducer(t, b.config("events"), events)
	for name, value := range map[string][]byte{"small": []byte("1"), "large": make([]byte, largeMessage+1)} {
		if err := p.Produce(t.Context(), []Message{{Topic: events, Value: value}}); err != nil {
			t.Fatal(err)
		}
		if n := acks.Swap(99); n != -1 {
			t.Errorf("a %s message was written with acks %d, want -1: all in-sync replicas", name, n)
		}
	}
	// A broker that cannot have enough replicas write is not taken for one that has.
	b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: events, Err: kerr.NotEnoughReplicas, Count: writeAttempts})
	if err := p.Produce(t.Context(), []Message{{Topic: events, Value: []byte("2")}}); failure.ClassOf(err) != failure.Unavailable {
		t.Errorf("without enough replicas: %v", err)
	}
}

// TestTrapHiddenTLSError: the client says "Broker Not Available" when TLS fails, and nothing of why.
func TestTrapHiddenTLSError(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	b.topic(events)
	for name, config := range map[string]*tls.Config{
		"no certificate": {RootCAs: b.ca.Pool()},
		"another CA":     {RootCAs: testca.New(t).Pool(), Certificates: b.tls.Certificates},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := b.config("events")
			cfg.TLS = config
			p := newTestProducer(t, cfg, events)
			reason := func(what string, err error) {
				if f := failure.Of(err); f == nil || f.Code != "kafka_tls" || !strings.Contains(f.Message, "certificate") {
					t.Errorf("%s: %v", what, err)
				}
			}
			reason("the producer", p.Produce(t.Context(), []Message{{Topic: events, Value: []byte("x")}}))
			client := &kafka.Client{Addr: kafka.TCP(cfg.Brokers...), Transport: p.transport}
			_, hidden := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: "new", NumPartitions: 1, ReplicationFactor: 1}}})
			if problemOf(hidden) == tlsRefused {
				t.Errorf("the client does not hide the reason any more: %v", hidden)
			}
			reason("what the client hides", p.explain(t.Context(), hidden))
			consumer, refused := b.consumer(), &warnings{}
			consumer.TLS = config
			run(t, consumer, newInbox(true), refused)
			eventually(t, "the consumer's warning", func() bool { return strings.Contains(refused.text("kafka_commands_tls"), "certificate") })
		})
	}
}

// TestTrapLostGeneration: with the client's own reader a commit waits for ever while there is no generation, and one that comes late moves the offset of the
// new owner back. A commit through a generation that is lost is refused, and nothing waits for it.
func TestTrapLostGeneration(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	first := newInbox(false)
	// It does not notice by itself that it is out of the group.
	old, stop := runWith(t, b.consumer(), first, &warnings{}, func(t *timing) { t.session, t.heartbeat = time.Minute, 50*time.Second })
	p := b.root()
	send(t, p, "0", "1", "2")
	eventually(t, "three messages", func() bool { return first.total() == 3 })
	first.settle("0")
	eventually(t, "commit of 1", func() bool { return b.committed() == 1 })
	evictAll(t, b)
	second := newInbox(true)
	run(t, b.consumer(), second, &warnings{})
	eventually(t, "commit of 3 by the new owner", func() bool { return b.committed() == 3 })
	generation := old.Membership().GetGeneration()
	commits := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Observe: true, Count: -1})
	first.settle("1")
	eventually(t, "the late commit", func() bool { return commits.Hits() > 0 })
	eventually(t, "another generation of the old owner", func() bool { return old.Membership().GetGeneration() > generation })
	if n := b.committed(); n != 3 {
		t.Errorf("the offset was moved from 3 to %d", n)
	}
	stop() // ends in time
}

// TestHungHandlerKeepsThePartition: neither the fetch loop nor the heartbeat waits for a handler.
func TestHungHandlerKeepsThePartition(t *testing.T) {
	b := newBroker(t)
	b.topic(topic)
	const session = time.Second
	cfg := b.consumer()
	cfg.MaxInFlight = 3
	h := newInbox(false)
	c, _ := runWith(t, cfg, h, &warnings{}, func(t *timing) { t.session = session })
	p := b.root()
	send(t, p, "hung", "quick", "quick too")
	eventually(t, "all that may be in flight", func() bool { return h.total() == 3 })
	h.settle("quick", "quick too")
	generation, hung := c.Membership().GetGeneration(), time.Now()
	eventually(t, "three sessions' time", func() bool { return time.Since(hung) > 3*session })
	if now := c.Membership().GetGeneration(); now != generation || h.count("hung") != 1 {
		t.Errorf("generation %d became %d, delivered %d times", generation, now, h.count("hung"))
	}
	send(t, p, "next")
	h.settle("hung")
	eventually(t, "the next message", func() bool { return h.count("next") == 1 })
	eventually(t, "commit of what was settled behind it", func() bool { return b.committed() == 3 })
}
