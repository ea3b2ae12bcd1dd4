package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/axion/runner-agent/proto/failure"
)

// MaxCSRBytes bounds a certificate request; one with a P-256 key and no extensions has about 250 bytes.
const MaxCSRBytes = 4 << 10

var idPattern = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

// Issued is a certificate issued to an agent.
type Issued struct {
	// PEM is the certificate alone; the CA's certificate is not part of it.
	PEM []byte
	// Serial is its serial number in hexadecimal, as AgentFromTLS returns it.
	Serial string
	// PublicKey is the agent's key.
	PublicKey *ecdsa.PublicKey
	// NotBefore and NotAfter bound its validity.
	NotBefore, NotAfter time.Time
}

// ParseRequest checks an agent's certificate request (size, P-256, the signature that proves that the agent has the key) and returns its key. Everything
// else in the request is ignored. Failures have the class invalid and the code bad_csr.
func ParseRequest(csrDER []byte) (*ecdsa.PublicKey, error) {
	if len(csrDER) == 0 || len(csrDER) > MaxCSRBytes {
		return nil, badRequest("has %d bytes, 1 to %d are allowed", len(csrDER), MaxCSRBytes)
	}
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, badRequest("cannot be read: %w", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, badRequest("is not for an ECDSA P-256 key")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, badRequest("is not signed with its own key: %w", err)
	}
	return key, nil
}

func badRequest(format string, args ...any) error {
	return failure.New(failure.Invalid, "bad_csr", "certificate request", "the certificate request "+format, args...)
}

// IssueAgent issues a client certificate for the key of that request: subject CN=<agent id>,O=axion, and a URI that names cluster and agent.
// Failures: bad_csr as ParseRequest's.
func (c *CA) IssueAgent(csrDER []byte, clusterID, agentID string) (Issued, error) {
	key, err := ParseRequest(csrDER)
	if err != nil {
		return Issued{}, err
	}
	if !idPattern.MatchString(clusterID) || !idPattern.MatchString(agentID) {
		return Issued{}, fmt.Errorf("issue certificate: cluster id %q or agent id %q is not [a-z0-9-]{1,40}", clusterID, agentID)
	}
	cert, err := c.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: agentID, Organization: []string{organization}},
		URIs:        []*url.URL{agentURI(clusterID, agentID)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key, c.agentLife)
	if err != nil {
		return Issued{}, err
	}
	return Issued{
		PEM:       pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: cert.Raw}),
		Serial:    serialText(cert.SerialNumber),
		PublicKey: key,
		NotBefore: cert.NotBefore,
		NotAfter:  cert.NotAfter,
	}, nil
}

// AgentFromTLS says which agent is at the other end of a connection whose server verified the client's certificate against this CA. It reads the
// certificate only: whether it was revoked since the connection was made is for the registry to say, and whether it has ended, for the caller's clock.
// Failures have the class denied and the code no_agent_certificate.
func AgentFromTLS(state tls.ConnectionState) (clusterID, agentID, serial string, err error) {
	if len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return "", "", "", notAnAgent("the caller shows no certificate of this plane")
	}
	leaf := state.VerifiedChains[0][0]
	clusterID, agentID, ok := namesIn(leaf)
	if !ok || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return "", "", "", notAnAgent("the caller's certificate (%s) is not an agent's", leaf.Subject)
	}
	return clusterID, agentID, serialText(leaf.SerialNumber), nil
}

func notAnAgent(format string, args ...any) error {
	return failure.New(failure.Denied, "no_agent_certificate", "agent", format, args...)
}

// namesIn returns the cluster and the agent that a certificate names: exactly one URI, and a common name that agrees with it.
func namesIn(leaf *x509.Certificate) (clusterID, agentID string, ok bool) {
	if len(leaf.URIs) != 1 {
		return "", "", false
	}
	u := leaf.URIs[0]
	parts := strings.Split(u.Path, "/") // "", cluster, "agents", agent
	if len(parts) != 4 {
		return "", "", false
	}
	clusterID, agentID = parts[1], parts[3]
	if u.String() != agentURI(clusterID, agentID).String() || agentID != leaf.Subject.CommonName ||
		!idPattern.MatchString(clusterID) || !idPattern.MatchString(agentID) {
		return "", "", false
	}
	return clusterID, agentID, true
}

// agentURI is axion://clusters/<cluster>/agents/<agent>.
func agentURI(clusterID, agentID string) *url.URL {
	return &url.URL{Scheme: "axion", Host: "clusters", Path: "/" + clusterID + "/agents/" + agentID}
}

func serialText(serial *big.Int) string { return serial.Text(16) }
