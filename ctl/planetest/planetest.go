// Package planetest is a scripted control plane for the tests of the command line: a real gRPC server on loopback with real TLS and the operator's
// token, whose answers a test gives function by function. It can be stopped and started again on the same address.
package planetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/operatorcontext"
)

// Token is the operator's token that the server asks for.
const Token = "planetest-token"

// Script holds the answers; a call without one is answered as unimplemented.
type Script struct {
	planev1.UnimplementedOperatorServer
	OnCreateToken      func(context.Context, *planev1.CreateTokenRequest) (*planev1.CreateTokenResponse, error)
	OnListTokens       func(context.Context, *planev1.ListTokensRequest) (*planev1.ListTokensResponse, error)
	OnRevokeToken      func(context.Context, *planev1.RevokeTokenRequest) (*planev1.RevokeTokenResponse, error)
	OnListAgents       func(context.Context, *planev1.ListAgentsRequest) (*planev1.ListAgentsResponse, error)
	OnRemoveAgent      func(context.Context, *planev1.RemoveAgentRequest) (*planev1.RemoveAgentResponse, error)
	OnSubmitCommand    func(context.Context, *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error)
	OnCancelCommand    func(context.Context, *planev1.CancelCommandRequest) (*planev1.CancelCommandResponse, error)
	OnWatchEvents      func(*planev1.WatchEventsRequest, grpc.ServerStreamingServer[planev1.EventRecord]) error
	OnSendRequest      func(context.Context, *planev1.SendRequestRequest) (*runnerv1.Response, error)
	OnStreamLogs       func(*planev1.StreamLogsRequest, grpc.ServerStreamingServer[runnerv1.LogBatch]) error
	OnListDeadLetters  func(context.Context, *planev1.ListDeadLettersRequest) (*planev1.ListDeadLettersResponse, error)
	OnGetDeadLetter    func(context.Context, *planev1.GetDeadLetterRequest) (*planev1.GetDeadLetterResponse, error)
	OnReplayDeadLetter func(context.Context, *planev1.ReplayDeadLetterRequest) (*planev1.ReplayDeadLetterResponse, error)
	OnDropDeadLetter   func(context.Context, *planev1.DropDeadLetterRequest) (*planev1.DropDeadLetterResponse, error)
}

// CreateToken implements the Operator service, as the others do.
func (s *Script) CreateToken(ctx context.Context, r *planev1.CreateTokenRequest) (*planev1.CreateTokenResponse, error) {
	if s.OnCreateToken == nil {
		return s.UnimplementedOperatorServer.CreateToken(ctx, r)
	}
	return s.OnCreateToken(ctx, r)
}

// ListTokens implements the Operator service.
func (s *Script) ListTokens(ctx context.Context, r *planev1.ListTokensRequest) (*planev1.ListTokensResponse, error) {
	if s.OnListTokens == nil {
		return s.UnimplementedOperatorServer.ListTokens(ctx, r)
	}
	return s.OnListTokens(ctx, r)
}

// RevokeToken implements the Operator service.
func (s *Script) RevokeToken(ctx context.Context, r *planev1.RevokeTokenRequest) (*planev1.RevokeTokenResponse, error) {
	if s.OnRevokeToken == nil {
		return s.UnimplementedOperatorServer.RevokeToken(ctx, r)
	}
	return s.OnRevokeToken(ctx, r)
}

// ListAgents implements the Operator service.
func (s *Script) ListAgents(ctx context.Context, r *planev1.ListAgentsRequest) (*planev1.ListAgentsResponse, error) {
	if s.OnListAgents == nil {
		return s.UnimplementedOperatorServer.ListAgents(ctx, r)
	}
	return s.OnListAgents(ctx, r)
}

// RemoveAgent implements the Operator service.
func (s *Script) RemoveAgent(ctx context.Context, r *planev1.RemoveAgentRequest) (*planev1.RemoveAgentResponse, error) {
	if s.OnRemoveAgent == nil {
		return s.UnimplementedOperatorServer.RemoveAgent(ctx, r)
	}
	return s.OnRemoveAgent(ctx, r)
}

// SubmitCommand implements the Operator service.
func (s *Script) SubmitCommand(ctx context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
	if s.OnSubmitCommand == nil {
		return s.UnimplementedOperatorServer.SubmitCommand(ctx, r)
	}
	return s.OnSubmitCommand(ctx, r)
}

// CancelCommand implements the Operator service.
func (s *Script) CancelCommand(ctx context.Context, r *planev1.CancelCommandRequest) (*planev1.CancelCommandResponse, error) {
	if s.OnCancelCommand == nil {
		return s.UnimplementedOperatorServer.CancelCommand(ctx, r)
	}
	return s.OnCancelCommand(ctx, r)
}

// WatchEvents implements the Operator service.
func (s *Script) WatchEvents(r *planev1.WatchEventsRequest, stream grpc.ServerStreamingServer[planev1.EventRecord]) error {
	if s.OnWatchEvents == nil {
		return s.UnimplementedOperatorServer.WatchEvents(r, stream)
	}
	return s.OnWatchEvents(r, stream)
}

// SendRequest implements the Operator service.
func (s *Script) SendRequest(ctx context.Context, r *planev1.SendRequestRequest) (*runnerv1.Response, error) {
	if s.OnSendRequest == nil {
		return s.UnimplementedOperatorServer.SendRequest(ctx, r)
	}
	return s.OnSendRequest(ctx, r)
}

