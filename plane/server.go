package plane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const (
	// maxReceive bounds a message to the plane: an operator's bundle and its frame.
	maxReceive = 16 << 20
	// maxSend bounds a message of the plane: the agents' newest metrics, an event.
	maxSend = 64 << 20
	// maxStreams is how many calls one connection may have at once; an agent's logs are streams too.
	maxStreams = 256
	// maxHeaders bounds a call's metadata, in bytes.
	maxHeaders = 16 << 10
	// handshakeTimeout bounds TLS and HTTP/2 set-up of a connection.
	handshakeTimeout = 20 * time.Second
	// pingAfter and pingTimeout find a peer that has gone without a word.
	pingAfter   = 30 * time.Second
	pingTimeout = 10 * time.Second
	// minClientPing is how often a client may ping; one that does so more often is cut off.
	minClientPing = 5 * time.Second
	// drainTime is how long calls may go on when the plane stops.
	drainTime = 3 * time.Second
)

// newServer returns the gRPC server behind the plane's one listener.
func newServer(config *tls.Config, g *gate, more ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(credentials.NewTLS(config)),
		grpc.InTapHandle(g.tap),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.ChainUnaryInterceptor(g.unary),
		grpc.ChainStreamInterceptor(g.stream),
		grpc.MaxRecvMsgSize(maxReceive),
		grpc.MaxSendMsgSize(maxSend),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
	}, more...)...)
}

// serve accepts until ctx ends, then lets calls end for a while, and cuts off the rest.
func serve(ctx context.Context, server *grpc.Server, listener net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		server.GracefulStop()
	}()
	t := time.NewTimer(drainTime)
	defer t.Stop()
	select {
	case <-drained:
	case <-t.C:
		server.Stop()
		<-drained
	}
	if err := <-failed; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	return nil
}
