package bus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/segmentio/kafka-go"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// problem is what keeps a Kafka client from working, as a person would name it.
type problem string

const (
	unreachable  problem = "unreachable"
	tlsRefused   problem = "tls"
	authFailed   problem = "auth"
	denied       problem = "denied"
	topicMissing problem = "topic_missing"
	offsetLost   problem = "offset_lost"
	refused      problem = "refused"
	stuck        problem = "stuck"
	failing      problem = "failing"
)

// problems are all that replace each other: a client has at most one of them.
var exclusive = [...]problem{unreachable, tlsRefused, authFailed, denied, topicMissing, failing}

// title and hint are for the warning.
func (p problem) title() string {
	switch p {
	case unreachable:
		return "Kafka broker unreachable"
	case tlsRefused:
		return "TLS with the Kafka broker refused"
	case authFailed:
		return "Kafka refused the credentials"
	case denied:
		return "Kafka denies access"
	case topicMissing:
		return "Kafka topic missing"
	case offsetLost:
		return "Kafka topic lost messages"
	case stuck:
		return "events are not sent"
	case refused:
		return "Kafka refused an event"
	default:
		return "Kafka failing"
	}
}

func (p problem) hint() string {
	switch p {
	case unreachable:
		return "check the brokers' addresses, the network and the brokers"
	case tlsRefused:
		return "check the agent's certificate, the brokers' CA and both clocks"
	case authFailed:
		return "check the SASL credentials; the control plane gives new ones when the agent enrols or renews"
	case denied:
		return "the agent's access rights are missing or were taken away; check whether it was removed from the control plane"
	case topicMissing:
		return "the control plane creates topics; wait, or create it by hand"
	default:
		return ""
	}
}

// problemOf names what an error of the client means.
func problemOf(err error) problem {
	var code kafka.Error
	if errors.As(err, &code) {
		switch code {
		case kafka.SASLAuthenticationFailed, kafka.UnsupportedSASLMechanism, kafka.IllegalSASLState:
			return authFailed
		case kafka.TopicAuthorizationFailed, kafka.GroupAuthorizationFailed, kafka.ClusterAuthorizationFailed:
			return denied
		case kafka.UnknownTopicOrPartition, kafka.UnknownTopicID:
			return topicMissing
		case kafka.BrokerNotAvailable, kafka.LeaderNotAvailable, kafka.NetworkException:
			return unreachable
		}
		return failing
	}
	var (
		verification *tls.CertificateVerificationError
		authority    x509.UnknownAuthorityError
		host         x509.HostnameError
		invalid      x509.CertificateInvalidError
		record       tls.RecordHeaderError
		alert        tls.AlertError
		op           *net.OpError
		network      net.Error
	)
	switch {
	case errors.As(err, &verification), errors.As(err, &authority), errors.As(err, &host), errors.As(err, &invalid), errors.As(err, &record), errors.As(err, &alert):
		return tlsRefused
	case errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"):
		return tlsRefused // how crypto/tls reports an alert
	case errors.As(err, &network), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.DeadlineExceeded):
		return unreachable
	}
	return failing
}

// asFailure turns an error of the client into one for a person.
func asFailure(err error) *failure.Error {
	var own *failure.Error
	if errors.As(err, &own) {
		return failure.Of(err)
	}
	p := problemOf(err)
	class := failure.Unavailable
	if p == denied {
		class = failure.Denied
	}
	return failure.New(class, "kafka_"+string(p), "", "%s: %w", p.title(), err).WithHint(p.hint())
}

// state tells the outside how a client is. It may be used from any goroutine.
type state struct {
	name string
	warn Warner
	log  *slog.Logger

	mu   sync.Mutex
	last string
}

func newState(name string, warn Warner, log *slog.Logger) *state {
	return &state{name: name, warn: warn, log: orDiscard(log).With("kafka_client", name)}
}

func (s *state) code(p problem) string { return "kafka_" + s.name + "_" + string(p) }

// trouble reports a problem, in place of the one before. The same text is logged once.
func (s *state) trouble(err error) {
	p := problemOf(err)
	text := err.Error()
	if hint := p.hint(); hint != "" {
		text += "; " + hint
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != text {
		s.log.Warn(p.title(), "problem", string(p), "error", err)
	}
	s.last = text
	for _, other := range exclusive {
		if other != p {
			s.warn.Clear(s.code(other))
		}
	}
	s.warn.Set(s.code(p), runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, p.title(), text)
}

// remark reports something that stands beside the other problems, until it is cleared or the process ends.
func (s *state) remark(p problem, severity runnerv1.HealthSeverity, text string) {
	s.warn.Set(s.code(p), severity, p.title(), text)
}

// well ends what trouble reported.
func (s *state) well() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != "" {
		s.log.Info("Kafka works again")
	}
	s.last = ""
	for _, p := range exclusive {
		s.warn.Clear(s.code(p))
	}
}
