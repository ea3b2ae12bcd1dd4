// Package operatorcontext is the file that lets a person or a program operate a plane: where it is, whom to trust, and the token that proves the right.
// The plane writes one into its data directory on its first start; axionctl reads it. It is TOML with four keys:
//
//	address = "plane.example.com:9443"
//	ca_hash = "sha256 of the CA certificate's SubjectPublicKeyInfo, base64url without padding"
//	ca_pem  = "the CA certificate, PEM"
//	token   = "the bearer token"
package operatorcontext

import (
	"bytes"
	"context"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc/credentials"

	"github.com/axion/runner-agent/internal/atomicfile"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/jointoken"
)

const (
	// EnvPath names the environment variable that holds the file's path.
	EnvPath = "AXION_CONTEXT"
	// maxFile bounds the file, in bytes.
	maxFile = 256 << 10
)

// Context is how to reach and operate one plane. Make one with Load or fill it in; String hides the token.
type Context struct {
	// Address is the plane's "host:port".
	Address string `toml:"address" comment:"Where the plane listens."`
	// CAHash is the SHA-256 of the CA certificate's SubjectPublicKeyInfo, base64url without padding. It must fit CAPEM.
	CAHash string `toml:"ca_hash" comment:"SHA-256 of the CA certificate's SubjectPublicKeyInfo, base64url."`
	// CAPEM is the plane's CA certificate; the first one is what CAHash is of.
	CAPEM string `toml:"ca_pem,multiline" comment:"The plane's CA certificate."`
	// Token is the operator's bearer token.
	Token string `toml:"token" comment:"Whoever has it can deploy to every cluster of the plane: keep it secret."`
}

// String returns the address, and nothing secret.
func (c Context) String() string { return "operator context of " + c.Address }

// GoString returns the same as String, so that %#v hides the token too.
func (c Context) GoString() string { return c.String() }

// Hash returns the hash of a CA certificate as it stands in ca_hash.
func Hash(ca *x509.Certificate) string {
	sum := jointoken.HashCA(ca)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// DefaultPath returns where the context is looked for: what AXION_CONTEXT says, else ~/.config/axion/context.toml.
func DefaultPath() (string, error) {
	if path := os.Getenv(EnvPath); path != "" {
		return path, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", failure.New(failure.Invalid, "no_context", EnvPath, "%s does not say where the operator context is, and there is no home directory: %w", EnvPath, err).
			WithHint("set " + EnvPath + " to the file")
	}
	return filepath.Join(home, ".config", "axion", "context.toml"), nil
}

// Load reads the context in that file. Failures of class Invalid: "no_context" (no such file), "bad_context" (unreadable; it says where).
func Load(path string) (Context, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Context{}, failure.New(failure.Invalid, "no_context", path, "no operator context in %s: %w", path, err).
			WithHint("set " + EnvPath + " to the operator.toml that the plane wrote into its data directory")
	}
	if err != nil {
		return Context{}, failure.New(failure.Invalid, "bad_context", path, "operator context: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Context{}, failure.New(failure.Invalid, "bad_context", path, "operator context: %w", err)
	}
	c, err := Parse(text)
	if err != nil {
		return Context{}, failure.New(failure.Invalid, "bad_context", path, "operator context %s: %w", path, err)
	}
	return c, nil
}

// Parse reads a context. Unknown keys, missing ones and a CA that does not fit its hash are errors; none of them quotes a value.
func Parse(text []byte) (Context, error) {
	if len(text) > maxFile {
		return Context{}, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	var c Context
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&c); err != nil {
		return Context{}, describe(err)
	}
	return c, c.check()
}

// describe says where TOML is wrong without showing the line, which may hold the token.
func describe(err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		row, _ := unknown.Errors[0].Position()
		return fmt.Errorf("line %d: key %q is not known", row, joinKey(unknown.Errors[0].Key()))
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		row, column := decode.Position()
		return fmt.Errorf("line %d, column %d: it is no valid TOML of this form", row, column)
	}
	return errors.New("it is no valid TOML of this form")
}

func joinKey(key toml.Key) string {
	text := ""
	for i, part := range key {
		if i > 0 {
			text += "."
		}
		text += part
	}
	return text
}

func (c Context) check() error {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return errors.New(`address must be "host:port"`)
	}
	if c.Token == "" {
		return errors.New("token is missing")
	}
	_, err := c.pool()
	return err
}

// pool returns the CA certificates, the first of which must fit the hash.
func (c Context) pool() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	n := 0
	for rest := []byte(c.CAPEM); ; n++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("ca_pem: %w", err)
		}
		if n == 0 && subtle.ConstantTimeCompare([]byte(Hash(cert)), []byte(c.CAHash)) != 1 {
			return nil, errors.New("ca_pem does not fit ca_hash")
		}
		pool.AddCert(cert)
	}
	if n == 0 {
		return nil, errors.New("ca_pem holds no certificate")
	}
	return pool, nil
}

// ClientTLS returns the TLS configuration of a client of the plane: TLS 1.3, the plane's CA and no other.
func (c Context) ClientTLS() (*tls.Config, error) {
	pool, err := c.pool()
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", c.Address, err)
	}
	return &tls.Config{RootCAs: pool, ServerName: host, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}, nil
}

// Credentials returns what authorizes each call. They are sent over TLS only.
func (c Context) Credentials() credentials.PerRPCCredentials { return bearer(c.Token) }

type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }

// Save writes the context into that file, readable by its owner only, and makes the folder (0700) if there is none. The file is replaced as a whole.
func (c Context) Save(path string) error {
	text, err := toml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode operator context %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("operator context %s: %w", path, err)
	}
	return atomicfile.Write(path, text, 0o600)
}
