package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

func mechanism(c *runnerv1.SaslCredentials) (sasl.Mechanism, error) {
	switch c.GetMechanism() {
	case runnerv1.SaslMechanism_SASL_MECHANISM_UNSPECIFIED:
		if c != nil {
			return nil, errors.New("SASL credentials have no mechanism")
		}
		return nil, nil
	case runnerv1.SaslMechanism_SASL_MECHANISM_PLAIN:
		return plain.Mechanism{Username: c.GetUsername(), Password: c.GetPassword()}, nil
	case runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_256:
		return scram.Mechanism(scram.SHA256, c.GetUsername(), c.GetPassword())
	case runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_512:
		return scram.Mechanism(scram.SHA512, c.GetUsername(), c.GetPassword())
	default:
		return nil, fmt.Errorf("SASL mechanism %d is not known", c.GetMechanism())
	}
}

// newDialer returns a dialer for a valid configuration.
func newDialer(c Config) *kafka.Dialer {
	m, _ := mechanism(c.SASL) // validate has seen it
	return &kafka.Dialer{
		ClientID: c.ClientID, Timeout: dialTimeout, TLS: c.TLS, SASLMechanism: m,
		DialFunc: dialBounded,
	}
}

// newTransport returns the connections of a client that is not a consumer. Without the topics' names it would fetch metadata of all topics for ever.
func newTransport(c Config, topics []string) *kafka.Transport {
	m, _ := mechanism(c.SASL)
	return &kafka.Transport{
		ClientID: c.ClientID, DialTimeout: dialTimeout, TLS: c.TLS, SASL: m, MetadataTopics: topics,
		Dial: dialBounded,
	}
}

func dialBounded(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{KeepAlive: keepAlive}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &boundedConn{Conn: conn}, nil
}

// boundedConn is a connection on which nothing waits for ever: where no deadline is set, a read or a write ends after quietTimeout. The client reads only
// when it expects an answer, so an idle connection is not cut.
type boundedConn struct {
	net.Conn
	readLimited, writeLimited atomic.Bool
}

func (c *boundedConn) Read(b []byte) (int, error) {
	if !c.readLimited.Load() {
		_ = c.Conn.SetReadDeadline(time.Now().Add(quietTimeout))
	}
	return c.Conn.Read(b)
}

func (c *boundedConn) Write(b []byte) (int, error) {
	if !c.writeLimited.Load() {
		_ = c.Conn.SetWriteDeadline(time.Now().Add(quietTimeout))
	}
	return c.Conn.Write(b)
}

func (c *boundedConn) SetReadDeadline(t time.Time) error {
	c.readLimited.Store(!t.IsZero())
	return c.Conn.SetReadDeadline(t)
}

func (c *boundedConn) SetWriteDeadline(t time.Time) error {
	c.writeLimited.Store(!t.IsZero())
	return c.Conn.SetWriteDeadline(t)
}

func (c *boundedConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// probe connects to one of the brokers and asks for the topics. The client hides the reason when TLS fails in the middle of an operation; here it is seen.
func probe(ctx context.Context, dialer *kafka.Dialer, brokers, topics []string) error {
	var worst error
	for _, broker := range brokers {
		err := probeBroker(ctx, dialer, broker, topics)
		if err == nil {
			return nil
		}
		// A broker that answers says more than one that is away.
		if worst == nil || problemOf(worst) == unreachable {
			worst = fmt.Errorf("broker %s: %w", broker, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return worst
}

func probeBroker(ctx context.Context, dialer *kafka.Dialer, broker string, topics []string) error {
	conn, err := dialer.DialContext(ctx, "tcp", broker)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	for _, topic := range topics {
		if _, err := conn.ReadPartitions(topic); err != nil {
			return fmt.Errorf("topic %s: %w", topic, err)
		}
	}
	return nil
}
