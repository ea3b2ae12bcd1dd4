// Package handshake keeps why a TLS handshake failed. gRPC tells a caller only the text of it, and a text does not say reliably whether the server's
// certificate is of another CA, for another name, or over.
package handshake

import (
	"context"
	"crypto/tls"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
)

// Credentials are a client's TLS credentials that remember how the last handshake ended. They are safe for concurrent use.
type Credentials struct {
	credentials.TransportCredentials
	last *outcome
}

// outcome is of the last handshake; clones of credentials share it, because gRPC makes its handshakes with a clone.
type outcome struct {
	mu  sync.Mutex
	err error
}

// New returns credentials for those settings.
func New(settings *tls.Config) Credentials {
	return Credentials{TransportCredentials: credentials.NewTLS(settings), last: &outcome{}}
}

// Err returns the error of the last handshake, with its whole chain; nil if it went well or there was none.
func (c Credentials) Err() error {
	c.last.mu.Lock()
	defer c.last.mu.Unlock()
	return c.last.err
}

// ClientHandshake does the handshake and remembers how it ended.
func (c Credentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, conn)
	c.last.mu.Lock()
	defer c.last.mu.Unlock()
	c.last.err = err
	return secured, info, err
}

// Clone returns credentials that remember in the same place.
func (c Credentials) Clone() credentials.TransportCredentials {
	return Credentials{TransportCredentials: c.TransportCredentials.Clone(), last: c.last}
}
