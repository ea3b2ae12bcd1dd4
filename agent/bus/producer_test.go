package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/axion/runner-agent/agent/journal"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

const events = "runner.events"

func rootClient(t *testing.T, b *broker, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(b.proxy.Addr()),
		kgo.DialTLSConfig(b.tls.Clone()),
		kgo.SASL(scram.Auth{User: "root", Pass: password}.AsSha256Mechanism()),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// stored reads what the events topic holds.
func stored(t *testing.T, b *broker, n int) []*kgo.Record {
	t.Helper()
	cl := rootClient(t, b, kgo.ConsumeTopics(events), kgo.FetchMaxBytes(64<<20), kgo.FetchMaxPartitionBytes(64<<20))
	var out []*kgo.Record
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(out) < n && ctx.Err() == nil {
		out = append(out, cl.PollFetches(ctx).Records()...)
	}
	if len(out) < n {
		t.Fatalf("%d of %d events", len(out), n)
	}
	return out
}

func TestProducerFailures(t *testing.T) {
	b := newBroker(t)
	b.topic(events)
	b.topic(topic)
	for name, tc := range map[string]struct {
		change func(*Config)
		topic  string
		class  failure.Class
		code   string
	}{
		"foreign topic":  {nil, topic, failure.Denied, "kafka_denied"},
		"missing topic":  {nil, "runner.none", failure.Unavailable, "kafka_"}, // without the right to see it, missing and denied look alike
		"no certificate": {func(c *Config) { c.TLS = &tls.Config{RootCAs: b.ca.Pool()} }, events, failure.Unavailable, "kafka_tls"},
		"wrong password": {func(c *Config) {
			c.SASL = &runnerv1.SaslCredentials{Mechanism: c.SASL.GetMechanism(), Username: "a-1", Password: "wrong"}
		}, events, failure.Unavailable, "kafka_auth"},
		"no broker": {func(c *Config) { c.Brokers = []string{"127.0.0.1:1"} }, events, failure.Unavailable, "kafka_unreachable"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := b.config("events")
			if tc.change != nil {
				tc.change(&cfg)
			}
			p, warn := newTestProducer(t, cfg, events, topic, "runner.none"), &warnings{}
			p.state.warn = warn
			err := p.Produce(t.Context(), []Message{{Topic: tc.topic, Value: []byte("x")}})
			f := failure.Of(err)
			if f == nil || !strings.HasPrefix(f.Code, tc.code) || (tc.class != f.Class && name != "missing topic") {
				t.Fatalf("got %+v", f)
			}
			if warn.codes() == "" {
				t.Error("no warning")
			}
		})
	}
	p := newTestProducer(t, b.config("events"), events)
	if f := failure.Of(p.Produce(t.Context(), []Message{{Topic: events, Value: make([]byte, MaxMessageBytes)}})); f == nil || f.Class != failure.Invalid || f.Code != "event_too_large" {
		t.Errorf("too large: %+v", f)
	}
	if err := p.Produce(t.Context(), []Message{{Topic: events, Key: []byte("k"), Value: make([]byte, 12<<20)}}); err != nil {
		t.Errorf("a message of 12 MiB: %v", err)
	}
	if n := b.PartitionInfo(topic, 0).HighWatermark; n != 0 {
		t.Errorf("%d messages in a foreign topic", n)
	}
}

func TestProducerToleratesLostAnswers(t *testing.T) {
	b := newBroker(t)
	b.topic(events)
	p := newTestProducer(t, b.config("events"), events)
	b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: events, Err: kerr.RequestTimedOut, Count: 2}) // written, but the answer says otherwise
	if err := p.Produce(t.Context(), []Message{{Topic: events, Value: []byte("1")}, {Topic: events, Value: []byte("2")}}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range stored(t, b, 6) {
		got = append(got, string(r.Value))
	}
	if !slices.Equal(got, []string{"1", "2", "1", "2", "1", "2"}) {
		t.Errorf("got %v", got)
	}
}

func event(id string, size int) envelope.Envelope {
	return envelope.Envelope{ID: id, Type: "axion.runner.v1.StackProgress", Source: "/agents/a-1", ContentType: envelope.Protobuf, Data: make([]byte, size)}
}

