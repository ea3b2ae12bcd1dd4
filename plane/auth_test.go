package plane

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/axion/runner-agent/proto/failure"
)

func TestGate(t *testing.T) {
	g := &gate{
		operator: func(context.Context) error { return status.Error(codes.Unauthenticated, "no token") },
		agent: func(context.Context) (string, string, error) {
			return "", "", failure.New(failure.Denied, "no_agent_certificate", "", "no certificate")
		},
		log: slog.New(slog.DiscardHandler),
	}
	for method, want := range map[string]codes.Code{
		"/axion.plane.v1.Operator/ListAgents":   codes.Unauthenticated,
		"/axion.runner.v1.Runner/Connect":       codes.OK, // so far: see identify
		"/axion.runner.v1.Enrollment/Enroll":    codes.OK,
		"/grpc.health.v1.Health/Check":          codes.OK,
		"/axion.runner.v1.Local/Status":         codes.PermissionDenied,
		"/axion.plane.v1.OperatorX/ListAgents":  codes.PermissionDenied,
		"//axion.plane.v1.Operator/ListAgents":  codes.PermissionDenied,
		"axion.plane.v1.Operator":               codes.Unauthenticated,
		"":                                      codes.PermissionDenied,
		"/AXION.runner.v1.Enrollment/Enroll":    codes.PermissionDenied,
		"/axion.runner.v1.Enrollment.X/Enroll":  codes.PermissionDenied,
		"/axion.runner.v1.Enrollment/../Runner": codes.OK, // a method that Enrollment does not have: the server answers Unimplemented
	} {
		if got := status.Code(g.admit(t.Context(), method)); got != want {
			t.Errorf("%s: %v, want %v", method, got, want)
		}
		wantAgent := codes.OK
		if method == "/axion.runner.v1.Runner/Connect" {
			wantAgent = codes.PermissionDenied
		}
		if got := status.Code(g.identify(t.Context(), method)); got != wantAgent {
			t.Errorf("%s, who is no agent: %v, want %v", method, got, wantAgent)
		}
	}
}

func TestAPanicEndsTheCallOnly(t *testing.T) {
	var log bytes.Buffer
	g := &gate{log: slog.New(slog.NewTextHandler(&log, nil))}
	const method = "/grpc.health.v1.Health/Check"
	_, err := g.unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { panic("s3cret") })
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("unary: %v", err)
	}
	err = g.stream(nil, stream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: method}, func(any, grpc.ServerStream) error { panic("boom") })
	if status.Code(err) != codes.Internal {
		t.Errorf("stream: %v", err)
	}
	if !strings.Contains(log.String(), "boom") || !strings.Contains(log.String(), "auth_test.go") {
		t.Errorf("the log must hold the panic and its place: %s", log.String())
	}
}

type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stream) Context() context.Context { return s.ctx }
