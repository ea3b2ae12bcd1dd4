package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/stack/bundle"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/engineproxy"
)

const (
	engineSocket = "/var/run/docker.sock"
	// patience bounds whatever a test waits for.
	patience = 90 * time.Second
)

// rig is one stack on a real Swarm, and managers that work on it.
type rig struct {
	t     *testing.T
	api   *client.Client // the test's own look
	stack string
	image string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, api: engine.Client(t), stack: engine.Name(t, "axt-fence"), image: engine.Image(t)}
	t.Cleanup(r.clean)
	return r
}

// clean takes away all that the test made, by its stack.
func (r *rig) clean() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e, err := stack.New(stack.Config{WorkDir: r.t.TempDir()}, stack.Deps{Client: r.api, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		_, err = e.Remove(ctx, r.stack, patience, nil)
	}
	if err != nil {
		r.t.Errorf("clean up: %v", err)
	}
	if c, _, err := r.api.ConfigInspectWithRaw(ctx, r.stack+"-recent"); err == nil {
		_ = r.api.ConfigRemove(ctx, c.ID)
	}
	for _, label := range []string{labelHead + "=" + r.stack, labelManifestOf + "=" + r.stack} {
		configs, err := r.api.ConfigList(ctx, swarm.ConfigListOptions{Filters: filters.NewArgs(filters.Arg("label", label))})
		if err != nil {
			r.t.Errorf("clean up: %v", err)
		}
		for _, c := range configs {
			_ = r.api.ConfigRemove(ctx, c.ID)
		}
	}
}

// manager is an agent on a manager node: a fence of its own, and a client that may be held up.
type manager struct {
	*rig
	fence *Fence
	api   client.APIClient
	group int32
}

