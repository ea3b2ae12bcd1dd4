package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// localHosts are in every server certificate, so that the plane can be reached on its own machine by whatever name.
var localHosts = []string{"localhost", "127.0.0.1", "::1"}

// IssueServer issues a certificate, with a key of its own that is never written anywhere, for a server of the plane that is reached by these host names
// and IP addresses and by the local ones. The CA's certificate is part of the chain: an agent that enrols finds it there by its hash.
func (c *CA) IssueServer(hosts []string) (tls.Certificate, error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "axion-plane", Organization: []string{organization}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, host := range append(slices.Clone(hosts), localHosts...) {
		switch ip := net.ParseIP(strings.Trim(host, "[]")); {
		case ip != nil:
			template.IPAddresses = append(template.IPAddresses, ip)
		case host == "" || strings.ContainsAny(host, ":/ "):
			return tls.Certificate{}, fmt.Errorf("issue server certificate: %q is neither a host name nor an IP address", host)
		default:
			template.DNSNames = append(template.DNSNames, strings.ToLower(host))
		}
	}
	return c.issueOwn(template)
}

// IssueClient issues a client certificate for a part of the plane itself, for example its Kafka client: subject CN=<name>,O=axion. A name that could
// be an agent's ("a-…") is refused.
func (c *CA) IssueClient(name string) (tls.Certificate, error) {
	if !idPattern.MatchString(name) || strings.HasPrefix(name, "a-") {
		return tls.Certificate{}, fmt.Errorf("issue client certificate: %q is not [a-z0-9-]{1,40} without the prefix of agents", name)
	}
	return c.issueOwn(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name, Organization: []string{organization}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func (c *CA) issueOwn(template *x509.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue certificate for %s: %w", template.Subject.CommonName, err)
	}
	cert, err := c.sign(template, key.Public(), ownLife)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw, c.cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// ServerTLS returns the configuration of a server of the plane: TLS 1.3, the certificate of IssueServer, made anew at 2/3 of its life without a restart,
// and client certificates of this CA verified where a client shows one. Callers may clone and tighten it.
func (c *CA) ServerTLS(hosts []string) (*tls.Config, error) {
	r := &renewing{issue: func() (tls.Certificate, error) { return c.IssueServer(hosts) }, now: c.now}
	if _, err := r.get(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.get() },
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      c.Pool(),
		Time:           c.now,
	}, nil
}

// renewing keeps one certificate and makes a new one when 2/3 of its life are over.
type renewing struct {
	issue func() (tls.Certificate, error)
	now   func() time.Time

	mu      sync.Mutex
	current *tls.Certificate
}

func (r *renewing) get() (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil && r.now().Before(renewalTime(r.current.Leaf)) {
		return r.current, nil
	}
	next, err := r.issue()
	switch {
	case err == nil:
		r.current = &next
	case r.current == nil:
		return nil, errors.Join(errors.New("no server certificate"), err)
	}
	return r.current, nil
}

// renewalTime is when 2/3 of a certificate's life are over.
func renewalTime(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) * 2 / 3)
}
