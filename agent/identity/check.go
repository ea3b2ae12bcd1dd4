package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"time"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/jointoken"
)

// CheckPlane connects to the plane as far as a stranger can, and judges the certificate that it shows as enrolment would; nothing is sent. Without a token
// its CA is not judged. Failures: invalid bad_plane_address; unavailable plane_unreachable; denied plane_no_tls, plane_ca_mismatch, plane_wrong_name,
// plane_certificate_time.
func CheckPlane(ctx context.Context, address string, token *jointoken.Token) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return badAddress(address)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return unreachable(address, err)
	}
	defer conn.Close()
	settings := settingsOfAStranger(token, host)
	settings.NextProtos = []string{"h2"}
	if err := tls.Client(conn, settings).HandshakeContext(ctx); err != nil {
		return explainHandshake(address, err)
	}
	return nil
}

func settingsOfAStranger(token *jointoken.Token, host string) *tls.Config {
	if token != nil {
		return firstTLS(*token, host, time.Now)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         host,
		InsecureSkipVerify: true, // nothing is sent, and there is no CA to judge it by
		VerifyConnection: func(state tls.ConnectionState) error {
			leaf := state.PeerCertificates[0] // a TLS server shows one
			if now := time.Now(); now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
				return x509.CertificateInvalidError{Cert: leaf, Reason: x509.Expired}
			}
			return leaf.VerifyHostname(host)
		},
	}
}

func badAddress(address string) error {
	return failure.New(failure.Invalid, "bad_plane_address", address, "the plane's address %q is not host:port", address)
}
