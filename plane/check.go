package plane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/axion/runner-agent/internal/atomicfile"
	"github.com/axion/runner-agent/proto/failure"
)

// localName is in every server certificate of a plane, whatever it advertises.
const localName = "localhost"

// LocalTLS returns the TLS configuration of a client on the plane's own machine, which trusts the certificate authority in the data directory.
func LocalTLS(dataDir string) (*tls.Config, error) {
	path := filepath.Join(dataDir, caDir, "ca.pem")
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, failure.New(failure.Invalid, "no_ca", path, "the plane's certificate authority: %w", err).
			WithHint("name the plane's data directory with --data; the plane makes it when it starts first")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, failure.New(failure.Invalid, "no_ca", path, "%s holds no certificate", path)
	}
	return &tls.Config{RootCAs: pool, ServerName: localName, MinVersion: tls.VersionTLS13}, nil
}

// LocalAddress returns where the plane with that data directory is reached from its own machine: what it wrote there when it began to listen.
func LocalAddress(dataDir string) (string, error) {
	path := filepath.Join(dataDir, addressFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return "", failure.New(failure.Invalid, "no_plane", path, "where the plane listens is not known: %w", err).
			WithHint("name the plane's data directory with --data; the plane makes it when it starts first")
	}
	host, port, err := net.SplitHostPort(strings.TrimSpace(string(text)))
	if err != nil {
		return "", failure.New(failure.Invalid, "no_plane", path, "%s does not hold an address: %w", path, err)
	}
	return net.JoinHostPort(reachable(host), port), nil
}

// writeAddress keeps where the plane listens for LocalAddress.
func writeAddress(dataDir string, listening net.Addr) error {
	return atomicfile.Write(filepath.Join(dataDir, addressFile), []byte(listening.String()+"\n"), 0o644)
}

// Check asks the plane with that data directory, on this machine, whether it is ready. It returns nil if so.
func Check(ctx context.Context, dataDir string) error {
	address, err := LocalAddress(dataDir)
	if err != nil {
		return err
	}
	config, err := LocalTLS(dataDir)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", address, err)
	}
	defer func() { _ = conn.Close() }()
	resp, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		return fmt.Errorf("the plane at %s does not answer: %w", address, err)
	}
	if resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		return fmt.Errorf("the plane at %s is not ready: %s", address, resp.GetStatus())
	}
	return nil
}
