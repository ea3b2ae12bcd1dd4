package operator

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/axion/runner-agent/plane/ledger"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/proto/deadletter"
	"github.com/axion/runner-agent/proto/envelope"
)

const (
	dlqTopic  = "runner.commands.dlq"
	prodTopic = "runner.commands.prod"
)

// directory knows one agent and its cluster.
type directory struct{}

func (directory) Owner(_ context.Context, topic string) (string, string, bool, error) {
	return "prod", "", topic == prodTopic, nil
}

func (directory) Cluster(_ context.Context, agentID string) (string, bool, error) {
	return "prod", agentID == "a-1", nil
}

// withLetters runs a broker with these dead letters and waits until the plane has read them.
func (p *plane) withLetters(records ...*kgo.Record) {
	p.t.Helper()
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(1), kfake.SeedTopics(1, dlqTopic, prodTopic))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(broker.Close)
	p.brokers = broker.ListenAddrs()
	client, err := kgo.NewClient(kgo.SeedBrokers(p.brokers...))
	if err != nil {
		p.t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(p.t.Context(), records...).FirstErr(); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.letters.Run(ctx) }()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		list, err := p.client.ListDeadLetters(p.t.Context(), &planev1.ListDeadLettersRequest{})
		if err != nil {
			p.t.Fatal(err)
		}
		if len(list.GetLetters()) == len(records) {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%d letters came", len(list.GetLetters()))
		}
	}
}

func letterRecord(at int64, agentID string, value []byte) *kgo.Record {
	r := &kgo.Record{Topic: dlqTopic, Key: []byte("shop"), Value: value}
	original := []envelope.Header{{Key: "ce_id", Value: []byte("c-1")}, {Key: "big\xff", Value: bytes.Repeat([]byte("h"), 10_000)}}
	for _, h := range (deadletter.Notice{AgentID: agentID, Topic: prodTopic, Offset: at, Class: "invalid", Code: "unreadable", Reason: "no StackDeploy"}).Headers(original) {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return r
}

func TestDeadLetters(t *testing.T) {
	p := start(t, ledger.Config{})
	p.withLetters(letterRecord(1, "a-1", []byte("one")), letterRecord(2, "a-2", nil), letterRecord(3, "a-1", bytes.Repeat([]byte("x"), 100_000)))

	page, err := p.client.ListDeadLetters(t.Context(), &planev1.ListDeadLettersRequest{Limit: 2})
	if err != nil || len(page.GetLetters()) != 2 || page.GetLetters()[0].GetOffset() != 3 || page.GetNext() != page.GetLetters()[1].GetId() {
		t.Fatalf("%v, %v", page, err)
	}
	rest, err := p.client.ListDeadLetters(t.Context(), &planev1.ListDeadLettersRequest{Limit: 2, Before: page.GetNext()})
	if err != nil || len(rest.GetLetters()) != 1 || rest.GetNext() != 0 {
		t.Fatalf("%v, %v", rest, err)
	}
	one := rest.GetLetters()[0]
	if !one.GetVerified() || one.GetClusterId() != "prod" || one.GetAgentId() != "a-1" || one.GetCommandId() != "c-1" || one.GetCode() != "unreadable" ||
		one.GetAttempts() != 1 || one.GetFirstAt() == nil || one.GetReplayedAt() != nil || one.GetValueSize() != 3 {
		t.Errorf("%v", one)
	}

	large, err := p.client.GetDeadLetter(t.Context(), &planev1.GetDeadLetterRequest{Id: page.GetLetters()[0].GetId()})
	if err != nil || len(large.GetValue()) != defaultShownValue || large.GetLetter().GetValueSize() != 100_000 || string(large.GetKey()) != "shop" {
		t.Errorf("%d bytes of %d, key %q, %v", len(large.GetValue()), large.GetLetter().GetValueSize(), large.GetKey(), err)
	}
	if h := large.GetHeaders(); len(h) != 2 || h[0].GetKey() != "ce_id" || h[1].GetKey() != "big\uFFFD" || len(h[1].GetValue()) != maxShownPart {
		t.Errorf("%d headers", len(h))
	}
	short, err := p.client.GetDeadLetter(t.Context(), &planev1.GetDeadLetterRequest{Id: one.GetId(), MaxValueBytes: 2})
	if err != nil || string(short.GetValue()) != "on" {
		t.Errorf("%v, %v", short, err)
	}

	replayed, err := p.client.ReplayDeadLetter(t.Context(), &planev1.ReplayDeadLetterRequest{Id: one.GetId()})
	if err != nil || replayed.GetTopic() != prodTopic {
		t.Errorf("%v, %v", replayed, err)
	}
	if _, err := p.client.DropDeadLetter(t.Context(), &planev1.DropDeadLetterRequest{Id: one.GetId()}); err != nil {
		t.Error(err)
	}
}

func TestDeadLetterRefusals(t *testing.T) {
	p := start(t, ledger.Config{})
	p.withLetters(letterRecord(1, "a-2", nil))
	ctx := t.Context()
	for name, tc := range map[string]struct {
		call func() error
		code string
	}{
		"page": {func() error {
			_, err := p.client.ListDeadLetters(ctx, &planev1.ListDeadLettersRequest{Limit: 1001})
			return err
		}, "bad_limit"},
		"value": {func() error {
			_, err := p.client.GetDeadLetter(ctx, &planev1.GetDeadLetterRequest{Id: 1, MaxValueBytes: 16<<20 + 1})
			return err
		}, "bad_limit"},
		"get": {func() error {
			_, err := p.client.GetDeadLetter(ctx, &planev1.GetDeadLetterRequest{Id: 1 << 63})
			return err
		}, "no_such_letter"},
		"replay": {func() error {
			_, err := p.client.ReplayDeadLetter(ctx, &planev1.ReplayDeadLetterRequest{Id: 1})
			return err
		}, "unverified_letter"},
		"drop": {func() error {
			_, err := p.client.DropDeadLetter(ctx, &planev1.DropDeadLetterRequest{Id: 2})
			return err
		}, "no_such_letter"},
	} {
		if got := codeOf(tc.call()); got != tc.code {
			t.Errorf("%s: got %q, want %q", name, got, tc.code)
		}
	}
}
