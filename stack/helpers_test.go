package stack

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack/bundle"
	"github.com/axion/runner-agent/test/engine"
)

// patience bounds a deployment that is expected to converge; two slow cores run all of these tests at once.
const patience = 2 * time.Minute

// rig is a stack engine over the real one, and a stack name of the test's own.
type rig struct {
	*Engine
	api     *client.Client
	stack   string
	image   string
	workDir string
	dir     string // where the test's compose files are
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{api: engine.Client(t), stack: engine.Name(t, "axt-stack"), image: engine.Image(t), workDir: t.TempDir(), dir: t.TempDir()}
	e, err := New(Config{WorkDir: r.workDir, Poll: 300 * time.Millisecond}, Deps{Client: r.api, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r.Engine = e
	t.Cleanup(func() {
		// The test's own context has ended.
		result, err := e.Remove(context.Background(), r.stack, patience, nil)
		if err != nil {
			t.Errorf("clean up: %v: %+v", err, result.Warnings)
		}
		r.removeContainers(t)
		if left, _ := os.ReadDir(r.workDir); len(left) > 0 {
			t.Errorf("left in the work folder: %v", left)
		}
	})
	return r
}

// removeContainers removes what Engine 20.10 keeps for ever: the containers of job tasks that have ended.
func (r *rig) removeContainers(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	left, err := r.api.ContainerList(ctx, container.ListOptions{All: true, Filters: stackTarget(r.stack).tasks})
	if err != nil {
		t.Error(err)
	}
	for _, c := range left {
		if err := r.api.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true}); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			t.Error(err) // a conflict says that the engine removes it already
		}
	}
}

// deployment is the stack that a sender would send for these compose files, one after the other; IMAGE stands for the test image.
func (r *rig) deployment(t *testing.T, composeFiles ...string) Deployment {
	t.Helper()
	content, err := bundle.Gather(r.gatherOptions(t, composeFiles...))
	if err != nil {
		t.Fatal(err)
	}
	return Deployment{Stack: r.stack, Bundle: content, ResolveImage: ResolveNever, Timeout: patience}
}

func (r *rig) gatherOptions(t *testing.T, composeFiles ...string) bundle.GatherOptions {
	t.Helper()
	o := bundle.GatherOptions{WorkingDir: r.dir, LookupEnv: os.LookupEnv, Home: "/home/someone"}
	for i, text := range composeFiles {
		name := "compose" + strings.Repeat("-more", i) + ".yml"
		r.write(t, name, strings.ReplaceAll(text, "IMAGE", r.image))
		o.ComposeFiles = append(o.ComposeFiles, name)
	}
	return o
}

func (r *rig) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// docker runs the docker command and returns what it printed.
func (r *rig) docker(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), engine.DockerCLI(t), args...)
	cmd.Dir = r.dir
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

// events collects what is observed.
type events struct {
	mu  sync.Mutex
	all []Event
}

func (e *events) observe(event Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event)
}

func (e *events) changes() []ObjectChange {
	e.mu.Lock()
	defer e.mu.Unlock()
	var changes []ObjectChange
	for _, event := range e.all {
		if c, ok := event.(ObjectChange); ok {
			changes = append(changes, c)
		}
	}
	return changes
}

func (e *events) states(service string) []State {
	e.mu.Lock()
	defer e.mu.Unlock()
	var states []State
	for _, event := range e.all {
		if p, ok := event.(ServiceProgress); ok && p.Service == service && (len(states) == 0 || states[len(states)-1] != p.State) {
			states = append(states, p.State)
		}
	}
	return states
}

func wantFailure(t *testing.T, err error, class failure.Class, code, text string) {
	t.Helper()
	f := failure.Of(err)
	if f == nil {
		t.Fatalf("no error, want %v %s: %s", class, code, text)
	}
	if f.Class != class || f.Code != code || !strings.Contains(f.Message, text) {
		t.Fatalf("got %v %s: %s\nwant %v %s: … %s …", f.Class, f.Code, f.Message, class, code, text)
	}
}

func wantConverged(t *testing.T, result Result, err error) {
	t.Helper()
	if err != nil || result.Status != Converged {
		t.Fatalf("%s: %v\n%+v", result.Status, err, result.Services)
	}
}

func changed(changes []ObjectChange, kind Kind, action Action, name string) bool {
	for _, c := range changes {
		if c.Kind == kind && c.Action == action && c.Name == name && c.ID != "" {
			return true
		}
	}
	return false
}
