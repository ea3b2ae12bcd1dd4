package engine

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/client"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	testengine "github.com/axion/runner-agent/test/engine"
)

// warnings remembers the codes that are set.
type warnings struct {
	mu    sync.Mutex
	codes map[string]string
}

func (w *warnings) Set(code string, _ runnerv1.HealthSeverity, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.codes[code] = text
}

func (w *warnings) Clear(code string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.codes, code)
}

func (w *warnings) has(code string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.codes[code]
	return ok
}

func newEngine(t *testing.T, host string) (*Engine, *warnings) {
	t.Helper()
	w := &warnings{codes: make(map[string]string)}
	e, err := New(Config{Host: host}, Deps{Log: slog.New(slog.DiscardHandler), Warn: w})
	if err != nil {
		t.Fatal(err)
	}
	return e, w
}

// liveEngine returns an Engine for the real engine, and skips the test if there is none.
func liveEngine(t *testing.T) (*Engine, *client.Client) {
	t.Helper()
	c := testengine.Client(t)
	e, _ := newEngine(t, c.DaemonHost())
	return e, c
}

// run runs the engine for the test's duration.
func run(t *testing.T, e *Engine) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// eventually waits until ok is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not within 20 s", what)
}

func TestNode(t *testing.T) {
	e, c := liveEngine(t)
	info, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	facts, err := e.Node(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if facts.GetNodeId() != info.Swarm.NodeID || facts.GetHostname() != info.Name || facts.GetSwarmClusterId() != info.Swarm.Cluster.ID ||
		facts.GetRole() != runnerv1.NodeRole_NODE_ROLE_MANAGER || facts.GetEngineVersion() != info.ServerVersion ||
		facts.GetCpus() != uint32(info.NCPU) || facts.GetMemoryBytes() != uint64(info.MemTotal) || facts.GetKernel() != info.KernelVersion {
		t.Errorf("got %v", facts)
	}
	facts.Hostname = "changed by the caller"
	if again, err := e.Node(t.Context()); err != nil || again.GetHostname() != info.Name {
		t.Errorf("the cache was changed by a caller: %v, %v", again, err)
	}
	if !e.Reachable() {
		t.Error("the engine answered and is not reachable")
	}
}

func TestNodes(t *testing.T) {
	e, c := liveEngine(t)
	info, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := e.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if list.GetSwarmClusterId() != info.Swarm.Cluster.ID || len(list.GetNodes()) != info.Swarm.Nodes {
		t.Errorf("got %v", list)
	}
	for _, n := range list.GetNodes() {
		if n.GetNodeId() == info.Swarm.NodeID && (n.GetState() != "ready" || n.GetRole() != runnerv1.NodeRole_NODE_ROLE_MANAGER || n.GetAvailability() != "active") {
			t.Errorf("this node: %v", n)
		}
	}
}

// TestClientIsFixed: a client that negotiates when it is first used must not be shared.
func TestClientIsFixed(t *testing.T) {
	e, c := liveEngine(t)
	ping, err := c.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	shared := e.Client()
	if shared.ClientVersion() != ping.APIVersion {
		t.Errorf("version %s before the first call, the engine has %s", shared.ClientVersion(), ping.APIVersion)
	}
	var wg sync.WaitGroup
	for range 8 { // the race detector watches
		wg.Go(func() {
			_ = shared.ClientVersion()
			if _, err := shared.Ping(t.Context()); err != nil {
				t.Errorf("ping: %v", err)
			}
		})
	}
	wg.Wait()
}

func TestEngineThatIsAway(t *testing.T) {
	host := "unix://" + filepath.Join(t.TempDir(), "absent.sock")
	e, w := newEngine(t, host)
	if e.Client() == nil {
		t.Fatal("no client")
	}
	_, err := e.Node(t.Context())
	if f := failure.Of(err); f == nil || f.Class != failure.Unavailable || f.Code != WarnUnreachable || f.Object != host || f.Hint == "" {
		t.Errorf("Node: %#v", err)
	}
	if f := failure.Of(e.Start(t.Context(), "x")); f == nil || f.Class != failure.Unavailable {
		t.Errorf("Start: %v", f)
	}
	if e.Reachable() || !w.has(WarnUnreachable) {
		t.Error("an engine that is away is not told")
	}
}

func TestBadHost(t *testing.T) {
	_, err := New(Config{Host: "docker.sock"}, Deps{})
	if f := failure.Of(err); f == nil || f.Class != failure.Invalid || f.Object != "docker.sock" {
		t.Errorf("got %v", err)
	}
}

func TestCallerGivesUp(t *testing.T) {
	e, w := newEngine(t, silentEngine(t))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := e.Node(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if w.has(WarnUnreachable) {
		t.Error("a caller who gives up says nothing about the engine")
	}
}

// silentEngine takes connections and never answers.
func silentEngine(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "silent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return "unix://" + path
}

// TestEngineGoesAndComesBack cuts the way to the real engine and opens it again.
func TestEngineGoesAndComesBack(t *testing.T) {
	_, c := liveEngine(t)
	way := newWay(t, c.DaemonHost())
	e, w := newEngine(t, "unix://"+way.path)
	run(t, e)
	if !waitWarning(t, w, WarnUnreachable, true) {
		t.Fatal("no warning while there is no engine")
	}

	changed := e.Changed()
	way.open(t)
	eventually(t, "engine reachable", e.Reachable)
	eventually(t, "warning cleared", func() bool { return !w.has(WarnUnreachable) })
	select {
	case <-changed:
	default:
		t.Error("Changed was not closed")
	}
	first := e.Client()
	facts, err := e.Node(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	way.cut()
	eventually(t, "engine away", func() bool { return !e.Reachable() })
	if known, err := e.Node(t.Context()); err != nil || known.GetNodeId() != facts.GetNodeId() {
		t.Errorf("a node does not forget who it is while its engine restarts: %v, %v", known, err)
	}

	way.open(t)
	eventually(t, "engine back", e.Reachable)
	if e.Client() == first {
		t.Error("the client of an engine that was away is kept")
	}
	if _, err := e.Client().Ping(t.Context()); err != nil {
		t.Errorf("the new client: %v", err)
	}
}

func waitWarning(t *testing.T, w *warnings, code string, set bool) bool {
	t.Helper()
	eventually(t, code, func() bool { return w.has(code) == set })
	return true
}

// way is a socket that leads to the engine, and can be cut.
type way struct {
	path, target string

	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
	wg       sync.WaitGroup
}

func newWay(t *testing.T, host string) *way {
	t.Helper()
	u, err := client.ParseHostURL(host)
	if err != nil || u.Scheme != "unix" {
		t.Skipf("the engine is not on a Unix socket: %s", host)
	}
	w := &way{path: filepath.Join(t.TempDir(), "docker.sock"), target: u.Host}
	t.Cleanup(w.cut)
	return w
}

func (w *way) open(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.listener = l
	w.mu.Unlock()
	w.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.forward(c) })
		}
	})
}

func (w *way) forward(near net.Conn) {
	far, err := net.Dial("unix", w.target)
	if err != nil {
		near.Close()
		return
	}
	w.mu.Lock()
	cut := w.listener == nil
	w.conns = append(w.conns, near, far)
	w.mu.Unlock()
	if cut { // between its acceptance and here: nobody else would close it
		near.Close()
		far.Close()
		return
	}
	w.wg.Go(func() {
		_, _ = io.Copy(far, near)
		far.Close()
	})
	_, _ = io.Copy(near, far)
	near.Close()
}

func (w *way) cut() {
	w.mu.Lock()
	if w.listener != nil {
		w.listener.Close()
		_ = os.Remove(w.path)
	}
	for _, c := range w.conns {
		c.Close()
	}
	w.listener, w.conns = nil, nil
	w.mu.Unlock()
	w.wg.Wait()
}