func (r *rig) manager(name string, group int32, api client.APIClient) *manager {
	r.t.Helper()
	m := &manager{rig: r, api: api, group: group}
	var err error
	m.fence, err = New(Config{Owner: name, Standstill: 2 * time.Second, Recent: r.stack + "-recent"}, Deps{Client: func() client.APIClient { return m.api }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		r.t.Fatal(err)
	}
	m.fence.only = r.stack
	return m
}

// services are the compose file's services and the text that tells their versions apart.
type services map[string]string

func (r *rig) content(s services) bundle.Content {
	var b strings.Builder
	b.WriteString("version: \"3.8\"\nservices:\n")
	for name, mark := range s {
		fmt.Fprintf(&b, "  %s:\n    image: %s\n    command: [sleep]\n    environment: {MARK: %q}\n    deploy: {endpoint_mode: dnsrr, replicas: 0}\n", name, r.image, mark)
	}
	return bundle.Content{
		WorkingDir: "/w", ComposeFiles: []string{"/w/compose.yml"},
		Files: []bundle.File{{Path: "/w/compose.yml", Content: []byte(b.String())}},
	}
}

func (r *rig) command(id string, generation uint64, s services) Command {
	r.t.Helper()
	m, err := NewManifest(s)
	if err != nil {
		r.t.Fatal(err)
	}
	c := Command{ID: id, Stack: r.stack, Generation: generation, Kind: Deploy, Prune: true, Manifest: m}
	for name := range s {
		c.Services = append(c.Services, r.stack+"_"+name)
	}
	return c
}

// claim takes the claim or ends the test.
func (m *manager) claim(cmd Command) *Claim {
	m.t.Helper()
	cmd.GroupGeneration = m.group
	c, o, err := m.fence.Claim(m.t.Context(), cmd)
	if err != nil || o != nil {
		m.t.Fatalf("claim %s: outcome %v, %v", cmd.ID, o, err)
	}
	return c
}

// apply deploys under the claim until all is written, repeating passes, and returns the last error.
func (m *manager) apply(ctx context.Context, c *Claim, s services) error {
	for {
		err := m.attempt(ctx, c, s)
		if f := failure.Of(err); f == nil || f.Code != CodeRepeat {
			return err
		}
	}
}

func (m *manager) attempt(ctx context.Context, c *Claim, s services) error {
	e, err := stack.New(stack.Config{WorkDir: m.t.TempDir(), Poll: 100 * time.Millisecond}, stack.Deps{Client: c.Client(m.api), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	ctx, cancel := c.Context(ctx)
	defer cancel(nil)
	var applied atomic.Bool
	_, err = e.Deploy(ctx, stack.Deployment{Stack: m.stack, Bundle: m.content(s), Prune: c.cmd.Prune, ResolveImage: stack.ResolveNever, Timeout: patience}, func(ev stack.Event) {
		if _, ok := ev.(stack.ServiceProgress); ok && applied.CompareAndSwap(false, true) {
			if err := c.Applied(ctx); err != nil {
				cancel(err)
			}
		}
	})
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// deploy leads a command to its end.
func (m *manager) deploy(id string, generation uint64, s services) {
	m.t.Helper()
	c := m.claim(m.command(id, generation, s))
	defer c.Release()
	if err := m.apply(m.t.Context(), c, s); err != nil {
		m.t.Fatalf("deploy %s: %v", id, err)
	}
	if err := c.Decide(m.t.Context(), StatusSucceeded, nil); err != nil {
		m.t.Fatalf("decide %s: %v", id, err)
	}
}

// state is what the Swarm holds of the stack: "name=mark label", by name.
func (r *rig) state() map[string]string {
	r.t.Helper()
	all, err := listServices(context.Background(), r.api, r.stack)
	if err != nil {
		r.t.Fatal(err)
	}
	state := map[string]string{}
	for _, s := range all {
		mark := strings.TrimPrefix(s.Spec.TaskTemplate.ContainerSpec.Env[0], "MARK=")
		text := mark + " " + s.Spec.Labels[LabelGeneration]
		if s.Spec.Labels[LabelTombstone] != "" {
			text += " tombstone"
		}
		state[strings.TrimPrefix(s.Spec.Name, r.stack+"_")] = text
	}
	return state
}

func (r *rig) wantState(want map[string]string) {
	r.t.Helper()
	if got := r.state(); fmt.Sprint(got) != fmt.Sprint(want) {
		r.t.Errorf("services are %v, want %v", got, want)
	}
}

func (r *rig) head() Head {
	r.t.Helper()
	s, err := read(context.Background(), r.api, r.stack)
	if err != nil || s == nil {
		r.t.Fatalf("head: %v %v", s, err)
	}
	return s.head
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if f := failure.Of(err); f == nil || f.Code != code {
		t.Fatalf("got %v, want %s", err, code)
	}
}

// TestHeldRequests is the table of what "claim, then deploy" does not stop: one request of generation 1's owner is held, another manager takes the stack to
// generation 2, and then the request goes on.
func TestHeldRequests(t *testing.T) {
	for name, tc := range map[string]struct {
		gen0, gen1, gen2 services
		method, path     string
		nth              int
		want             map[string]string // after the release, and the sweep
	}{
		"update": {
			services{"a": "0"},
			services{"a": "1"},
			services{"a": "2"},
			"POST", `/services/[^/]+/update`, 1,
			map[string]string{"a": "2 2/1"},
		},
		"list for the update": {
			services{"a": "0"},
			services{"a": "1"},
			services{"a": "2"},
			"GET", `/services\?`, 2,
			map[string]string{"a": "2 2/1"},
		},
		"list for the removal": {
			services{"a": "0", "b": "0"},
			services{"a": "1"},
			services{"a": "2", "b": "2"},
			"GET", `/services\?`, 1,
			map[string]string{"a": "2 2/1", "b": "2 2/1"},
		},
		"tombstone of a removal": {
			services{"a": "0", "b": "0"},
			services{"a": "0"},
			services{"a": "0", "b": "2"},
			"POST", `/services/[^/]+/update`, 1,
			map[string]string{"a": "0 2/1", "b": "2 2/1"},
		},
		"removal after its tombstone": {
			services{"a": "0", "b": "0"},
			services{"a": "0"},
			services{"a": "0", "b": "2"},
			"DELETE", `/services/`, 1,
			map[string]string{"a": "0 2/1", "b": "2 2/1"},
		},
		"create": {
			services{"a": "0"},
			services{"a": "0", "b": "1"},
			services{"a": "2"},
			"POST", `/services/create`, 1,
			map[string]string{"a": "2 2/1"},
		},
		"update of a service that stays the same": {
			services{"a": "0", "b": "0"},
			services{"a": "0", "b": "1"},
			services{"a": "2", "b": "0"},
			"POST", `/services/[^/]+/update`, 1,
			map[string]string{"a": "2 2/1", "b": "0 2/1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			proxy := engineproxy.New(t, engineSocket)
			first, second := r.manager("first", 1, proxy.Client(t)), r.manager("second", 2, r.api)
			if tc.gen0 != nil {
				second.group = 1
				second.deploy("c0", 0, tc.gen0) // becomes generation 1 if the numbers are left to the head
				second.group = 2
			}
			base := r.head().Generation
			held := proxy.Hold(tc.method, tc.path, tc.nth)
			c := first.claim(r.command("c1", base+1, tc.gen1))
			done := make(chan error, 1)
			go func() { defer c.Release(); done <- first.apply(t.Context(), c, tc.gen1) }()
			held.Reached(t)
			second.deploy("c2", base+2, tc.gen2)
			held.Land(t)
			wantCode(t, <-done, CodeLost)
			wantCode(t, c.Decide(t.Context(), StatusSucceeded, nil), CodeLost)
			if err := second.fence.round(t.Context(), 2, true); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{}
			for service, text := range tc.want {
				want[service] = strings.Replace(text, "2/1", fmt.Sprintf("%d/1", base+2), 1)
			}
			r.wantState(want)
			if h := r.head(); h.Phase != Decided || h.Generation != base+2 || h.Command != "c2" {
				t.Errorf("head is %+v", h)
			}
			// What became of the first command is clear to whoever asks.
			_, _, err := first.fence.Claim(t.Context(), r.command("c1", base+1, tc.gen1))
			wantCode(t, err, CodeSuperseded)
		})
	}
}
