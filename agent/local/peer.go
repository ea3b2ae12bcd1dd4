package local

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// peerCredentials ask the kernel who is at the other end of a Unix socket. Nothing is sent for it and nothing can be forged.
type peerCredentials struct {
	log *slog.Logger
}

// peer is who is at the other end.
type peer struct {
	credentials.CommonAuthInfo
	pid      int32
	uid, gid uint32
}

// AuthType names the way in which the peer was recognised.
func (peer) AuthType() string { return "peercred" }

// ServerHandshake logs who connects. A connection whose peer is unknown is refused.
func (c peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := peerOf(conn)
	if err != nil {
		return nil, nil, fmt.Errorf("local client: %w", err)
	}
	c.log.Info("local client connected", "uid", p.uid, "gid", p.gid, "pid", p.pid)
	return conn, p, nil
}

// ClientHandshake is not used.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("peer credentials are the server's affair")
}

// Info describes the credentials.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone returns a copy.
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName is not used.
func (peerCredentials) OverrideServerName(string) error { return nil }

func peerOf(conn net.Conn) (peer, error) {
	c, ok := conn.(*connection)
	if !ok {
		return peer{}, fmt.Errorf("%T is no connection of the local socket", conn)
	}
	u, ok := c.Conn.(*net.UnixConn)
	if !ok {
		return peer{}, fmt.Errorf("%T is no Unix socket", c.Conn)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return peer{}, err
	}
	if credErr != nil {
		return peer{}, credErr
	}
	return peer{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, // the kernel carries it
		pid:            cred.Pid, uid: cred.Uid, gid: cred.Gid,
	}, nil
}
