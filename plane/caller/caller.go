// Package caller recognises the agents that call the plane, by the certificates with which they made their connections. It is the one place that says
// whether a certificate is still good: TLS has verified it when the connection was made, and it may have ended or been revoked since.
package caller

import (
	"context"
	"crypto/tls"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/axion/runner-agent/plane/ca"
	"github.com/axion/runner-agent/plane/registry"
	"github.com/axion/runner-agent/proto/failure"
)

// Registry knows agents and certificates; registry.Registry is one.
type Registry interface {
	Agent(ctx context.Context, id string) (registry.Agent, error)
	Revoked(ctx context.Context, serial string) (bool, error)
}

// Agents recognises agents. It is safe for concurrent use.
type Agents struct {
	registry Registry
	now      func() time.Time
}

// New returns Agents. A nil clock is time.Now.
func New(r Registry, now func() time.Time) *Agents {
	if now == nil {
		now = time.Now
	}
	return &Agents{registry: r, now: now}
}

// Identify returns which agent made a gRPC call. Failures of class Denied: "no_agent_certificate", "certificate_expired", "certificate_revoked"; others are the
// registry's.
func (a *Agents) Identify(ctx context.Context) (clusterID, agentID string, err error) {
	p, _ := peer.FromContext(ctx)
	var info credentials.TLSInfo
	if p != nil {
		info, _ = p.AuthInfo.(credentials.TLSInfo)
	}
	return a.Verify(ctx, info.State)
}

// Verify returns which agent is at the other end of a TLS connection that verified the client's certificate against this plane's CA. Failures as Identify's.
func (a *Agents) Verify(ctx context.Context, state tls.ConnectionState) (clusterID, agentID string, err error) {
	clusterID, agentID, serial, err := ca.AgentFromTLS(state)
	if err != nil {
		return "", "", err
	}
	if end := state.PeerCertificates[0].NotAfter; !a.now().Before(end) {
		return "", "", failure.New(failure.Denied, "certificate_expired", agentID, "the certificate of agent %s ended on %s", agentID, end.UTC().Format(time.RFC3339))
	}
	stands, err := a.stands(ctx, clusterID, agentID, serial)
	if err != nil {
		return "", "", err
	}
	if !stands {
		return "", "", failure.New(failure.Denied, "certificate_revoked", agentID, "the certificate of agent %s was revoked", agentID).
			WithHint("the agent enrols again with its join token, if that is still good")
	}
	return clusterID, agentID, nil
}

// stands says whether the plane still stands by a certificate: it was not revoked, and its agent is there and in the cluster that it names.
func (a *Agents) stands(ctx context.Context, clusterID, agentID, serial string) (bool, error) {
	revoked, err := a.registry.Revoked(ctx, serial)
	if err != nil || revoked {
		return false, err
	}
	agent, err := a.registry.Agent(ctx, agentID)
	if f := failure.Of(err); f != nil && f.Code == "no_such_agent" {
		return false, nil
	}
	return err == nil && !agent.Removed && agent.ClusterID == clusterID, err
}
