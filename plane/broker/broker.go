// Package broker is the plane's side of Kafka: it runs the embedded broker or uses a real one, makes the topics, and gives each agent exactly the rights that it
// needs: to read its own commands, and to write events.
//
// The embedded broker (franz-go's kfake) speaks the Kafka protocol from within the plane's process and keeps its data in a folder. It is one process without
// replication, meant for development and small fleets.
package broker

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

const (
	clientID = "axion-plane"
	// planeUser is the plane's own user on the embedded broker; an agent's id begins with "a-", so it can never be one.
	planeUser = "plane"
	// retentionEvery is how often the embedded broker drops what is older than its topics keep: it does not by itself.
	retentionEvery = 10 * time.Minute
	// requestTimeout bounds a request of the plane to the broker.
	requestTimeout = 20 * time.Second
	// minSecret is the least length of the secret from which passwords are made, in bytes.
	minSecret = 16
)

// Config says which broker. Without Embedded, Brokers name a real Kafka.
type Config struct {
	// Embedded runs the broker in this process.
	Embedded bool

	// DataDir is the embedded broker's folder.
	DataDir string
	// Listen is its address, "host:port".
	Listen string
	// Advertise is the host, or "host:port", under which agents reach it; "" means Listen.
	Advertise string
	// ServerTLS is its certificate and the CA of its clients. A client certificate is always required; VerifyConnection may refuse revoked ones.
	ServerTLS *tls.Config
	// Secret makes the agents' passwords; at least 16 bytes. The same secret makes the same passwords, so that none must be kept.
	Secret []byte

	// Brokers of a real Kafka, "host:port".
	Brokers []string
	// SASL are the plane's own credentials there; may be nil.
	SASL *runnerv1.SaslCredentials
	// AgentSCRAM gives each agent of a real Kafka SCRAM-SHA-512 credentials of its own, made from Secret, as the embedded broker always does. Without it agents
	// are known by the names in their certificates.
	AgentSCRAM bool
	// NoACLs leaves access rights alone: no request about them is sent to a real Kafka whose administrator the plane is not.
	NoACLs bool

	// ClientTLS is the plane's client certificate and the CA of the brokers; nil means no TLS (only for a real Kafka).
	ClientTLS *tls.Config
	// CAPEM are the brokers' CA certificates for the agents; empty means the plane's CA.
	CAPEM []byte
}

// Deps are what a Broker needs.
type Deps struct {
	Log *slog.Logger
}

// Broker is the way to Kafka. Its methods may be called from any goroutine once Run has started; they wait until the broker answers.
type Broker struct {
	cfg      Config
	log      *slog.Logger
	embedded *embedded // nil for a real Kafka
	client   *kgo.Client
	admin    *kadm.Client
	started  chan struct{}
	// noAuthorizer lets the warning about a Kafka without access rights be said once.
	noAuthorizer sync.Once
}

// New checks the configuration and, for the embedded broker, takes its address. It starts nothing.
func New(cfg Config, deps Deps) (*Broker, error) {
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	b := &Broker{cfg: cfg, log: deps.Log, started: make(chan struct{})}
	if (cfg.Embedded || cfg.AgentSCRAM) && len(cfg.Secret) < minSecret {
		return nil, fmt.Errorf("the broker's secret has %d bytes, at least %d are needed", len(cfg.Secret), minSecret)
	}
	if cfg.Embedded {
		var err error
		if b.embedded, err = newEmbedded(cfg, deps.Log); err != nil {
			return nil, err
		}
		return b, nil
	}
	if len(cfg.Brokers) == 0 {
		return nil, errors.New("no Kafka brokers are given")
	}
	if _, err := planeMechanism(cfg.SASL); err != nil {
		return nil, err
	}
	if cfg.NoACLs {
		b.log.Warn("the plane sets no access rights on kafka: unless somebody else has set them, every agent can read every other agent's commands, and one that was removed still can")
	}
	return b, nil
}

