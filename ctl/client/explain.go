package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// Codes of the failures that this package finds itself; the others are the plane's.
const (
	// CodeUnreachable: no connection to the plane.
	CodeUnreachable = "plane_unreachable"
	// CodeWrongAuthority: what answers has a certificate of another authority than the operator context names.
	CodeWrongAuthority = "plane_wrong_ca"
	// CodeWrongName: the certificate does not name the address that was dialled.
	CodeWrongName = "plane_wrong_name"
	// CodeBadCertificate: the certificate is expired or otherwise of no use.
	CodeBadCertificate = "plane_bad_certificate"
	// CodeNotTLS: what answers does not speak TLS.
	CodeNotTLS = "plane_not_tls"
	// CodeUnauthenticated: the plane does not accept the operator's token.
	CodeUnauthenticated = "operator_token_refused"
)

const renewContextHint = "take a fresh operator.toml from the control plane's data directory"

func (a *attempts) explainUnary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return a.explain(ctx, invoke(ctx, method, req, reply, conn, opts...))
}

func (a *attempts) explainStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, a.explain(ctx, err)
	}
	return &explainedStream{ClientStream: stream, attempts: a}, nil
}

type explainedStream struct {
	grpc.ClientStream
	attempts *attempts
}

func (s *explainedStream) RecvMsg(m any) error {
	return s.attempts.explain(s.Context(), s.ClientStream.RecvMsg(m))
}

// explain turns what a call returned into a failure. The caller's own end of the context stays context.Canceled, so that an interruption
// is told from the plane's refusals; io.EOF is a stream's regular end.
func (a *attempts) explain(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	code := status.Code(err)
	if code == codes.Canceled && errors.Is(ctx.Err(), context.Canceled) {
		return context.Canceled
	}
	if carriesFailure(err) {
		return failurepb.FromStatus(err)
	}
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded:
		if cause := a.last(); cause != nil {
			return a.connectionFailure(cause)
		}
	case codes.Unauthenticated:
		return failure.New(failure.Denied, CodeUnauthenticated, a.address, "the control plane at %s refuses the operator's token: %s", a.address, status.Convert(err).Message()).
			WithHint(renewContextHint)
	}
	f := failure.Of(failurepb.FromStatus(err))
	return failure.New(f.Class, f.Code, a.address, "the control plane at %s: %s", a.address, f.Message)
}

func carriesFailure(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if _, ok := detail.(interface{ GetHint() string }); ok {
			return true
		}
	}
	return false
}

// connectionFailure says why there is no connection.
func (a *attempts) connectionFailure(cause error) *failure.Error {
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.As(cause, &authority):
		return failure.New(failure.Denied, CodeWrongAuthority, a.address,
			"the control plane at %s has a certificate of another authority than the operator context names: %w", a.address, cause).
			WithHint("if the control plane was set up anew, " + renewContextHint + "; if not, something else answers at that address")
	case errors.As(cause, &hostname):
		return failure.New(failure.Denied, CodeWrongName, a.address, "the certificate of the control plane at %s is for another name: %w", a.address, cause).
			WithHint("start the control plane with --advertise and this name, or use the name that it has")
	case errors.As(cause, &invalid), errors.As(cause, &verify):
		return failure.New(failure.Denied, CodeBadCertificate, a.address, "the certificate of the control plane at %s is not accepted: %w", a.address, cause).
			WithHint("compare the clocks of this machine and of the control plane's")
	case errors.As(cause, &record):
		return failure.New(failure.Denied, CodeNotTLS, a.address, "what answers at %s does not speak TLS: %w", a.address, cause).
			WithHint("the address in the operator context must be the control plane's gRPC listener")
	default:
		return failure.New(failure.Unavailable, CodeUnreachable, a.address, "the control plane at %s cannot be reached: %w", a.address, reason(cause)).
			WithHint("check that axion-plane runs there and that no firewall is in between; the address comes from the operator context")
	}
}

// reason strips what the sentence already says: the operation and the address.
func reason(err error) error {
	var dns *net.DNSError
	var call *os.SyscallError
	var number syscall.Errno
	switch {
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &call) && errors.As(call.Err, &number):
		return number
	default:
		return err
	}
}
