package plane

import (
	"context"
	"crypto/tls"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/axion/runner-agent/plane/ca"
	"github.com/axion/runner-agent/plane/registry"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// gate decides who may call what on the plane's one listener:
//
//   - Operator: whoever sends the operator's token;
//   - Runner: whoever shows a live agent certificate;
//   - Enrollment: everybody; Enroll asks for a join token, Renew for a live agent certificate;
//   - Health: everybody; it tells no more than that the plane is up.
//
// A service that is not listed here is closed.
type gate struct {
	operator func(ctx context.Context) error
	agent    func(ctx context.Context) (clusterID, agentID string, err error)
	log      *slog.Logger
}

func (g *gate) authorize(ctx context.Context, method string) error {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	switch service {
	case planev1.Operator_ServiceDesc.ServiceName:
		return g.operator(ctx)
	case runnerv1.Runner_ServiceDesc.ServiceName:
		_, _, err := g.agent(ctx)
		return failurepb.Status(err)
	case runnerv1.Enrollment_ServiceDesc.ServiceName, healthv1.Health_ServiceDesc.ServiceName:
		return nil
	default:
		return status.Errorf(codes.PermissionDenied, "nobody may call %s", method)
	}
}

func (g *gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer g.recover(info.FullMethod, &err)
	if err := g.authorize(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (g *gate) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer g.recover(info.FullMethod, &err)
	if err := g.authorize(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, stream)
}

// recover keeps a defect in one call from taking the plane down.
func (g *gate) recover(method string, err *error) {
	if r := recover(); r != nil {
		g.log.Error("a call panicked", "method", method, "panic", r, "stack", string(debug.Stack()))
		*err = failurepb.Status(failure.New(failure.Internal, "panic", method, "the plane has a defect in %s; its log has the details", method))
	}
}

// agents recognises agents by their certificates.
type agents struct {
	registry *registry.Registry
	now      func() time.Time
}

// identify returns whose certificate the connection was made with. It refuses one that has ended since or was revoked. Failures of class Denied:
// "no_agent_certificate", "certificate_expired", "certificate_revoked".
func (a *agents) identify(ctx context.Context) (clusterID, agentID string, err error) {
	p, _ := peer.FromContext(ctx)
	var info credentials.TLSInfo
	if p != nil {
		info, _ = p.AuthInfo.(credentials.TLSInfo)
	}
	clusterID, agentID, serial, err := ca.AgentFromTLS(info.State)
	if err != nil {
		return "", "", err
	}
	if end := info.State.PeerCertificates[0].NotAfter; !a.now().Before(end) {
		return "", "", failure.New(failure.Denied, "certificate_expired", agentID, "the certificate of agent %s ended on %s", agentID, end.UTC().Format(time.RFC3339))
	}
	return clusterID, agentID, a.standing(ctx, agentID, serial)
}

// standing refuses a certificate that was revoked.
func (a *agents) standing(ctx context.Context, agentID, serial string) error {
	revoked, err := a.registry.Revoked(ctx, serial)
	if err != nil {
		return err
	}
	if revoked {
		return failure.New(failure.Denied, "certificate_revoked", agentID, "the certificate of agent %s was revoked", agentID).
			WithHint("the agent enrols again with its join token, if that is still good")
	}
	return nil
}

// verifyKafka decides whether a connection to the embedded broker may stand: the plane's own and those of agents whose certificates were not revoked.
func (a *agents) verifyKafka(state tls.ConnectionState) error {
	if len(state.PeerCertificates) > 0 && state.PeerCertificates[0].Subject.CommonName == kafkaClientName {
		return nil // this CA gives that name to nobody else
	}
	_, agentID, serial, err := ca.AgentFromTLS(state)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), kafkaTimeout)
	defer cancel()
	return a.standing(ctx, agentID, serial)
}
