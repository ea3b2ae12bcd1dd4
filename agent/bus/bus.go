// Package bus is the agent's side of Kafka: a Consumer that loses no command and never moves an offset back, a Producer, and a Publisher that drains the
// outbox. It is the only package that knows the Kafka client; nothing of the client appears in what it exports, so that another can take its place.
//
// Delivery is at least once. An offset is committed only when its message and all before it in the partition are settled, and only by the member that owns the
// partition at that moment.
//
// The client has traps, and each has a test that fails when it is fallen into (go test -run TestTrap):
//
//	a bare io.EOF is a connection that was cut, not the end                 TestTrapEOF
//	a group joins in a hot loop while its topic is missing                  TestTrapTopicMissing
//	a reader whose offset is out of range is silent for ever                TestTrapOffsetOutOfRange
//	large messages on a slow link outlast ReadBatchTimeout and WriteTimeout TestTrapSlowLink
//	QueueCapacity reads 100 messages ahead, whatever their size             TestTrapQueueCapacity
//	a writer's default is to wait for no replica                            TestTrapRequiredAcks
//	a client says "Broker Not Available" when TLS fails                     TestTrapHiddenTLSError
//	CommitMessages waits without a generation and commits in a later one    TestTrapLostGeneration
//	a member whose broker was away is forgotten, and holds its partition    TestConsumerIsBackSoonAfterItsBroker
package bus

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

// Bounds of what goes over Kafka.
const (
	// MaxMessageBytes is the size of the largest message: a copy in the dead letter queue of the largest command.
	MaxMessageBytes = 16 << 20
	// batchBytes leaves room for what the record batch adds around a message.
	batchBytes = MaxMessageBytes - 64<<10
	// maxBrokers bounds the list of bootstrap brokers.
	maxBrokers = 16
)

// Times that hold for every client.
const (
	// dialTimeout bounds a connection's set-up: the name's resolution, TCP and TLS.
	dialTimeout = 5 * time.Second
	// quietTimeout bounds a read or write for which the client sets no limit itself (it sets none while it authenticates).
	quietTimeout = 30 * time.Second
	// keepAlive finds dead connections below TLS.
	keepAlive = 30 * time.Second
	// minRetry is the shortest pause after a failure.
	minRetry = time.Millisecond
)

// Message is a Kafka message. Topic, Key, Value and Headers are what is sent; the rest is known of received ones.
type Message struct {
	Topic     string
	Partition int
	Offset    int64
	Key       []byte
	Value     []byte
	Headers   []envelope.Header
	Time      time.Time
	// GroupGeneration is the generation of the consumer group in which the message's partition was assigned to this member.
	GroupGeneration int32
}

// Warner is told what is not as it should be. Codes of this package are "kafka_<name>_<problem>", with the Config's name and one of the problems
// "unreachable", "tls", "auth", "denied", "topic_missing", "offset_lost", "refused", "stuck" and "failing".
type Warner interface {
	Set(code string, severity runnerv1.HealthSeverity, title, text string)
	Clear(code string)
}

// Config says how to reach the brokers.
type Config struct {
	// Name tells the agent's Kafka clients apart in logs and warnings, for example "commands", "cluster", "events".
	Name string
	// Brokers are "host:port"; 1 to 16.
	Brokers []string
	// TLS is nil for a connection without TLS. A GetClientCertificate callback in it is asked for each new connection.
	TLS *tls.Config
	// SASL may be nil.
	SASL *runnerv1.SaslCredentials
	// ClientID is what the brokers' logs call the agent.
	ClientID string
}

func (c Config) validate() error {
	switch {
	case c.Name == "":
		return errors.New("kafka client has no name")
	case len(c.Brokers) == 0 || len(c.Brokers) > maxBrokers:
		return fmt.Errorf("kafka client %s has %d brokers, 1 to %d are needed", c.Name, len(c.Brokers), maxBrokers)
	}
	for _, b := range c.Brokers {
		if b == "" {
			return fmt.Errorf("kafka client %s has a broker without an address", c.Name)
		}
	}
	if _, err := mechanism(c.SASL); err != nil {
		return fmt.Errorf("kafka client %s: %w", c.Name, err)
	}
	return nil
}

func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
