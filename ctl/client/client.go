// Package client is the connection of the operator's command line to a control plane: gRPC over TLS with the operator's token. Every error
// that comes out of a call is a failure (package failure) whose sentence names the address and says what is in the way: nobody listens there,
// the certificate is of another authority, the token is refused.
package client

import (
	"crypto/tls"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
)

const (
	// maxReceive bounds one answer: an outcome with 10,000 changes and full task errors, a batch of metrics.
	maxReceive = 32 << 20
	// dialTimeout bounds one attempt at a connection, with its handshake.
	dialTimeout = 10 * time.Second
	// keepaliveTime and keepaliveTimeout find a connection that died without a word while a deployment is watched.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	// maxReconnectDelay bounds gRPC's own pause between attempts, so that a plane that is back is found soon.
	maxReconnectDelay = 3 * time.Second
)

// Config says where the plane is and how to be let in.
type Config struct {
	// Address is the plane's "host:port".
	Address string
	// TLS authenticates the plane: its roots are the plane's own authority.
	TLS *tls.Config
	// Credentials add the operator's token to each call.
	Credentials credentials.PerRPCCredentials
}

// Client is a connection to one plane. Close it.
type Client struct {
	planev1.OperatorClient
	conn *grpc.ClientConn
}

// New prepares the connection; it is made when the first call needs it. It fails on a Config that cannot work.
func New(cfg Config) (*Client, error) {
	if cfg.TLS == nil {
		return nil, fmt.Errorf("control plane at %s: no TLS configuration", cfg.Address)
	}
	tracker := &attempts{address: cfg.Address}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(tracker.watchHandshake(credentials.NewTLS(cfg.TLS))),
		grpc.WithContextDialer(tracker.dial),
		grpc.WithChainUnaryInterceptor(tracker.explainUnary),
		grpc.WithChainStreamInterceptor(tracker.explainStream),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceive)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxReconnectDelay},
			MinConnectTimeout: dialTimeout,
		}),
		// The plane's name is resolved by the dialer, and no foreign service configuration may change how calls are made.
		grpc.WithDisableServiceConfig(),
	}
	if cfg.Credentials != nil {
		options = append(options, grpc.WithPerRPCCredentials(cfg.Credentials))
	}
	conn, err := grpc.NewClient("passthrough:///"+cfg.Address, options...)
	if err != nil {
		return nil, fmt.Errorf("control plane at %s: %w", cfg.Address, err)
	}
	return &Client{OperatorClient: planev1.NewOperatorClient(conn), conn: conn}, nil
}

// Close ends the connection and every call on it.
func (c *Client) Close() error { return c.conn.Close() }
