package plane

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/axion/runner-agent/plane/ca"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// decoded notes the messages that the server has read and decoded.
type decoded struct {
	mu    sync.Mutex
	bytes int
}

func (d *decoded) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (d *decoded) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (d *decoded) HandleConn(context.Context, stats.ConnStats)                       {}

func (d *decoded) HandleRPC(_ context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.bytes += in.Length
	}
}

func (d *decoded) total() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bytes
}

// TestStrangersMessagesAreNotDecoded calls the server with large messages and without what it takes to be let in.
func TestStrangersMessagesAreNotDecoded(t *testing.T) {
	authority, err := ca.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	settings, err := authority.ServerTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := &decoded{}
	server := newServer(settings, &gate{
		operator: func(context.Context) error { return status.Error(codes.Unauthenticated, "no token") },
		agent: func(context.Context) (string, string, error) {
			return "", "", failure.New(failure.Denied, "no_agent_certificate", "", "no certificate")
		},
		log: slog.New(slog.DiscardHandler),
	}, grpc.StatsHandler(seen))
	planev1.RegisterOperatorServer(server, planev1.UnimplementedOperatorServer{})
	runnerv1.RegisterRunnerServer(server, runnerv1.UnimplementedRunnerServer{})
	runnerv1.RegisterEnrollmentServer(server, runnerv1.UnimplementedEnrollmentServer{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-done })
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: authority.Pool(), ServerName: "localhost"})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })

	large := strings.Repeat("x", 10<<20)
	for name, tc := range map[string]struct {
		call func(ctx context.Context) error
		code codes.Code
	}{
		"operator without a token": {func(ctx context.Context) error {
			_, err := planev1.NewOperatorClient(conn).SubmitCommand(ctx, &planev1.SubmitCommandRequest{IdempotencyKey: large})
			return err
		}, codes.Unauthenticated},
		"agent without a certificate": {func(ctx context.Context) error {
			stream, err := runnerv1.NewRunnerClient(conn).Connect(ctx)
			if err != nil {
				return err
			}
			_ = stream.Send(&runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Hello{Hello: &runnerv1.Hello{AgentVersion: large}}}) // Recv has the reason
			_, err = stream.Recv()
			return err
		}, codes.PermissionDenied},
		"enrolment of half the world": {func(ctx context.Context) error {
			_, err := runnerv1.NewEnrollmentClient(conn).Enroll(ctx, &runnerv1.EnrollRequest{Token: large})
			return err
		}, codes.Internal},
		"renewal of half the world": {func(ctx context.Context) error {
			_, err := runnerv1.NewEnrollmentClient(conn).Renew(ctx, &runnerv1.RenewRequest{CsrDer: []byte(large)})
			return err
		}, codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			before := seen.total()
			if err := tc.call(ctx); status.Code(err) != tc.code {
				t.Errorf("got %v, want %v", err, tc.code)
			}
			if n := seen.total() - before; n != 0 {
				t.Errorf("%d bytes were decoded", n)
			}
		})
	}
	// What is of a normal size goes through, to the handler that is not there.
	_, err = runnerv1.NewEnrollmentClient(conn).Enroll(t.Context(), &runnerv1.EnrollRequest{Token: "t"})
	if status.Code(err) != codes.Unimplemented || seen.total() == 0 {
		t.Errorf("a small message: %v, %d bytes were decoded", err, seen.total())
	}
}
