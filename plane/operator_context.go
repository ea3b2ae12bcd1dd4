package plane

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"

	"github.com/axion/runner-agent/plane/ca"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/operatorcontext"
)

// operatorContext returns the operator context of the data directory. On the first start it makes one with a new token; later it keeps the token and brings
// the rest up to date. Whoever removes the file makes every copy of the token useless with the next start.
func operatorContext(dataDir string, authority *ca.CA, host string, port string) (operatorcontext.Context, error) {
	path := ContextPath(dataDir)
	have, err := operatorcontext.Load(path)
	switch {
	case err == nil:
	case failure.Of(err).Code == "no_context":
		have = operatorcontext.Context{Token: newToken()}
	default:
		return operatorcontext.Context{}, fmt.Errorf("%w; remove the file to get a new token", err)
	}
	want := operatorcontext.Context{
		Address: net.JoinHostPort(host, port), CAHash: base64.RawURLEncoding.EncodeToString(authority.Hash()), CAPEM: string(authority.CertificatePEM()),
		Token: have.Token,
	}
	if want == have {
		return want, nil
	}
	return want, want.Save(path)
}

// newToken returns 256 random bits.
func newToken() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}