// StreamLogs implements the Operator service.
func (s *Script) StreamLogs(r *planev1.StreamLogsRequest, stream grpc.ServerStreamingServer[runnerv1.LogBatch]) error {
	if s.OnStreamLogs == nil {
		return s.UnimplementedOperatorServer.StreamLogs(r, stream)
	}
	return s.OnStreamLogs(r, stream)
}

// ListDeadLetters implements the Operator service.
func (s *Script) ListDeadLetters(ctx context.Context, r *planev1.ListDeadLettersRequest) (*planev1.ListDeadLettersResponse, error) {
	if s.OnListDeadLetters == nil {
		return s.UnimplementedOperatorServer.ListDeadLetters(ctx, r)
	}
	return s.OnListDeadLetters(ctx, r)
}

// GetDeadLetter implements the Operator service.
func (s *Script) GetDeadLetter(ctx context.Context, r *planev1.GetDeadLetterRequest) (*planev1.GetDeadLetterResponse, error) {
	if s.OnGetDeadLetter == nil {
		return s.UnimplementedOperatorServer.GetDeadLetter(ctx, r)
	}
	return s.OnGetDeadLetter(ctx, r)
}

// ReplayDeadLetter implements the Operator service.
func (s *Script) ReplayDeadLetter(ctx context.Context, r *planev1.ReplayDeadLetterRequest) (*planev1.ReplayDeadLetterResponse, error) {
	if s.OnReplayDeadLetter == nil {
		return s.UnimplementedOperatorServer.ReplayDeadLetter(ctx, r)
	}
	return s.OnReplayDeadLetter(ctx, r)
}

// DropDeadLetter implements the Operator service.
func (s *Script) DropDeadLetter(ctx context.Context, r *planev1.DropDeadLetterRequest) (*planev1.DropDeadLetterResponse, error) {
	if s.OnDropDeadLetter == nil {
		return s.UnimplementedOperatorServer.DropDeadLetter(ctx, r)
	}
	return s.OnDropDeadLetter(ctx, r)
}

// Plane is a running server. It stops with its test.
type Plane struct {
	// Context is the operator context that leads to it.
	Context operatorcontext.Context
	// ContextPath is the file of that context.
	ContextPath string

	script *Script
	cert   tls.Certificate

	mu     sync.Mutex
	server *grpc.Server
	served chan struct{}
}

// Start starts a plane that answers as the script says.
func Start(t testing.TB, script *Script) *Plane {
	t.Helper()
	authority := NewAuthority(t)
	p := &Plane{script: script, cert: authority.Server(t, "127.0.0.1")}
	p.Context = operatorcontext.Context{CAHash: operatorcontext.Hash(authority.Certificate), CAPEM: authority.PEM(), Token: Token}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.Context.Address = listener.Addr().String()
	p.ContextPath = filepath.Join(t.TempDir(), "context.toml")
	if err := p.Context.Save(p.ContextPath); err != nil {
		t.Fatal(err)
	}
	p.serve(listener)
	t.Cleanup(p.Stop)
	return p
}

// Stop ends the server and breaks every connection, as a plane that is killed does.
func (p *Plane) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		p.server.Stop()
		<-p.served
		p.server = nil
	}
}

// Restart starts the server again on the same address.
func (p *Plane) Restart(t testing.TB) {
	t.Helper()
	listener, err := net.Listen("tcp", p.Context.Address)
	if err != nil {
		t.Fatal(err)
	}
	p.serve(listener)
}

func (p *Plane) serve(listener net.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	server := grpc.NewServer(
		grpc.Creds(credentials.NewServerTLSFromCert(&p.cert)),
		grpc.UnaryInterceptor(func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if err := authorize(ctx); err != nil {
				return nil, err
			}
			return handle(ctx, r)
		}),
		grpc.StreamInterceptor(func(s any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			if err := authorize(stream.Context()); err != nil {
				return err
			}
			return handle(s, stream)
		}),
		grpc.MaxRecvMsgSize(16<<20),
	)
	planev1.RegisterOperatorServer(server, p.script)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
	p.server, p.served = server, served
}

func authorize(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+Token {
		return status.Error(codes.Unauthenticated, "the token is not known")
	}
	return nil
}

// Authority is a CA.
type Authority struct {
	Certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewAuthority makes a CA.
func NewAuthority(t testing.TB) Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "planetest"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return Authority{Certificate: certificate, key: key}
}

// PEM returns the CA's certificate.
func (a Authority) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate.Raw}))
}

// Server issues a server's certificate for an IP address.
func (a Authority) Server(t testing.TB, address string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "plane"}, IPAddresses: []net.IP{net.ParseIP(address)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Epoch is when the events of Event happen: Epoch plus their offset.
var Epoch = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// Event returns a stored event of a command.
func Event(t testing.TB, position uint64, commandID string, after time.Duration, message proto.Message) *planev1.EventRecord {
	t.Helper()
	data, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	return &planev1.EventRecord{
		Position: position, Id: fmt.Sprintf("event-%d", position), Type: string(message.ProtoReflect().Descriptor().FullName()),
		ClusterId: "prod", AgentId: "a-0000000000000001", Subject: "shop", CausationId: commandID, CorrelationId: commandID,
		Time: timestamppb.New(Epoch.Add(after)), Data: data,
	}
}
