package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/axion/runner-agent/proto/failure"
)

const (
	// writeTimeout bounds one attempt to write small messages, largeWriteTimeout one to write large ones: 12 MiB over a slow link take half a minute.
	writeTimeout      = 5 * time.Second
	largeWriteTimeout = 60 * time.Second
	// largeMessage is the size above which the longer limit holds.
	largeMessage = 256 << 10
	// writeAttempts is small: whoever needs more patience has it itself.
	writeAttempts = 3
	// batchTimeout is how long the client waits for more messages; all of one call come at once.
	batchTimeout = 5 * time.Millisecond
	// maxBatch is how many messages of one call go out together. Within that, messages for one partition are written all or none, in their order.
	maxBatch = 1000
	// closeTimeout bounds Close.
	closeTimeout = 5 * time.Second
)

// ProducerConfig configures a Producer.
type ProducerConfig struct {
	Config
	// Topics are all topics that are written; 1 or more.
	Topics []string
}

// ProducerDeps are what a Producer needs.
type ProducerDeps struct {
	Log  *slog.Logger
	Warn Warner
}

// Producer writes messages and waits until all in-sync replicas have them. A lost answer makes a duplicate: readers know messages by their ids.
type Producer struct {
	cfg       ProducerConfig
	dialer    *kafka.Dialer
	transport *kafka.Transport
	small     *kafka.Writer
	large     *kafka.Writer
	state     *state
}

// NewProducer checks the configuration. It does not connect.
func NewProducer(cfg ProducerConfig, deps ProducerDeps) (*Producer, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if len(cfg.Topics) == 0 {
		return nil, fmt.Errorf("kafka client %s has no topics", cfg.Name)
	}
	p := &Producer{cfg: cfg, dialer: newDialer(cfg.Config), transport: newTransport(cfg.Config, cfg.Topics), state: newState(cfg.Name, deps.Warn, deps.Log)}
	p.small, p.large = p.newWriter(writeTimeout), p.newWriter(largeWriteTimeout)
	return p, nil
}

func (p *Producer) newWriter(timeout time.Duration) *kafka.Writer {
	return &kafka.Writer{
		Addr: kafka.TCP(p.cfg.Brokers...), Transport: p.transport, RequiredAcks: kafka.RequireAll,
		Balancer:  kafka.Murmur2Balancer{Consistent: true}, // as the Java client: one key, one partition
		BatchSize: maxBatch, BatchBytes: batchBytes, BatchTimeout: batchTimeout,
		MaxAttempts: writeAttempts, WriteTimeout: timeout, ReadTimeout: timeout,
		ErrorLogger: newClientLog(p.state.log),
	}
}

// Produce writes messages and returns when Kafka has them. After an error some may have been written; a caller that tries again writes those twice.
// Failures: class Unavailable with a code "kafka_..." that says why; class Denied, "kafka_denied"; class Invalid, "event_too_large".
func (p *Producer) Produce(ctx context.Context, messages []Message) error {
	writer, limit := p.small, writeAttempts*writeTimeout+dialTimeout
	out := make([]kafka.Message, len(messages))
	for i, m := range messages {
		out[i] = toKafka(m)
		if len(m.Value) > largeMessage {
			writer, limit = p.large, writeAttempts*largeWriteTimeout+dialTimeout
		}
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := writer.WriteMessages(bounded, out...)
	switch {
	case err == nil:
		p.state.well()
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	f := p.explain(ctx, err)
	if f.Class != failure.Invalid {
		p.state.trouble(f)
	}
	return f
}

// explain finds out why a write failed.
func (p *Producer) explain(ctx context.Context, err error) *failure.Error {
	var large kafka.MessageTooLargeError
	if errors.As(err, &large) {
		return failure.New(failure.Invalid, "event_too_large", "", "a message for topic %s is larger than %d bytes", large.Message.Topic, batchBytes)
	}
	var each kafka.WriteErrors
	if errors.As(err, &each) {
		for _, one := range each {
			if one != nil {
				err = one
				break
			}
		}
	}
	if errors.Is(err, kafka.MessageSizeTooLarge) {
		return failure.New(failure.Invalid, "event_too_large", "", "Kafka refuses a message as too large: %w", err).
			WithHint("raise max.message.bytes of the topic")
	}
	if problemOf(err) == unreachable { // the client says so whenever TLS or SASL fails, too
		if why := probe(ctx, p.dialer, p.cfg.Brokers, nil); why != nil {
			err = why
		}
	}
	return asFailure(err)
}

// Close writes what is under way and closes the connections. It gives up after its limit, a broker that does not answer notwithstanding.
func (p *Producer) Close() {
	done := make(chan struct{})
	go func() {
		_ = p.small.Close()
		_ = p.large.Close()
		p.transport.CloseIdleConnections()
		close(done)
	}()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		p.state.log.Warn("the broker does not answer, connections are dropped")
	}
}

func toKafka(m Message) kafka.Message {
	out := kafka.Message{Topic: m.Topic, Key: m.Key, Value: m.Value}
	for _, h := range m.Headers {
		out.Headers = append(out.Headers, kafka.Header{Key: h.Key, Value: h.Value})
	}
	return out
}
