package session

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// Codes of the health warnings; at most one of them is set.
const (
	// WarningUnreachable: nobody answers, or the connection breaks.
	WarningUnreachable = "plane_unreachable"
	// WarningUntrusted: who answers is not the plane that this agent belongs to.
	WarningUntrusted = "plane_untrusted"
	// WarningRefused: the plane answers and does not want this agent.
	WarningRefused = "plane_refused"
)

// certificateRefused is the failure's code when the plane's TLS refuses the agent's certificate.
const certificateRefused = "certificate_refused"

// ofCertificate says whether a failure's code means that a new certificate, or a new enrolment, may be the way out.
func ofCertificate(code string) bool {
	switch code {
	case "certificate_revoked", "certificate_expired", "agent_removed", certificateRefused, WarningUntrusted:
		return true
	default:
		return false
	}
}

// complain sets the warning that says why there is no session.
func (c *Client) complain(err error) {
	f := failure.Of(err)
	code, severity, title, text := WarningUnreachable, runnerv1.HealthSeverity_HEALTH_SEVERITY_MEDIUM, "No connection to the control plane",
		fmt.Sprintf("the plane at %s cannot be reached: %s", c.cfg.Address, f.Message)
	switch {
	case f.Code == WarningUntrusted:
		code, severity, title, text = WarningUntrusted, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "The control plane is not trusted", f.Message
	case f.Class == failure.Denied || f.Class == failure.Conflict:
		code, severity, title, text = WarningRefused, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "The control plane refuses this agent",
			fmt.Sprintf("the plane at %s refuses this agent: %s", c.cfg.Address, f.Message)
	}
	if f.Hint != "" {
		text += "; " + f.Hint
	}
	for _, other := range []string{WarningUnreachable, WarningUntrusted, WarningRefused} {
		if other != code {
			c.deps.Warn.Clear(other)
		}
	}
	c.deps.Warn.Set(code, severity, title, text)
}

func (c *Client) clearWarnings() {
	for _, code := range []string{WarningUnreachable, WarningUntrusted, WarningRefused} {
		c.deps.Warn.Clear(code)
	}
}

// explainStatus makes a failure of what gRPC returned and how the last handshake ended.
func explainStatus(address string, err, shake error) error {
	var untrusted *tls.CertificateVerificationError
	if errors.As(shake, &untrusted) {
		return failure.New(failure.Denied, WarningUntrusted, address, "%s: %w", untrustedSentence(address, untrusted.Err), untrusted.Err)
	}
	st, ok := status.FromError(err)
	if ok && st.Code() == codes.Unavailable && strings.Contains(st.Message(), "remote error: tls:") {
		// With TLS 1.3 the server's verdict on our certificate comes after the handshake, as an alert on the first read.
		return failure.New(failure.Denied, certificateRefused, address, "the agent's certificate is not accepted: %w", err)
	}
	return fromStatus(err)
}

func untrustedSentence(address string, err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return fmt.Sprintf("the plane at %s shows a certificate that is not from this agent's CA", address)
	case errors.As(err, &name):
		return fmt.Sprintf("the plane at %s shows a certificate for another name", address)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("the plane at %s shows a certificate that is expired or not yet valid by this node's clock", address)
	default:
		return fmt.Sprintf("the plane at %s shows a certificate that cannot be verified", address)
	}
}

// statusError is a failure that a gRPC status carried; the status stays in the chain because it may hold a retry hint.
type statusError struct {
	failure *failure.Error
	status  error
}

func (e *statusError) Error() string { return e.failure.Error() }

func (e *statusError) Unwrap() []error { return []error{e.failure, e.status} }

func fromStatus(err error) error {
	if _, ok := status.FromError(err); !ok {
		return err
	}
	return &statusError{failure: failure.Of(failurepb.FromStatus(err)), status: err}
}

// goodbyeError is a plane that has said goodbye.
type goodbyeError struct {
	reason string
	retry  time.Duration
}

func (e *goodbyeError) Error() string {
	if e.reason == "" {
		return "the plane said goodbye"
	}
	return "the plane said goodbye: " + e.reason
}

// retryAfter returns the hint in err of when to come back: of a Goodbye, or a status with RetryInfo. It is 0 without one and never longer than limit.
func retryAfter(err error, limit time.Duration) time.Duration {
	var hint time.Duration
	var bye *goodbyeError
	var st *statusError
	switch {
	case errors.As(err, &bye):
		hint = bye.retry
	case errors.As(err, &st):
		for _, d := range status.Convert(st.status).Details() {
			if r, ok := d.(*errdetails.RetryInfo); ok && r.GetRetryDelay() != nil {
				hint = r.GetRetryDelay().AsDuration()
			}
		}
	}
	return min(max(hint, 0), limit)
}
