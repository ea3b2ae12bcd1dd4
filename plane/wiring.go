package plane

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/axion/runner-agent/internal/atomicfile"
	"github.com/axion/runner-agent/plane/broker"
	"github.com/axion/runner-agent/plane/ca"
	"github.com/axion/runner-agent/plane/caller"
	"github.com/axion/runner-agent/plane/eviction"
	"github.com/axion/runner-agent/plane/fleet"
	"github.com/axion/runner-agent/plane/registry"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/version"
)

// kafkaClientName is the name in the plane's own certificate on Kafka.
const kafkaClientName = "plane"

// signers tells the dispatch who may sign events.
type signers struct{ registry *registry.Registry }

// Signer implements dispatch.Signers.
func (s signers) Signer(ctx context.Context, agentID string) (string, []*ecdsa.PublicKey, error) {
	agent, err := s.registry.Agent(ctx, agentID)
	if failure.ClassOf(err) == failure.Invalid {
		return "", nil, nil // no such agent
	}
	if err != nil {
		return "", nil, err
	}
	keys, err := s.registry.PublicKeys(ctx, agentID)
	return agent.ClusterID, keys, err
}

func (p *Plane) newFleet(reg *registry.Registry, who *caller.Agents, a *access, broke func(eviction.Break)) (*fleet.Fleet, error) {
	log := p.component("fleet")
	confirmed := &confirmations{registry: reg, known: map[string]bool{}}
	return fleet.New(fleet.Config{PlaneVersion: version.Version, HeartbeatInterval: p.cfg.HeartbeatInterval}, fleet.Deps{
		Identify: who.Identify,
		Touch:    reg.Touch,
		SetNodes: func(ctx context.Context, clusterID, agentID string, nodes *runnerv1.NodeList) error {
			changed, err := reg.SetNodes(ctx, clusterID, agentID, nodes)
			for _, agent := range changed {
				log.Info("manager role changed", "agent_id", agent.ID, "cluster_id", agent.ClusterID, "confirmed", agent.ManagerConfirmed)
			}
			if len(changed) > 0 {
				a.poke()
			}
			return err
		},
		ClusterTopicAllowed: confirmed.allowed,
		Observe: func(e fleet.Event) {
			switch {
			case e.Kind == fleet.Duplicate:
				log.Error("two live processes use one agent's identity", "agent_id", e.Session.AgentID, "peer", e.Session.Peer, "refused_peer", e.OtherPeer)
			case e.Kind == fleet.Closed && e.Lost:
				broke(broken(e))
			}
		},
		Log: log,
		Now: p.now,
	})
}

// confirmations tells whether agents are confirmed managers. When the registry cannot be read it says what it said last: a database that is busy for a moment
// must not drive the managers out of their consumer groups.
type confirmations struct {
	registry *registry.Registry

	mu    sync.Mutex
	known map[string]bool
}

func (c *confirmations) allowed(ctx context.Context, agentID string) bool {
	agent, err := c.registry.Agent(ctx, agentID)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.known[agentID] = agent.ManagerConfirmed && !agent.Removed
	}
	return c.known[agentID]
}

// brokerSecret returns the secret from which the embedded broker's credentials are made; it makes one on the first start.
func brokerSecret(dataDir string) ([]byte, error) {
	const size = 32
	path := filepath.Join(dataDir, secretFile)
	secret, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		secret = make([]byte, size)
		_, _ = rand.Read(secret) // never fails
		return secret, atomicfile.Write(path, secret, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("the broker's secret: %w", err)
	}
	if len(secret) != size {
		return nil, fmt.Errorf("the broker's secret %s has %d bytes, not %d: put it back from a backup, or remove it; agents get new credentials when they renew", path, len(secret), size)
	}
	return secret, nil
}

// newBroker makes the way to Kafka: the embedded broker, or the brokers that are named.
func (p *Plane) newBroker(authority *ca.CA, serverTLS *tls.Config, who *caller.Agents) (*broker.Broker, error) {
	secret, err := brokerSecret(p.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	roots := authority.Pool()
	if len(p.cfg.KafkaCAPEM) > 0 {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(p.cfg.KafkaCAPEM) {
			return nil, errors.New("kafka-ca: it holds no certificate")
		}
	}
	cfg := broker.Config{
		Embedded: len(p.cfg.KafkaBrokers) == 0, DataDir: filepath.Join(p.cfg.DataDir, kafkaDir), Listen: p.cfg.KafkaListen, Advertise: p.cfg.Advertise[0],
		Brokers: p.cfg.KafkaBrokers, SASL: p.cfg.KafkaSASL, AgentSCRAM: p.cfg.KafkaAgentSCRAM, NoACLs: p.cfg.KafkaNoACLs, CAPEM: p.cfg.KafkaCAPEM, Secret: secret,
		ClientTLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, GetClientCertificate: freshCertificate(authority)},
	}
	switch {
	case cfg.Embedded:
		cfg.ServerTLS = serverTLS.Clone()
		cfg.ServerTLS.VerifyConnection = verifyKafka(who)
	case p.cfg.KafkaPlaintext:
		cfg.ClientTLS = nil
	}
	return broker.New(cfg, broker.Deps{Log: p.component("broker")})
}

// freshCertificate shows a new certificate on each connection, so that none can end while the plane runs.
func freshCertificate(authority *ca.CA) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		certificate, err := authority.IssueClient(kafkaClientName)
		if err != nil {
			return nil, err
		}
		return &certificate, nil
	}
}
