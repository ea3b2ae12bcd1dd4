// Package testca is a certificate authority for tests that speak real mTLS: it lives in memory, for one test.
package testca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// validity is longer than any test.
const validity = time.Hour

// CA issues certificates.
type CA struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes a CA.
func New(tb testing.TB) *CA {
	tb.Helper()
	ca := &CA{tb: tb}
	tmpl := template(pkix.Name{CommonName: "test CA"})
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
	ca.key = newKey(tb)
	ca.cert = ca.sign(tmpl, tmpl, ca.key)
	return ca
}

// Server returns the TLS settings of a server on loopback that verifies a client's certificate if it shows one.
func (ca *CA) Server() *tls.Config {
	ca.tb.Helper()
	tmpl := template(pkix.Name{CommonName: "server"})
	tmpl.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	tmpl.DNSNames = []string{"localhost"}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{ca.issue(tmpl)},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    ca.Pool(),
	}
}

// Client returns the TLS settings of a client with that common name and organization, which trusts this CA only.
func (ca *CA) Client(commonName, organization string) *tls.Config {
	ca.tb.Helper()
	tmpl := template(pkix.Name{CommonName: commonName, Organization: []string{organization}})
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{ca.issue(tmpl)},
		RootCAs:      ca.Pool(),
	}
}

// Pool returns the CA's certificate.
func (ca *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

// PEM returns the CA's certificate for those who read it from a file.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

func (ca *CA) issue(tmpl *x509.Certificate) tls.Certificate {
	ca.tb.Helper()
	key := newKey(ca.tb)
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	leaf := ca.sign(tmpl, ca.cert, key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

func (ca *CA) sign(tmpl, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	ca.tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, ca.key)
	if err != nil {
		ca.tb.Fatalf("issue a test certificate: %v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.tb.Fatalf("read a test certificate: %v", err)
	}
	return cert
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("make a test key: %v", err)
	}
	return key
}

func template(name pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100)) // never fails for a positive bound
	now := time.Now()
	return &x509.Certificate{Subject: name, SerialNumber: serial, NotBefore: now.Add(-validity), NotAfter: now.Add(validity)}
}
