package plane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/axion/runner-agent/plane/registry"
	"github.com/axion/runner-agent/plane/store"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// recorder is a broker that writes down what it is asked for, and fails when it is told to.
type recorder struct {
	mu    sync.Mutex
	calls []string
	err   error
}

func (r *recorder) call(text string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.calls = append(r.calls, text)
	return nil
}

func (r *recorder) Ready(context.Context) error { return nil }

func (r *recorder) EnsureBase(context.Context) error { return r.call("base") }

func (r *recorder) Provision(_ context.Context, clusterID, agentID string) (*runnerv1.KafkaAccess, error) {
	return &runnerv1.KafkaAccess{AgentTopic: agentID}, r.call("provision " + clusterID + " " + agentID)
}

func (r *recorder) AllowClusterTopic(_ context.Context, _, agentID string, allowed bool) error {
	if allowed {
		return r.call("allow " + agentID)
	}
	return r.call("deny " + agentID)
}

func (r *recorder) Remove(_ context.Context, _, agentID string) error {
	return r.call("remove " + agentID)
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

func newRegistry(t *testing.T) *registry.Registry {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "plane.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return registry.New(db, time.Now)
}

// enrol puts an agent into the registry; the first manager of a cluster is confirmed by its token.
func enrol(t *testing.T, r *registry.Registry, node string, role runnerv1.NodeRole) string {
	t.Helper()
	_, secret, err := r.CreateToken(t.Context(), "prod", time.Hour, 1)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	facts := &runnerv1.NodeFacts{NodeId: node, Role: role}
	if role == runnerv1.NodeRole_NODE_ROLE_MANAGER {
		facts.SwarmClusterId = "swarm1"
	}
	e, err := r.Enrol(t.Context(), registry.EnrolParams{
		Secret: secret, PublicKey: &key.PublicKey, EncryptionKey: make([]byte, 32), Facts: facts, Live: func(string) bool { return false },
	})
	if err != nil {
		t.Fatal(err)
	}
	return e.ID
}

// tell has the manager of node m say which role node w has.
func tell(t *testing.T, r *registry.Registry, manager string, role runnerv1.NodeRole) {
	t.Helper()
	_, err := r.SetNodes(t.Context(), "prod", manager, &runnerv1.NodeList{SwarmClusterId: "swarm1", Nodes: []*runnerv1.SwarmNode{
		{NodeId: "m", Role: runnerv1.NodeRole_NODE_ROLE_MANAGER}, {NodeId: "w", Role: role},
	}})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAccessFollowsTheRegistry(t *testing.T) {
	r, k := newRegistry(t), &recorder{}
	manager := enrol(t, r, "m", runnerv1.NodeRole_NODE_ROLE_MANAGER)
	tell(t, r, manager, runnerv1.NodeRole_NODE_ROLE_WORKER)
	worker := enrol(t, r, "w", runnerv1.NodeRole_NODE_ROLE_WORKER)
	var changed []string
	a := newAccess(r, k, func(id string) { changed = append(changed, id) }, slog.New(slog.DiscardHandler))
	reconcile := func() []string {
		t.Helper()
		if err := a.reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		return k.take()
	}
	if a.settled() {
		t.Error("settled before the start")
	}
	want := []string{"base", "provision prod " + manager, "allow " + manager, "provision prod " + worker, "deny " + worker}
	if got := reconcile(); !slices.Equal(got, want) {
		t.Errorf("at the start:\n got %v\nwant %v", got, want)
	}
	if !a.settled() || len(changed) != 2 {
		t.Errorf("settled %v, changed %v", a.settled(), changed)
	}
	if got := reconcile(); len(got) != 0 {
		t.Errorf("without a change: %v", got)
	}
	tell(t, r, manager, runnerv1.NodeRole_NODE_ROLE_MANAGER)
	k.err = errors.New("broker away")
	if err := a.reconcile(t.Context()); err == nil {
		t.Error("a broker that is away went unnoticed")
	}
	k.err = nil
	if got := reconcile(); !slices.Equal(got, []string{"allow " + worker}) {
		t.Errorf("after a promotion that the broker missed at first: %v", got)
	}
}

func TestARemovedAgentIsGivenNothing(t *testing.T) {
	r, k := newRegistry(t), &recorder{}
	id := enrol(t, r, "m", runnerv1.NodeRole_NODE_ROLE_MANAGER)
	a := newAccess(r, k, func(string) {}, slog.New(slog.DiscardHandler))
	if where, err := a.Provision(t.Context(), "prod", id); err != nil || where.GetAgentTopic() != id {
		t.Fatalf("%v, %v", where, err)
	}
	if err := r.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := a.Remove(t.Context(), "prod", id); err != nil {
		t.Fatal(err)
	}
	k.take()
	if _, err := a.Provision(t.Context(), "prod", id); failure.Of(err) == nil || failure.Of(err).Code != "agent_removed" {
		t.Errorf("got %v", err)
	}
	if err := a.give(t.Context(), id); err != nil {
		t.Errorf("an agent that was removed since the list was read is no failure: %v", err)
	}
	if got := k.take(); len(got) != 0 {
		t.Errorf("a removed agent was given %v", got)
	}
}
