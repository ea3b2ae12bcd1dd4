package broker

import (
	"context"
	"crypto/hmac"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

const dialTimeout = 5 * time.Second

// embedded is the broker in this process.
type embedded struct {
	cfg        Config
	log        *slog.Logger
	guard      *guard
	advertised string
	client     *tls.Config
	cluster    *kfake.Cluster
	silent     *silent
}

func newEmbedded(cfg Config, log *slog.Logger) (*embedded, error) {
	if cfg.ServerTLS == nil || cfg.ClientTLS == nil {
		return nil, errors.New("the embedded broker needs TLS, for itself and for the plane")
	}
	if cfg.ServerTLS.ClientCAs == nil {
		return nil, errors.New("the embedded broker needs the CA of its clients")
	}
	if cfg.DataDir == "" {
		return nil, errors.New("the embedded broker needs a data folder")
	}
	// Topics hold manifests, and the users' file holds salted passwords.
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder of the broker: %w", err)
	}
	if err := os.Chmod(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder of the broker: %w", err)
	}
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	advertised, err := splitAdvertise(cfg.Advertise, listener.Addr().(*net.TCPAddr))
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	client := cfg.ClientTLS.Clone()
	if client.ServerName == "" {
		client.ServerName, _, _ = net.SplitHostPort(advertised)
	}
	return &embedded{cfg: cfg, log: log, advertised: advertised, client: client, guard: newGuard(listener, cfg.ServerTLS, advertised, log)}, nil
}

func (e *embedded) start() error {
	if err := e.checkSecret(); err != nil {
		return errors.Join(err, e.guard.Close())
	}
	cluster, err := kfake.NewCluster(
		kfake.ClusterID("axion"), kfake.NumBrokers(1), kfake.DefaultNumPartitions(1),
		kfake.DataDir(e.cfg.DataDir),
		// An acknowledged event is taken out of the agent's outbox, and an offset that the plane has noted must not lie beyond the log's end after a power cut.
		// So every write is synced (1-2 ms), as the plane's own database does.
		kfake.SyncWrites(),
		kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("SCRAM-SHA-512", planeUser, PlaneUser(e.cfg.Secret).Pass),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return e.guard, nil }),
		kfake.WithLogger(clusterLog{e.log}),
	)
	if err != nil {
		return errors.Join(fmt.Errorf("start the broker on %s: %w", e.cfg.DataDir, err), e.guard.Close())
	}
	e.cluster, e.silent = cluster, watchSilent(cluster)
	e.log.Info("embedded broker runs", "address", e.guard.listener.Addr().String(), "advertised", e.advertised)
	return nil
}

func (e *embedded) stop() {
	e.cluster.Close()
	e.guard.disconnectAll()
}

func (e *embedded) applyRetention() { e.cluster.ApplyRetention() }

// dial connects the plane to its own broker, whatever address it advertises: that one may not lead back here.
func (e *embedded) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	listening := e.guard.listener.Addr().(*net.TCPAddr)
	address := listening.String()
	if listening.IP.IsUnspecified() {
		address = net.JoinHostPort("127.0.0.1", fmt.Sprint(listening.Port))
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: e.client}
	return d.DialContext(ctx, network, address)
}

// The broker keeps its users on disk, the plane's own among them, and what is on disk wins over what it is started with. So another secret would lock the plane
// out. These files are how that is noticed.
const (
	usersFile  = "sasl.json"
	secretFile = "secret.check"
)

// checkSecret forgets the broker's users if they were made with another secret; the plane makes them again.
func (e *embedded) checkSecret() error {
	path := filepath.Join(e.cfg.DataDir, secretFile)
	want := []byte(base64.RawURLEncoding.EncodeToString([]byte(password(e.cfg.Secret, "fingerprint\x00"))))
	have, err := os.ReadFile(path)
	switch {
	case err == nil && hmac.Equal(have, want):
		return nil
	case err == nil:
		e.log.Warn("the broker's secret has changed, its users are made anew")
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("broker: %w", err)
	}
	if err := os.Remove(filepath.Join(e.cfg.DataDir, usersFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("broker: %w", err)
	}
	if err := os.WriteFile(path, want, 0o600); err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	return nil
}

// clusterLog passes on what the embedded broker says.
type clusterLog struct{ log *slog.Logger }

// Logf is the broker's logger interface.
func (l clusterLog) Logf(level kfake.LogLevel, format string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case kfake.LogLevelError:
		to = slog.LevelError
	case kfake.LogLevelWarn:
		to = slog.LevelWarn
	}
	if l.log.Enabled(context.Background(), to) {
		l.log.Log(context.Background(), to, "broker: "+fmt.Sprintf(format, args...))
	}
}