func publish(t *testing.T, store Outbox, sink Sink, warn Warner) *Publisher {
	t.Helper()
	p, err := NewPublisher(PublisherConfig{EventsTopic: events}, PublisherDeps{
		Outbox: store, Producer: sink, Log: testLog(t), Warn: warn,
		Sign: func(e *envelope.Envelope) error { e.Signature = []byte("signed"); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	p.retry.Max = 200 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return p
}

func newJournal(t *testing.T) *journal.Bolt {
	t.Helper()
	store, err := journal.Open(filepath.Join(t.TempDir(), "journal.db"), journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

func TestPublisherKeepsOrderThroughBrokerRestart(t *testing.T) {
	b := newBroker(t)
	b.topic(events)
	store, warn := newJournal(t), &warnings{}
	producer := newTestProducer(t, b.config("events"), events)
	producer.state.warn = warn
	publish(t, store, producer, warn)
	var want []string
	add := func(n int) {
		for range n {
			id := fmt.Sprintf("e%04d", len(want))
			var err error
			if len(want)%10 == 9 {
				_, err = store.Decide("c-"+id, "prod", 1, event(id, 10))
			} else {
				err = store.Append(event(id, 10), "a-1")
			}
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, id)
		}
	}
	add(50)
	eventually(t, "the outbox is empty", func() bool { return store.Len() == 0 })
	b.Close()
	add(300)
	eventually(t, "warning", func() bool { return warn.text("kafka_events_unreachable") != "" })
	if store.Len() != 300 {
		t.Errorf("%d events wait, want 300", store.Len())
	}
	b.start()
	add(50)
	eventually(t, "the outbox is empty", func() bool { return store.Len() == 0 })
	if codes := warn.codes(); codes != "" {
		t.Errorf("warnings %s", codes)
	}
	select {
	case <-store.Settled(want[9]):
	default:
		t.Error("the outcome is not settled")
	}
	var got []string
	seen := map[string]bool{}
	for _, r := range stored(t, b, len(want)) {
		e, err := envelope.Parse(headers(r), r.Value, 0)
		if err != nil {
			t.Fatal(err)
		}
		if string(e.Signature) != "signed" {
			t.Errorf("%s is not signed", e.ID)
		}
		key := "a-1"
		if strings.HasSuffix(e.ID, "9") {
			key = "prod"
		}
		if string(r.Key) != key {
			t.Errorf("%s has key %s", e.ID, r.Key)
		}
		if !seen[e.ID] { // duplicates are allowed, the first one counts
			got = append(got, e.ID)
		}
		seen[e.ID] = true
	}
	if !slices.Equal(got, want) {
		t.Errorf("order\n got %v\nwant %v", got, want)
	}
}

func headers(r *kgo.Record) []envelope.Header {
	var out []envelope.Header
	for _, h := range r.Headers {
		out = append(out, envelope.Header{Key: h.Key, Value: h.Value})
	}
	return out
}

func TestPublisherSetsTooLargeAside(t *testing.T) {
	b := newBroker(t)
	if err := b.CreateTopic(events, 1, map[string]string{"max.message.bytes": "10000"}); err != nil {
		t.Fatal(err)
	}
	store, warn := newJournal(t), &warnings{}
	for i, size := range []int{9000, 100_000, 9000} {
		if err := store.Append(event(fmt.Sprint(i), size), "k"); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, store, newTestProducer(t, b.config("events"), events), warn)
	eventually(t, "the outbox is empty", func() bool { return store.Len() == 0 })
	if got := stored(t, b, 2); len(got) != 2 {
		t.Errorf("%d events", len(got))
	}
	if text := warn.text("kafka_events_refused"); !strings.Contains(text, "event 1 ") {
		t.Errorf("warning %q", text)
	}
}

// script is a sink that does as it is told, to test what no broker does on demand.
type script struct {
	mu   sync.Mutex
	errs []error
	got  []string
}

func (s *script) Produce(_ context.Context, ms []Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.errs) > 0 {
		err := s.errs[0]
		s.errs = s.errs[1:]
		return err
	}
	for _, m := range ms {
		for _, h := range m.Headers {
			if h.Key == "ce_id" {
				s.got = append(s.got, string(h.Value))
			}
		}
	}
	return nil
}

func TestPublisherIsPatient(t *testing.T) {
	store := newJournal(t)
	away := failure.New(failure.Unavailable, "kafka_unreachable", "", "away")
	sink := &script{errs: slices.Repeat([]error{away}, 7)}
	publish(t, store, sink, &warnings{})
	for i := range 3 {
		if err := store.Append(event(fmt.Sprint(i), 1), "k"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the outbox is empty", func() bool { return store.Len() == 0 })
	if !slices.Equal(sink.got, []string{"0", "1", "2"}) {
		t.Errorf("got %v", sink.got)
	}
}

func TestPublisherWithFailingJournal(t *testing.T) {
	warn := &warnings{}
	sink := &script{}
	publish(t, &journal.Failing{Err: fmt.Errorf("no disk")}, sink, warn)
	eventually(t, "warning", func() bool { return strings.Contains(warn.text("kafka_events_stuck"), "no disk") })
	if len(sink.got) != 0 {
		t.Errorf("sent %v", sink.got)
	}
}

// forgetful is an outbox that cannot take events out for a while.
type forgetful struct {
	*journal.Bolt
	mu    sync.Mutex
	fails int
}

func (f *forgetful) Acked(seqs ...uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails > 0 {
		f.fails--
		return errors.New("no disk")
	}
	return f.Bolt.Acked(seqs...)
}

func TestPublisherDoesNotRepeatItself(t *testing.T) {
	store, warn, sink := &forgetful{Bolt: newJournal(t), fails: 3}, &warnings{}, &script{}
	if err := store.Append(event("1", 1), "k"); err != nil {
		t.Fatal(err)
	}
	publish(t, store, sink, warn)
	eventually(t, "the outbox is empty", func() bool { return store.Len() == 0 })
	if !slices.Equal(sink.got, []string{"1"}) {
		t.Errorf("sent %v", sink.got)
	}
	eventually(t, "no warning", func() bool { return warn.codes() == "" })
}
