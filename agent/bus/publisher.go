package bus

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/axion/runner-agent/agent/journal"
	"github.com/axion/runner-agent/internal/backoff"
	"github.com/axion/runner-agent/internal/crashpoint"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

// A publisher takes this much from the outbox at once; a single event may be larger.
const (
	publishEntries = 200
	publishBytes   = 512 << 10
)

// Outbox is where events wait.
type Outbox interface {
	Peek(max int, maxBytes int64) ([]journal.Entry, error)
	Acked(seqs ...uint64) error
	Pending() <-chan struct{}
}

// Sink is where they go; Producer is one.
type Sink interface {
	Produce(ctx context.Context, messages []Message) error
}

// PublisherConfig configures a Publisher.
type PublisherConfig struct {
	// Name tells it apart in logs and warnings; "" means "events".
	Name string
	// EventsTopic is where the events go.
	EventsTopic string
}

// PublisherDeps are what a Publisher needs.
type PublisherDeps struct {
	Outbox   Outbox
	Producer Sink
	// Sign signs an event when it is sent, with the key that the agent has then.
	Sign func(*envelope.Envelope) error
	Log  *slog.Logger
	Warn Warner
}

// Publisher sends what waits in the outbox, oldest first, and takes it out only when Kafka has it. It never gives up.
type Publisher struct {
	cfg   PublisherConfig
	deps  PublisherDeps
	state *state
	retry backoff.Backoff
}

// NewPublisher checks the configuration.
func NewPublisher(cfg PublisherConfig, deps PublisherDeps) (*Publisher, error) {
	if cfg.Name == "" {
		cfg.Name = "events"
	}
	if cfg.EventsTopic == "" {
		return nil, fmt.Errorf("kafka client %s has no topic", cfg.Name)
	}
	return &Publisher{
		cfg: cfg, deps: deps, state: newState(cfg.Name, deps.Warn, deps.Log),
		retry: backoff.Backoff{Floor: minRetry, First: 100 * time.Millisecond, Max: 5 * time.Second},
	}, nil
}

// Run publishes until ctx ends and returns nil then.
func (p *Publisher) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		entries, err := p.deps.Outbox.Peek(publishEntries, publishBytes)
		if err == nil && len(entries) == 0 {
			select {
			case <-ctx.Done():
			case <-p.deps.Outbox.Pending():
			}
			continue
		}
		if err == nil {
			err = p.publish(ctx, entries)
		}
		switch {
		case err == nil:
			p.retry.Reset()
			p.deps.Warn.Clear(p.state.code(stuck))
		case ctx.Err() == nil:
			p.stuck(err)
			p.retry.Wait(ctx)
		}
	}
	return nil
}

// stuck reports why nothing is sent.
func (p *Publisher) stuck(err error) {
	f := failure.Of(err)
	p.state.log.Debug("events wait", "code", f.Code, "reason", f.Message)
	if f.Class == failure.Internal { // everything else is reported where it happens: by the producer and by the journal
		p.state.remark(stuck, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "events cannot be sent: "+f.Message)
	}
}

// publish sends entries as one batch and takes them out of the outbox. One that is too large for the topic must not hold up the others: it is found and set
// aside.
func (p *Publisher) publish(ctx context.Context, entries []journal.Entry) error {
	messages := make([]Message, len(entries))
	seqs := make([]uint64, len(entries))
	for i, e := range entries {
		m, err := p.message(e)
		if err != nil {
			return err
		}
		messages[i], seqs[i] = m, e.Seq
	}
	err := p.deps.Producer.Produce(ctx, messages)
	if failure.ClassOf(err) != failure.Invalid {
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Outcome {
				crashpoint.At(crashpoint.Published)
			}
		}
		return p.acked(ctx, seqs)
	}
	if len(entries) > 1 {
		for i := range entries {
			if err := p.publish(ctx, entries[i:i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	p.refuse(entries[0], err)
	return p.acked(ctx, seqs)
}

// acked takes events out of the outbox. If the journal cannot do that for now, they are not sent again meanwhile.
func (p *Publisher) acked(ctx context.Context, seqs []uint64) error {
	for {
		err := p.deps.Outbox.Acked(seqs...)
		if err == nil {
			return nil
		}
		p.stuck(err)
		if !p.retry.Wait(ctx) {
			return ctx.Err()
		}
	}
}

func (p *Publisher) message(e journal.Entry) (Message, error) {
	ev := e.Envelope
	if err := p.deps.Sign(&ev); err != nil {
		return Message{}, fmt.Errorf("sign event %s: %w", ev.ID, err)
	}
	return Message{Topic: p.cfg.EventsTopic, Key: []byte(e.Key), Value: ev.Data, Headers: ev.Headers()}, nil
}

// refuse gives up on an event that Kafka will never take. A lost outcome is not silent: the plane sends the command again, and this warning stays.
func (p *Publisher) refuse(e journal.Entry, err error) {
	text := fmt.Sprintf("event %s (%s, %d bytes) was dropped: %v; raise max.message.bytes of topic %s", e.Envelope.ID, e.Envelope.Type, len(e.Envelope.Data), err, p.cfg.EventsTopic)
	p.state.log.Error(text)
	p.state.remark(refused, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, text)
}
