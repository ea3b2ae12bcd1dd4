package caller_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"path/filepath"
	"testing"
	"time"

	"github.com/axion/runner-agent/plane/ca"
	"github.com/axion/runner-agent/plane/caller"
	"github.com/axion/runner-agent/plane/registry"
	"github.com/axion/runner-agent/plane/store"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// plane is a CA and a registry with one enrolled agent.
type plane struct {
	ca       *ca.CA
	registry *registry.Registry
	agentID  string
	csr      []byte
	key      *ecdsa.PublicKey
	skip     time.Duration // puts the clock of the check forward
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	authority, err := ca.Open(t.TempDir(), time.Now, ca.WithAgentLife(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "plane.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	p := &plane{ca: authority, registry: registry.New(db, time.Now)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.key = &key.PublicKey
	if p.csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		t.Fatal(err)
	}
	_, secret, err := p.registry.CreateToken(t.Context(), "shop", time.Hour, 1)
	if err != nil {
		t.Fatal(err)
	}
	enrolled, err := p.registry.Enrol(t.Context(), registry.EnrolParams{
		Secret: secret, PublicKey: p.key, EncryptionKey: bytes.Repeat([]byte{7}, 32), Live: func(string) bool { return false },
		Facts: &runnerv1.NodeFacts{NodeId: "node1", Role: runnerv1.NodeRole_NODE_ROLE_MANAGER, SwarmClusterId: "swarm1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.agentID = enrolled.ID
	return p
}

// issue issues a certificate that names that cluster, and records it if asked to.
func (p *plane) issue(t *testing.T, clusterID string, record bool) tls.ConnectionState {
	t.Helper()
	issued, err := p.ca.IssueAgent(p.csr, clusterID, p.agentID)
	if err != nil {
		t.Fatal(err)
	}
	if record {
		err := p.registry.RecordCertificate(t.Context(), registry.Certificate{
			Serial: issued.Serial, AgentID: p.agentID, PublicKey: p.key, NotBefore: issued.NotBefore, NotAfter: issued.NotAfter,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	block, _ := pem.Decode(issued.PEM)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
}

func TestVerify(t *testing.T) {
	for name, tc := range map[string]struct {
		state func(t *testing.T, p *plane) tls.ConnectionState
		code  string // none: the agent is recognised
	}{
		"good":           {func(t *testing.T, p *plane) tls.ConnectionState { return p.issue(t, "shop", true) }, ""},
		"no certificate": {func(*testing.T, *plane) tls.ConnectionState { return tls.ConnectionState{} }, "no_agent_certificate"},
		"not recorded":   {func(t *testing.T, p *plane) tls.ConnectionState { return p.issue(t, "shop", false) }, "certificate_revoked"},
		"ended since the handshake": {func(t *testing.T, p *plane) tls.ConnectionState {
			p.skip = 2 * time.Hour
			return p.issue(t, "shop", true)
		}, "certificate_expired"},
		"agent removed": {func(t *testing.T, p *plane) tls.ConnectionState {
			state := p.issue(t, "shop", true)
			if err := p.registry.Remove(t.Context(), p.agentID); err != nil {
				t.Fatal(err)
			}
			return state
		}, "certificate_revoked"},
		"another cluster": {func(t *testing.T, p *plane) tls.ConnectionState { return p.issue(t, "blog", true) }, "certificate_revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			state := tc.state(t, p)
			agents := caller.New(p.registry, func() time.Time { return time.Now().Add(p.skip) })
			clusterID, agentID, err := agents.Verify(t.Context(), state)
			if tc.code == "" {
				if err != nil || clusterID != "shop" || agentID != p.agentID {
					t.Fatalf("agent %q of cluster %q, %v", agentID, clusterID, err)
				}
				return
			}
			if f := failure.Of(err); f == nil || f.Code != tc.code || f.Class != failure.Denied || clusterID+agentID != "" {
				t.Fatalf("agent %q of cluster %q, %v; want %s", agentID, clusterID, err, tc.code)
			}
		})
	}
}

func TestIdentifyWithoutAPeer(t *testing.T) {
	p := newPlane(t)
	if _, _, err := caller.New(p.registry, nil).Identify(t.Context()); failure.Of(err).Code != "no_agent_certificate" {
		t.Error(err)
	}
}
