package client

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
)

// attempts remembers why the newest attempt at a connection failed. gRPC tells a caller only a text; the error itself says whether nobody
// listens, the name is unknown or the certificate is wrong.
type attempts struct {
	address string

	mu  sync.Mutex
	err error
}

// last returns the error of the newest attempt; nil if it succeeded.
func (a *attempts) last() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

func (a *attempts) record(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

func (a *attempts) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		a.record(err)
		return nil, err
	}
	return conn, nil
}

// watchHandshake returns credentials whose handshakes are recorded.
func (a *attempts) watchHandshake(inner credentials.TransportCredentials) credentials.TransportCredentials {
	return &watchedHandshake{TransportCredentials: inner, attempts: a}
}

type watchedHandshake struct {
	credentials.TransportCredentials
	attempts *attempts
}

func (w *watchedHandshake) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := w.TransportCredentials.ClientHandshake(ctx, authority, raw)
	w.attempts.record(err)
	return conn, info, err
}

func (w *watchedHandshake) Clone() credentials.TransportCredentials {
	return &watchedHandshake{TransportCredentials: w.TransportCredentials.Clone(), attempts: w.attempts}
}
