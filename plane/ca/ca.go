// Package ca is the plane's certificate authority: one ECDSA P-256 key on disk, from which come the plane's own certificates and those of the agents.
// Join tokens carry the hash of its public key, so that key is the root of all trust between a plane and its agents: losing it means to enrol every
// agent anew. Who may have a certificate is not decided here but in package registry.
package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/axion/runner-agent/internal/atomicfile"
	"github.com/axion/runner-agent/proto/jointoken"
)

const (
	// DefaultAgentLife is how long an agent's certificate is valid unless WithAgentLife says otherwise. An agent renews at 2/3 of it, so it may be off
	// for ten days without having to enrol again.
	DefaultAgentLife = 30 * 24 * time.Hour

	caLife = 20 * 365 * 24 * time.Hour
	// ownLife is the life of the plane's own certificates. They are made anew at each start, and by ServerTLS at 2/3 of it.
	ownLife = 90 * 24 * time.Hour
	// maxBackdate lets a peer whose clock is behind accept a new certificate. A short life is backdated less, by a tenth of it.
	maxBackdate = time.Hour

	keyFile         = "ca.key"
	certificateFile = "ca.pem"
	keyBlock        = "PRIVATE KEY"
	certBlock       = "CERTIFICATE"
	organization    = "axion"
	maxFileBytes    = 64 << 10
)

// CA is a certificate authority. It is safe for concurrent use.
type CA struct {
	key       *ecdsa.PrivateKey
	cert      *x509.Certificate
	pem       []byte
	agentLife time.Duration
	now       func() time.Time
}

// Option changes a CA.
type Option func(*CA)

// WithAgentLife sets how long the agents' certificates are valid.
func WithAgentLife(d time.Duration) Option {
	return func(c *CA) { c.agentLife = d }
}

// Open loads the CA from that folder and makes folder and CA if there is none. A key that is there but unreadable is an error and never replaced; a
// certificate that is missing is made again from the key, which changes nothing for those who trust the key.
func Open(dir string, now func() time.Time, options ...Option) (*CA, error) {
	c := &CA{agentLife: DefaultAgentLife, now: now}
	for _, o := range options {
		o(c)
	}
	if c.agentLife <= 0 {
		return nil, fmt.Errorf("certificate authority: the life of agents' certificates is %v, it must be more than 0", c.agentLife)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if err := c.load(filepath.Join(dir, keyFile), filepath.Join(dir, certificateFile)); err != nil {
		return nil, fmt.Errorf("certificate authority in %s: %w", dir, err)
	}
	c.pem = pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: c.cert.Raw})
	return c, nil
}

func (c *CA) load(keyPath, certPath string) error {
	certDER, certErr := readPEM(certPath, certBlock)
	if certErr != nil && !errors.Is(certErr, fs.ErrNotExist) {
		return certErr
	}
	keyDER, err := readPEM(keyPath, keyBlock)
	switch {
	case errors.Is(err, fs.ErrNotExist) && certErr == nil:
		return fmt.Errorf("%s is there but its key is not: put %s back from a backup, or remove both and enrol every agent anew", certPath, keyPath)
	case errors.Is(err, fs.ErrNotExist):
		if keyDER, err = makeKey(keyPath); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if c.key, err = parseKey(keyDER); err != nil {
		return fmt.Errorf("%s: %w", keyPath, err)
	}
	if certErr != nil {
		if certDER, err = c.selfSign(certPath); err != nil {
			return err
		}
	}
	if c.cert, err = x509.ParseCertificate(certDER); err != nil {
		return fmt.Errorf("%s: %w", certPath, err)
	}
	if !c.key.PublicKey.Equal(c.cert.PublicKey) || !c.cert.IsCA {
		return fmt.Errorf("%s is not the CA certificate of the key in %s", certPath, keyPath)
	}
	return nil
}

func makeKey(path string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return der, atomicfile.Write(path, pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), 0o600)
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	any, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := any.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("it is not an ECDSA P-256 key")
	}
	return key, nil
}

// selfSign makes the CA's own certificate and writes it.
func (c *CA) selfSign(path string) ([]byte, error) {
	now := c.now()
	serial := newSerial()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Axion plane CA", Organization: []string{organization}},
		NotBefore:             now.Add(-maxBackdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
	if err != nil {
		return nil, err
	}
	return der, atomicfile.Write(path, pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: der}), 0o644)
}

func readPEM(path, blockType string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFileBytes {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are expected", path, info.Size(), maxFileBytes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != blockType || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s is damaged: it does not hold one PEM block %q", path, blockType)
	}
	return block.Bytes, nil
}

// CertificatePEM returns the CA's certificate.
func (c *CA) CertificatePEM() []byte { return bytes.Clone(c.pem) }

// Hash returns the SHA-256 of the CA's SubjectPublicKeyInfo, as join tokens carry it.
func (c *CA) Hash() []byte {
	h := jointoken.HashCA(c.cert)
	return h[:]
}

// Pool returns a new pool that holds the CA's certificate alone.
func (c *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return pool
}

// sign issues a certificate for that key. It begins a little in the past and ends no later than the CA's own.
func (c *CA) sign(template *x509.Certificate, key crypto.PublicKey, life time.Duration) (*x509.Certificate, error) {
	now := c.now()
	template.SerialNumber = newSerial()
	template.NotBefore = now.Add(-min(maxBackdate, life/10))
	template.NotAfter = now.Add(life)
	if template.NotAfter.After(c.cert.NotAfter) {
		template.NotAfter = c.cert.NotAfter
	}
	if !template.NotAfter.After(now) {
		return nil, fmt.Errorf("the certificate authority ended on %s", c.cert.NotAfter.Format(time.DateOnly))
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key, c.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", template.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// newSerial returns a positive random number of 128 bits.
func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] |= 0x80           // always the same length
	return new(big.Int).SetBytes(b[:])
}
