package envelope

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
)

// signedDigest is what a signature covers: every attribute that a reader acts on and the digest of the data. Each part carries its length, so that no two
// envelopes have the same digest.
func (e Envelope) signedDigest() []byte {
	data := sha256.Sum256(e.Data)
	h := sha256.New()
	for _, part := range []string{
		"axion-event-v1", e.ID, e.Source, e.Type, e.Subject, e.CorrelationID, e.CausationID,
		strconv.FormatUint(e.Generation, 10), formatTime(e.Time), formatTime(e.Deadline), e.ContentType, string(data[:]),
	} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return h.Sum(nil)
}

// Sign sets the envelope's signature, made with an ECDSA key over all attributes and the data.
func (e *Envelope) Sign(key crypto.Signer) error {
	sig, err := key.Sign(rand.Reader, e.signedDigest(), crypto.SHA256)
	if err != nil {
		return fmt.Errorf("sign message %s: %w", e.ID, err)
	}
	e.Signature = sig
	return nil
}

// Verify reports whether the owner of that public key wrote this envelope.
func (e Envelope) Verify(key *ecdsa.PublicKey) bool {
	return len(e.Signature) > 0 && ecdsa.VerifyASN1(key, e.signedDigest(), e.Signature)
}

func encodeSignature(sig []byte) string { return base64.StdEncoding.EncodeToString(sig) }

func decodeSignature(s string) ([]byte, error) { return base64.StdEncoding.DecodeString(s) }
