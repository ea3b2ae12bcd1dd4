package stack

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack/bundle"
)

// meddler is the real engine with two faults: it can fail, and it notes the credentials that it is sent.
type meddler struct {
	client.APIClient
	mu      sync.Mutex
	auth    map[string]string
	failing int // listings that still fail
}

func (m *meddler) ServiceCreate(ctx context.Context, spec swarm.ServiceSpec, o swarm.ServiceCreateOptions) (swarm.ServiceCreateResponse, error) {
	m.mu.Lock()
	m.auth[spec.TaskTemplate.ContainerSpec.Image] = o.EncodedRegistryAuth
	m.mu.Unlock()
	o.EncodedRegistryAuth = "" // the engine must not keep a test's credentials
	return m.APIClient.ServiceCreate(ctx, spec, o)
}

func (m *meddler) NodeList(ctx context.Context, o swarm.NodeListOptions) ([]swarm.Node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failing > 0 {
		m.failing--
		return nil, errors.New("rpc error: the swarm does not have a leader")
	}
	return m.APIClient.NodeList(ctx, o)
}

func TestCredentialsAndAnEngineThatStumbles(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := &meddler{APIClient: r.api, auth: map[string]string{}, failing: 3}
	r.Engine.client = m
	d := r.deployment(t, `
services:
  hub: {image: shop/web, deploy: {replicas: 0}}
  own: {image: "registry.example.com:5000/web:1", deploy: {replicas: 0}}
  open: {image: "ghcr.io/shop/web", deploy: {replicas: 0}}
`+hostNetwork)
	d.WithRegistryAuth = true
	d.Bundle.Credentials = []bundle.Credential{
		{Server: "docker.io", Username: "u1", Password: "p1"},
		{Server: "https://registry.example.com:5000", Username: "u2", IdentityToken: "t2"},
	}
	result, err := r.Deploy(t.Context(), d, nil)
	wantConverged(t, result, err)
	if len(result.Warnings) != 1 || !strings.Contains(result.Warnings[0], "does not have a leader") {
		t.Errorf("the trouble was told as %q", result.Warnings)
	}
	for image, want := range map[string]registry.AuthConfig{
		"shop/web":                        {Username: "u1", Password: "p1", ServerAddress: "https://index.docker.io/v1/"},
		"registry.example.com:5000/web:1": {Username: "u2", IdentityToken: "t2", ServerAddress: "registry.example.com:5000"},
		"ghcr.io/shop/web":                {},
	} {
		text, err := base64.URLEncoding.DecodeString(m.auth[image])
		if err != nil {
			t.Fatal(err)
		}
		var got registry.AuthConfig
		if err := json.Unmarshal(text, &got); err != nil || got != want {
			t.Errorf("%s: %s, %v", image, text, err)
		}
	}
}

func TestNoEngine(t *testing.T) {
	t.Parallel()
	api, err := client.NewClientWithOpts(client.WithHost("unix://"+filepath.Join(t.TempDir(), "none.sock")), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	e, err := New(Config{WorkDir: t.TempDir()}, Deps{Client: api, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	d := Deployment{Stack: "a", Bundle: bundle.Content{
		WorkingDir: "/a", ComposeFiles: []string{"/a/b"}, Files: []bundle.File{{Path: "/a/b", Content: []byte("services: {web: {image: x}}")}},
	}}
	for name, call := range map[string]func() error{
		"deploy":  func() error { _, err := e.Deploy(t.Context(), d, nil); return err },
		"remove":  func() error { _, err := e.Remove(t.Context(), "a", time.Minute, nil); return err },
		"scale":   func() error { _, err := e.Scale(t.Context(), "a", 1, time.Minute, nil); return err },
		"stacks":  func() error { _, err := e.Stacks(t.Context()); return err },
		"status":  func() error { _, err := e.Status(t.Context(), "a"); return err },
		"restart": func() error { _, err := e.Restart(t.Context(), "a", time.Minute, nil); return err },
		"stackOf": func() error { _, err := e.StackOf(t.Context(), "a"); return err },
		"logs":    func() error { return e.Logs(t.Context(), "a", LogOptions{}, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			wantFailure(t, call(), failure.Unavailable, "engine_unavailable", "Cannot connect to the Docker daemon")
		})
	}
}

func TestNew(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for name, tc := range map[string]struct {
		config Config
		deps   Deps
	}{
		"no folder": {Config{}, Deps{Client: &client.Client{}, Log: log}},
		"no client": {Config{WorkDir: "/x"}, Deps{Log: log}},
		"no log":    {Config{WorkDir: "/x"}, Deps{Client: &client.Client{}}},
		"bad poll":  {Config{WorkDir: "/x", Poll: -1}, Deps{Client: &client.Client{}, Log: log}},
	} {
		if _, err := New(tc.config, tc.deps); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestOneEngineForAll deploys two stacks at once through one Engine and one fresh client, as an agent does.
func TestOneEngineForAll(t *testing.T) {
	t.Parallel()
	a, b := newRig(t), newRig(t)
	api, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	shared, err := New(Config{WorkDir: a.workDir}, Deps{Client: api, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	compose := "version: '3.9'\nservices: {web: {image: IMAGE, deploy: {replicas: 0}}}\nnetworks: {default: {external: {name: host}}}"
	var wg sync.WaitGroup
	for _, r := range []*rig{a, b} {
		d := r.deployment(t, compose)
		wg.Go(func() {
			result, err := shared.Deploy(t.Context(), d, nil)
			if err != nil || result.Status != Converged || len(result.Warnings) != 1 {
				t.Errorf("%v %+v", err, result)
			}
		})
	}
	wg.Wait()
}
