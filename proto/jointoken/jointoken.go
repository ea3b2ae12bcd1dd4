// Package jointoken is the form of a join token, the one string that an operator carries from a control plane to the nodes of a cluster:
//
//	axn1.SECRET.CAHASH
//
// SECRET proves to the plane that the operator lets the node in; CAHASH, the SHA-256 of the public key of the plane's CA, proves to the agent that it
// speaks to the right plane before it sends anything (as the discovery hash of kubeadm does). Both are base64url without padding. Plane and agent
// share this one parser.
package jointoken

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"

	"github.com/axion/runner-agent/proto/failure"
)

const (
	// Prefix begins every token of this format.
	Prefix = "axn1"
	// MaxBytes bounds what Parse reads, white space around the token included.
	MaxBytes = 256
	// secretBytes is the length of a secret: 256 bits, so that guessing is hopeless and a plain hash protects it at rest.
	secretBytes = 32
	redacted    = "[redacted]"
)

// encoding refuses padding and stray bits, so that a secret has exactly one text.
var encoding = base64.RawURLEncoding.Strict()

// Token is a join token.
type Token struct {
	// Secret is the part that only the plane and its nodes know.
	Secret Secret
	// CAHash is HashCA of the plane's CA certificate; public.
	CAHash [sha256.Size]byte
}

// Secret is a token's secret part. Its String is redacted; Text gives it away.
type Secret [secretBytes]byte

// NewSecret returns a random secret.
func NewSecret() Secret {
	var s Secret
	_, _ = rand.Read(s[:]) // never fails: crypto/rand ends the process instead
	return s
}

// HashCA returns the SHA-256 of the certificate's SubjectPublicKeyInfo. It outlives a CA certificate that is made anew with the same key.
func HashCA(ca *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(ca.RawSubjectPublicKeyInfo) }

// Parse reads a token; white space around it is ignored. Failures have the code token_malformed and hold no part of the token.
func Parse(text string) (Token, error) {
	if len(text) > MaxBytes {
		return Token{}, malformed("is longer than %d bytes", MaxBytes)
	}
	parts := strings.Split(strings.TrimSpace(text), ".")
	if len(parts) != 3 || parts[0] != Prefix {
		return Token{}, malformed("does not have the form %s.SECRET.CAHASH", Prefix)
	}
	secret, err := ParseSecret(parts[1])
	if err != nil {
		return Token{}, err
	}
	hash, err := encoding.DecodeString(parts[2])
	if err != nil || len(hash) != sha256.Size {
		return Token{}, malformed("has a CA hash that is not %d bytes in base64url", sha256.Size)
	}
	return Token{Secret: secret, CAHash: [sha256.Size]byte(hash)}, nil
}

// ParseSecret reads a secret alone, as an agent sends it to the plane. Failures have the code token_malformed.
func ParseSecret(text string) (Secret, error) {
	if len(text) > MaxBytes {
		return Secret{}, malformed("is longer than %d bytes", MaxBytes)
	}
	b, err := encoding.DecodeString(text)
	if err != nil || len(b) != secretBytes {
		return Secret{}, malformed("has a secret that is not %d bytes in base64url", secretBytes)
	}
	return Secret(b), nil
}

func malformed(format string, args ...any) error {
	return failure.New(failure.Invalid, "token_malformed", "join token", "the join token "+format, args...).
		WithHint("copy the whole token that `axionctl token create` printed")
}

// String returns the whole token, its secret included.
func (t Token) String() string {
	return fmt.Sprintf("%s.%s.%s", Prefix, t.Secret.Text(), encoding.EncodeToString(t.CAHash[:]))
}

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value {
	return slog.StringValue(fmt.Sprintf("%s.%s.%s", Prefix, redacted, encoding.EncodeToString(t.CAHash[:])))
}

// Names reports in constant time whether the token carries the hash of that CA certificate.
func (t Token) Names(ca *x509.Certificate) bool {
	hash := HashCA(ca)
	return subtle.ConstantTimeCompare(t.CAHash[:], hash[:]) == 1
}

// Text returns the secret in base64url, as it stands in the token and in EnrollRequest.token.
func (s Secret) Text() string { return encoding.EncodeToString(s[:]) }

// Hash returns the SHA-256 of the secret in hexadecimal: what the plane stores in its place.
func (s Secret) Hash() string {
	h := sha256.Sum256(s[:])
	return hex.EncodeToString(h[:])
}

// HasHash reports in constant time whether hash is the secret's Hash.
func (s Secret) HasHash(hash string) bool {
	return subtle.ConstantTimeCompare([]byte(s.Hash()), bytes.ToLower([]byte(hash))) == 1
}

// Equal compares in constant time.
func (s Secret) Equal(other Secret) bool { return subtle.ConstantTimeCompare(s[:], other[:]) == 1 }

// String hides the secret.
func (s Secret) String() string { return redacted }

// GoString hides the secret.
func (s Secret) GoString() string { return redacted }
