package plane

import (
	"context"
	"crypto/tls"
	"log/slog"
	"runtime/debug"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/axion/runner-agent/plane/caller"
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
// A service that is not listed here is closed. No message is read before it is decided that its sender may call, except Enrollment's and Health's; of
// those, large ones are not decoded (codec.go).
type gate struct {
	operator func(ctx context.Context) error
	agent    func(ctx context.Context) (clusterID, agentID string, err error)
	log      *slog.Logger
}

func serviceOf(method string) string {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return service
}

// tap decides before anything of a call is read but its headers. It runs in the connection's own goroutine, so it only does what needs no waiting: agents
// are looked up by identify.
func (g *gate) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	return ctx, g.admit(ctx, info.FullMethodName)
}

func (g *gate) admit(ctx context.Context, method string) error {
	switch serviceOf(method) {
	case planev1.Operator_ServiceDesc.ServiceName:
		return g.operator(ctx)
	case runnerv1.Runner_ServiceDesc.ServiceName, runnerv1.Enrollment_ServiceDesc.ServiceName, healthv1.Health_ServiceDesc.ServiceName:
		return nil
	default:
		return status.Errorf(codes.PermissionDenied, "nobody may call %s", method)
	}
}

// identify refuses whoever calls Runner and is no agent. All its calls are streams, of which nothing has been read yet.
func (g *gate) identify(ctx context.Context, method string) error {
	if serviceOf(method) != runnerv1.Runner_ServiceDesc.ServiceName {
		return nil
	}
	_, _, err := g.agent(ctx)
	return failurepb.Status(err)
}

func (g *gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer g.recover(info.FullMethod, &err)
	if err := g.identify(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (g *gate) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer g.recover(info.FullMethod, &err)
	if err := g.identify(stream.Context(), info.FullMethod); err != nil {
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

// verifyKafka decides whether a connection to the embedded broker may stand: the plane's own and those of agents whose certificates are good.
func verifyKafka(agents *caller.Agents) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) > 0 && state.PeerCertificates[0].Subject.CommonName == kafkaClientName {
			return nil // this CA gives that name to nobody else
		}
		ctx, cancel := context.WithTimeout(context.Background(), kafkaTimeout)
		defer cancel()
		_, _, err := agents.Verify(ctx, state)
		return err
	}
}
