package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// folderMode keeps others away from the folder, if it is ours to make.
	folderMode = 0o750
	// socketMode lets owner and group connect.
	socketMode = 0o660
	// probeTimeout is how long a socket that exists already has to answer.
	probeTimeout = 2 * time.Second
	// warnGroup is set while the group could not be given the socket.
	warnGroup = "local_socket_group"
)

// socket is a listener whose file is made ready under another name and then moved to its place: nobody can connect before its mode is right, and a file that a
// killed agent left behind is replaced in one step.
type socket struct {
	net.Listener
	path string
	file fs.FileInfo
	open atomic.Int32 // connections
}

// connection counts itself.
type connection struct {
	net.Conn
	closed func()
}

// Close ends the connection; it may be called more than once.
func (c *connection) Close() error {
	c.closed()
	return c.Conn.Close()
}

// Accept returns the next connection. One too many is closed at once.
func (s *socket) Accept() (net.Conn, error) {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if s.open.Add(1) <= maxConnections {
			return &connection{Conn: c, closed: sync.OnceFunc(func() { s.open.Add(-1) })}, nil
		}
		s.open.Add(-1)
		_ = c.Close()
	}
}

// listen makes the socket. It refuses to take the place of a file that is no socket, and of a socket on which somebody answers.
func listen(ctx context.Context, cfg Config, deps Deps) (*socket, error) {
	if err := os.MkdirAll(filepath.Dir(cfg.Socket), folderMode); err != nil {
		return nil, socketFailure(cfg.Socket, err)
	}
	if err := checkStale(ctx, cfg.Socket); err != nil {
		return nil, err
	}
	temporary := cfg.Socket + "~"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, socketFailure(cfg.Socket, err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", temporary)
	if err != nil {
		return nil, socketFailure(cfg.Socket, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it moves away
	s := &socket{Listener: l, path: cfg.Socket}
	if err := s.place(temporary, cfg, deps); err != nil {
		return nil, errors.Join(socketFailure(cfg.Socket, err), l.Close(), os.Remove(temporary))
	}
	return s, nil
}

// place gives the file its mode and group, and its name.
func (s *socket) place(temporary string, cfg Config, deps Deps) error {
	if err := os.Chmod(temporary, socketMode); err != nil {
		return err
	}
	giveToGroup(temporary, cfg, deps)
	file, err := os.Lstat(temporary)
	if err != nil {
		return err
	}
	s.file = file
	return os.Rename(temporary, cfg.Socket)
}

// remove takes the file away, unless somebody else has put another in its place.
func (s *socket) remove() {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) {
		_ = os.Remove(s.path)
	}
}

// checkStale returns nil if there is nothing at path or a socket on which nobody answers.
func checkStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return socketFailure(path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return failure.New(failure.Conflict, "local_socket", path, "local socket %s: a file that is no socket is in its place", path).
			WithHint("remove it, or choose another path with local.socket")
	}
	d := net.Dialer{Timeout: probeTimeout}
	c, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		_ = c.Close()
	}
	return failure.New(failure.Conflict, "local_socket_in_use", path, "local socket %s: another process answers on it", path).
		WithHint("stop the other agent, or choose another path with local.socket")
}

// giveToGroup lets the group connect. Without the right to do so the socket stays with the process's own group, and a warning says so.
func giveToGroup(path string, cfg Config, deps Deps) {
	deps.Warn.Clear(warnGroup)
	if cfg.Group == "" {
		return
	}
	gid, err := groupID(cfg.Group)
	if err == nil {
		err = errors.Join(os.Chown(path, -1, gid), os.Chown(filepath.Dir(cfg.Socket), -1, gid))
	}
	if err != nil {
		text := fmt.Sprintf("group %s cannot be given the local socket %s: %v", cfg.Group, cfg.Socket, err)
		deps.Log.Warn(text)
		deps.Warn.Set(warnGroup, runnerv1.HealthSeverity_HEALTH_SEVERITY_LOW, "Local socket is not open to its group", text)
	}
}

func groupID(group string) (int, error) {
	if gid, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(gid), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

func socketFailure(path string, err error) error {
	return failure.New(failure.Conflict, "local_socket", path, "local socket %s: %w", path, err).
		WithHint("choose another path with local.socket")
}