// Run runs the embedded broker until ctx ends, then writes its state to disk and returns nil. With a real Kafka it only waits.
func (b *Broker) Run(ctx context.Context) error {
	if b.embedded != nil {
		if err := b.embedded.start(); err != nil {
			return err
		}
		defer b.embedded.stop()
	}
	client, err := kgo.NewClient(b.ClientOpts()...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer client.Close()
	b.client, b.admin = client, kadm.NewClient(client)
	close(b.started)

	ticker, silent := time.NewTicker(retentionEvery), time.NewTicker(silentEvery)
	defer ticker.Stop()
	defer silent.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-silent.C:
			if b.embedded != nil {
				b.evictSilent(ctx)
			}
		case <-ticker.C:
			if b.embedded != nil {
				b.embedded.applyRetention()
			}
		}
	}
}

// Ready waits until a broker answers.
func (b *Broker) Ready(ctx context.Context) error {
	for {
		err := b.ping(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (b *Broker) ping(ctx context.Context) error {
	if err := b.wait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := b.admin.BrokerMetadata(ctx); err != nil {
		return fmt.Errorf("kafka does not answer: %w", err)
	}
	return nil
}

// wait waits until Run has started.
func (b *Broker) wait(ctx context.Context) error {
	select {
	case <-b.started:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the broker has not started: %w", ctx.Err())
	}
}

// Addresses are where agents reach the broker.
func (b *Broker) Addresses() []string {
	if b.embedded != nil {
		return []string{b.embedded.advertised}
	}
	return b.cfg.Brokers
}

// ClientOpts are what a client of the plane needs to connect; its own options are added to them.
func (b *Broker) ClientOpts() []kgo.Opt {
	opts := []kgo.Opt{kgo.ClientID(clientID), kgo.SeedBrokers(b.Addresses()...)}
	if b.embedded != nil {
		return append(opts, kgo.Dialer(b.embedded.dial), kgo.SASL(PlaneUser(b.cfg.Secret).AsSha512Mechanism()))
	}
	if b.cfg.ClientTLS != nil {
		opts = append(opts, kgo.DialTLSConfig(b.cfg.ClientTLS.Clone()))
	}
	if m, _ := planeMechanism(b.cfg.SASL); m != nil { // New has seen it
		opts = append(opts, kgo.SASL(m))
	}
	return opts
}

// Disconnect ends an agent's connections to the embedded broker and returns how many there were. A connection outlives the certificate and the credentials
// with which it was made; call this after an agent's key was replaced or taken away. A real Kafka offers nothing like it: there the access rights decide.
func (b *Broker) Disconnect(agentID string) int {
	if b.embedded == nil {
		return 0
	}
	return b.embedded.guard.disconnect(agentID)
}

func planeMechanism(c *runnerv1.SaslCredentials) (sasl.Mechanism, error) {
	if c == nil {
		return nil, nil
	}
	auth := scram.Auth{User: c.GetUsername(), Pass: c.GetPassword()}
	switch c.GetMechanism() {
	case runnerv1.SaslMechanism_SASL_MECHANISM_PLAIN:
		return plain.Auth{User: c.GetUsername(), Pass: c.GetPassword()}.AsMechanism(), nil
	case runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_256:
		return auth.AsSha256Mechanism(), nil
	case runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_512:
		return auth.AsSha512Mechanism(), nil
	default:
		return nil, fmt.Errorf("SASL mechanism %v is not known", c.GetMechanism())
	}
}

// PlaneUser is the plane's own user on the embedded broker, who may do everything there. The secret is Config.Secret.
func PlaneUser(secret []byte) scram.Auth {
	return scram.Auth{User: planeUser, Pass: password(secret, planeUser)}
}

// password makes a user's password: 256 bits that only the owner of the secret can make again.
func password(secret []byte, user string) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("axion kafka password v1\x00" + user))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// splitAdvertise completes the advertised address from the listening one.
func splitAdvertise(advertise string, listening *net.TCPAddr) (string, error) {
	port := fmt.Sprint(listening.Port)
	if advertise == "" {
		if listening.IP.IsUnspecified() {
			return "", fmt.Errorf("the broker listens on %s, so the address that agents are to use must be given", listening)
		}
		return listening.String(), nil
	}
	if _, _, err := net.SplitHostPort(advertise); err == nil {
		return advertise, nil
	}
	return net.JoinHostPort(advertise, port), nil
}
