package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/jointoken"
)

// PlaneTLS returns the configuration for connections to the plane: TLS 1.3, the plane's CA as of enrolment, and the newest certificate at each handshake.
// Before enrolment it trusts nobody.
func (i *Identity) PlaneTLS() *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		ServerName:           i.host,
		RootCAs:              pool(i.member().cas),
		GetClientCertificate: i.newest,
		Time:                 i.deps.Now,
	}
}

// KafkaTLS returns the configuration for connections to Kafka's brokers: TLS 1.2 or newer, the brokers' CA or else the plane's, and the newest
// certificate at each handshake. It is nil if the brokers are to be reached without TLS, and before enrolment. The caller sets the server name.
func (i *Identity) KafkaTLS() *tls.Config {
	m := i.member()
	if !m.kafka.GetTls() {
		return nil
	}
	cas := m.cas
	if text := m.kafka.GetCaPem(); len(text) > 0 {
		cas, _ = parseCertificates(text) // checked when it came
	}
	return &tls.Config{
		MinVersion:           tls.VersionTLS12,
		RootCAs:              pool(cas),
		GetClientCertificate: i.newest,
		Time:                 i.deps.Now,
	}
}

func (i *Identity) newest(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	cert := i.member().certificate // a copy
	return &cert, nil
}

// firstTLS returns the configuration for the connection over which the agent enrols. There is no CA to trust yet but that which the join token names by
// its hash: it must be in the chain that the server shows, and the server's certificate must come from it and be for that host.
func firstTLS(token jointoken.Token, host string, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         host,
		InsecureSkipVerify: true, // VerifyConnection does all of it
		VerifyConnection: func(state tls.ConnectionState) error {
			return verifyByToken(state.PeerCertificates, token, host, now())
		},
	}
}

func verifyByToken(shown []*x509.Certificate, token jointoken.Token, host string, now time.Time) error {
	if len(shown) == 0 {
		return failure.New(failure.Denied, "plane_ca_mismatch", host, "the plane at %s shows no certificate", host)
	}
	for _, ca := range shown {
		if !ca.IsCA || !token.Names(ca) {
			continue
		}
		_, err := shown[0].Verify(x509.VerifyOptions{
			Roots: pool([]*x509.Certificate{ca}), Intermediates: pool(shown[1:]), DNSName: host, CurrentTime: now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		})
		if !errors.As(err, new(x509.UnknownAuthorityError)) {
			return err
		}
		break // it shows the CA, but its own certificate is of another
	}
	return failure.New(failure.Denied, "plane_ca_mismatch", host, "the plane at %s has another CA than the join token names", host).
		WithHint("make a token on this very plane with `axionctl token create`, or correct the plane's address; if both are right, something between agent and plane opens the connection")
}
