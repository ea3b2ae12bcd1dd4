package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/axion/runner-agent/internal/handshake"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// codeRefused is the failure's code when the plane's TLS refuses the agent's certificate: it has ended by the plane's clock, or the plane's CA is new.
const codeRefused = "certificate_refused"

// maxAnswerBytes bounds an answer: two certificates of 64 KiB and a CA of 256 KiB, with room to spare.
const maxAnswerBytes = 1 << 20

// call connects anew, makes one call, and disconnects. What it returns is a failure that says where it went wrong.
func (i *Identity) call(ctx context.Context, config *tls.Config, f func(context.Context, runnerv1.EnrollmentClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	trust := handshake.New(config)
	conn, err := grpc.NewClient(i.cfg.PlaneAddress,
		grpc.WithTransportCredentials(trust),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes)),
		grpc.WithUserAgent("axion-agent/"+i.cfg.AgentVersion))
	if err != nil {
		return failure.New(failure.Invalid, "bad_plane_address", i.cfg.PlaneAddress, "the plane's address %s cannot be used: %w", i.cfg.PlaneAddress, err)
	}
	err = f(ctx, runnerv1.NewEnrollmentClient(conn))
	if closeErr := conn.Close(); closeErr != nil {
		i.deps.Log.Debug("close the connection to the plane", "error", closeErr)
	}
	if err == nil {
		return nil
	}
	return i.explain(err, trust.Err())
}

// explain turns the error of a call into a failure. gRPC says of a failed handshake only its text, so the handshake's own error is asked first.
func (i *Identity) explain(err, shake error) error {
	address := i.cfg.PlaneAddress
	if shake != nil {
		return explainHandshake(address, shake)
	}
	text := err.Error()
	if st, ok := status.FromError(err); ok {
		text = st.Message()
		if len(st.Details()) > 0 {
			return failurepb.FromStatus(err)
		}
	}
	if refusedByTLS(text) {
		return failure.New(failure.Denied, codeRefused, address, "the plane at %s refuses the agent's certificate: %s", address, text)
	}
	switch f := failure.Of(failurepb.FromStatus(err)); f.Class {
	case failure.Unavailable, failure.Deadline:
		return unreachable(address, errors.New(text))
	default:
		return f
	}
}

func explainHandshake(address string, err error) error {
	var own *failure.Error
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &authority):
		return failure.New(failure.Denied, "plane_ca_unknown", address, "the plane at %s has another CA than the one that this agent enrolled with: %w", address, err).
			WithHint("if the plane was made anew, give the agents a join token of the new one; if it was not, something between agent and plane opens the connection")
	case errors.As(err, &name):
		return failure.New(failure.Denied, "plane_wrong_name", address, "the certificate of the plane at %s is for another name: %w", address, err).
			WithHint("start the plane with --advertise and that name, or correct the plane's address in the agent's configuration")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return failure.New(failure.Denied, "plane_certificate_time", address, "the certificate of the plane at %s is not valid now: %w", address, err).
			WithHint("compare the clocks of the node and of the plane")
	case errors.As(err, new(tls.RecordHeaderError)):
		return failure.New(failure.Denied, "plane_no_tls", address, "what answers at %s speaks no TLS: %w", address, err).
			WithHint("check that the plane's address is the control plane's")
	default:
		return unreachable(address, err)
	}
}

func unreachable(address string, err error) error {
	return failure.New(failure.Unavailable, "plane_unreachable", address, "the plane at %s cannot be reached: %w", address, err)
}

// refusedByTLS tells the alerts by which a TLS server refuses a client's certificate. With TLS 1.3 they come after the client's handshake is over, as
// the first thing that it reads, and gRPC keeps only their text.
func refusedByTLS(text string) bool {
	_, alert, found := strings.Cut(text, "remote error: tls: ")
	if !found {
		return false
	}
	for _, known := range []string{"expired certificate", "revoked certificate", "bad certificate", "unknown certificate authority", "certificate unknown", "unknown certificate"} {
		if strings.HasPrefix(alert, known) {
			return true
		}
	}
	return false
}
