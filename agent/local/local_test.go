package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// agent is what the server tells of in these tests.
type agent struct {
	mu    sync.Mutex
	log   bytes.Buffer
	codes []string        // all that were ever set
	set   map[string]bool // those of now
}

func (a *agent) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.log.Write(p)
}

func (a *agent) logged() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.log.String()
}

func (a *agent) Set(code string, _ runnerv1.HealthSeverity, _, _ string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.codes = append(a.codes, code)
	if a.set == nil {
		a.set = map[string]bool{}
	}
	a.set[code] = true
}

func (a *agent) Clear(code string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.set, code)
}

func (a *agent) is(code string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.set[code]
}

func (a *agent) warned() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.codes
}

func (a *agent) status() *runnerv1.AgentStatus {
	return &runnerv1.AgentStatus{AgentId: "a-1", Version: "1.2.3"}
}

func (a *agent) stack(_ context.Context, name string) (*runnerv1.StackStatusResult, error) {
	if name == "" {
		return &runnerv1.StackStatusResult{Stacks: []*runnerv1.StackSummary{{Name: "shop", Services: 2}}}, nil
	}
	return nil, failure.New(failure.Invalid, "no_such_stack", name, "nothing found in stack: %s", name).WithHint("`docker stack ls` lists them")
}

// OpenLogs sends the lines "NAME 0" to "NAME 2"; with follow it goes on until ctx ends.
func (a *agent) OpenLogs(ctx context.Context, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
	name := open.GetService() + open.GetContainer()
	if name == "absent" {
		return failure.New(failure.Invalid, "no_such_service", name, "no such service: %s", name)
	}
	for i := range 3 {
		line := &runnerv1.LogLine{Text: fmt.Appendf(nil, "%s %d\n", name, i)}
		if err := send(&runnerv1.LogBatch{Lines: []*runnerv1.LogLine{line}}); err != nil {
			return err
		}
	}
	if open.GetOptions().GetFollow() {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (a *agent) deps() Deps {
	return Deps{Status: a.status, Stack: a.stack, Logs: a, Warn: a, Log: slog.New(slog.NewTextHandler(a, nil))}
}

// serve runs a server until stop is called, or the test ends.
func serve(t *testing.T, cfg Config) (a *agent, stop func()) {
	t.Helper()
	a = &agent{}
	s := New(cfg, a.deps())
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", cfg.Socket); err == nil {
			c.Close()
			return a, stop
		}
		if time.Now().After(deadline) {
			t.Fatal("the server does not listen")
		}
	}
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestService(t *testing.T) {
	path := filepath.Join(t.TempDir(), "axion", "agent.sock")
	a, _ := serve(t, Config{Socket: path})
	c := dial(t, path)

	status, err := c.Status(t.Context())
	if err != nil || status.GetAgentId() != "a-1" {
		t.Errorf("status: %v, %v", status, err)
	}
	list, err := c.Stack(t.Context(), "")
	if err != nil || list.GetStacks()[0].GetName() != "shop" {
		t.Errorf("stacks: %v, %v", list, err)
	}
	_, err = c.Stack(t.Context(), "blog")
	if f := failure.Of(err); f == nil || f.Class != failure.Invalid || f.Code != "no_such_stack" || f.Object != "blog" || f.Hint == "" {
		t.Errorf("the failure is not the agent's own: %#v", err)
	}
	if _, err = c.Stack(t.Context(), strings.Repeat("x", maxNameBytes+1)); failure.ClassOf(err) != failure.Invalid {
		t.Errorf("long name: %v", err)
	}
	if want := fmt.Sprintf("uid=%d", os.Getuid()); !strings.Contains(a.logged(), want) || !strings.Contains(a.logged(), fmt.Sprintf("pid=%d", os.Getpid())) {
		t.Errorf("who connected is not logged: %s", a.logged())
	}
}

func TestLogs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	serve(t, Config{Socket: path})
	c := dial(t, path)
	service := &runnerv1.LocalLogsRequest{Target: &runnerv1.LocalLogsRequest_Service{Service: "web"}}
	container := &runnerv1.LocalLogsRequest{Target: &runnerv1.LocalLogsRequest_Container{Container: "box"}, Options: &runnerv1.LogOptions{Follow: true}}

	var lines []string
	if err := c.Logs(t.Context(), service, func(l *runnerv1.LogLine) error {
		lines = append(lines, string(l.GetText()))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(lines, ""); got != "web 0\nweb 1\nweb 2\n" {
		t.Errorf("got %q", got)
	}

	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	if err := c.Logs(ctx, container, func(*runnerv1.LogLine) error {
		if n++; n == 3 {
			cancel()
		}
		return nil
	}); err != nil {
		t.Errorf("an end that was wanted is an error: %v", err)
	}

	enough := errors.New("enough")
	if err := c.Logs(t.Context(), container, func(*runnerv1.LogLine) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
	for name, tc := range map[string]struct {
		req  *runnerv1.LocalLogsRequest
		code string
	}{
		"no target": {&runnerv1.LocalLogsRequest{}, "bad_log_target"},
		"absent":    {&runnerv1.LocalLogsRequest{Target: &runnerv1.LocalLogsRequest_Service{Service: "absent"}}, "no_such_service"},
	} {
		if f := failure.Of(c.Logs(t.Context(), tc.req, nil)); f == nil || f.Code != tc.code {
			t.Errorf("%s: %#v", name, f)
		}
	}
}

// TestStopWithFollower: a log that is followed must not hold up the agent's end.
func TestStopWithFollower(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	_, stop := serve(t, Config{Socket: path})
	c := dial(t, path)
	begun, ended := make(chan struct{}, 3), make(chan error, 1)
	go func() {
		req := &runnerv1.LocalLogsRequest{Target: &runnerv1.LocalLogsRequest_Container{Container: "box"}, Options: &runnerv1.LogOptions{Follow: true}}
		ended <- c.Logs(context.Background(), req, func(*runnerv1.LogLine) error {
			begun <- struct{}{}
			return nil
		})
	}()
	<-begun
	stop()
	if err := <-ended; failure.ClassOf(err) != failure.Unavailable {
		t.Errorf("the reader is told %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestModes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "axion", "agent.sock")
	serve(t, Config{Socket: path, Group: fmt.Sprint(os.Getgid())})
	for name, want := range map[string]fs.FileMode{path: fs.ModeSocket | 0o660, filepath.Dir(path): fs.ModeDir | 0o750} {
		info, err := os.Lstat(name)
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if _, err := os.Lstat(path + "~"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary name is left: %v", err)
	}
}

func TestUnknownGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	a, _ := serve(t, Config{Socket: path, Group: "no-such-group-here"})
	if got := a.warned(); len(got) != 1 || got[0] != warnGroup {
		t.Errorf("warnings: %v", got)
	}
	dial(t, path)
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close() // as a killed agent leaves it
	serve(t, Config{Socket: path})
	if _, err := dial(t, path).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSocketRefused(t *testing.T) {
	dir := t.TempDir()
	taken, file := filepath.Join(dir, "taken.sock"), filepath.Join(dir, "file")
	serve(t, Config{Socket: taken})
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ path, code string }{
		"another agent": {taken, "local_socket_in_use"},
		"a file":        {file, "local_socket"},
		"a file above":  {filepath.Join(file, "agent.sock"), "local_socket"},
	} {
		t.Run(name, func(t *testing.T) {
			err := New(Config{Socket: tc.path}, (&agent{}).deps()).serve(t.Context())
			if f := failure.Of(err); f == nil || f.Class != failure.Conflict || f.Code != tc.code || f.Object != tc.path {
				t.Errorf("got %#v", err)
			}
		})
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "precious" {
		t.Error("a file that is no socket was touched")
	}
	if _, err := dial(t, taken).Status(t.Context()); err != nil {
		t.Errorf("the other agent lost its socket: %v", err)
	}
}

// TestSocketThatIsHadLater begins without its socket, and answers as soon as nothing is in the way any more.
func TestSocketThatIsHadLater(t *testing.T) {
	for name, block := range map[string]func(t *testing.T, path string) (unblock func()){
		"another agent answers": func(t *testing.T, path string) func() {
			_, stop := serve(t, Config{Socket: path})
			return stop
		},
		"a file is in its place": func(t *testing.T, path string) func() {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { os.Remove(path) }
		},
		"its folder cannot be made": func(t *testing.T, path string) func() {
			folder := filepath.Dir(path)
			if err := errors.Join(os.Remove(folder), os.WriteFile(folder, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			return func() { os.Remove(folder) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "axion", "agent.sock")
			if err := os.Mkdir(filepath.Dir(path), 0o750); err != nil {
				t.Fatal(err)
			}
			unblock := block(t, path)
			a := &agent{}
			s := New(Config{Socket: path}, a.deps())
			s.retry = 10 * time.Millisecond
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx) }()
			eventually(t, "the warning", func() bool { return a.is(warnSocket) })
			unblock()
			eventually(t, "the end of the warning", func() bool { return !a.is(warnSocket) })
			if _, err := dial(t, path).Status(t.Context()); err != nil {
				t.Error(err)
			}
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come: %s", what)
		}
	}
}

func TestDialFailures(t *testing.T) {
	_, err := Dial(t.Context(), filepath.Join(t.TempDir(), "absent.sock"))
	if f := failure.Of(err); f == nil || f.Class != failure.Unavailable || f.Code != "agent_not_running" || f.Hint == "" {
		t.Errorf("got %#v", err)
	}
}

func TestTooManyConnections(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	serve(t, Config{Socket: path})
	c := dial(t, path)
	if _, err := c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			c.Close()
		}
	}()
	for range maxConnections + 8 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	last := idle[len(idle)-1]
	if err := last.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(last); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("one connection too many is kept")
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("a client that was there before: %v", err)
	}
}
