package plane

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/axion/runner-agent/plane/registry"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// reconcileEvery is how often what agents may do on Kafka is compared with the registry when nothing has called for it.
	reconcileEvery = 5 * time.Minute
	// reconcileRetry is the wait after a failure.
	reconcileRetry = 3 * time.Second
	// kafkaTimeout bounds one change on the broker.
	kafkaTimeout = 30 * time.Second
)

// kafka is the broker, embedded or not, as the plane uses it.
type kafka interface {
	Ready(ctx context.Context) error
	EnsureBase(ctx context.Context) error
	Provision(ctx context.Context, clusterID, agentID string) (*runnerv1.KafkaAccess, error)
	AllowClusterTopic(ctx context.Context, clusterID, agentID string, allowed bool) error
	Remove(ctx context.Context, clusterID, agentID string) error
}

// access keeps what each agent may do on Kafka in step with what the registry says. Every change goes through it, one at a time for an agent, so that an agent
// that was removed cannot be given anything by a call that began before. What could not be changed, because the broker was away, is changed later; at each
// start everything is given again, because a broker may have lost what it knew.
type access struct {
	registry *registry.Registry
	kafka    kafka
	changed  func(agentID string) // told when an agent's right to its cluster's topic has changed
	log      *slog.Logger
	signal   chan struct{}
	shared   chan struct{} // closed when the topics that all share are there

	mu     sync.Mutex
	agents map[string]*agentAccess
	base   bool // shared has been closed
	whole  bool // every agent has been given its access since the start
}

// agentAccess is what one agent was given since the start.
type agentAccess struct {
	mu          sync.Mutex
	provisioned bool
	cluster     bool // may read its cluster's topic
	clusterSet  bool // cluster was told to the broker
}

func newAccess(r *registry.Registry, k kafka, changed func(string), log *slog.Logger) *access {
	return &access{registry: r, kafka: k, changed: changed, log: log, signal: make(chan struct{}, 1), shared: make(chan struct{}), agents: map[string]*agentAccess{}}
}

// poke asks for a comparison soon. It never blocks.
func (a *access) poke() {
	select {
	case a.signal <- struct{}{}:
	default:
	}
}

// settled says whether everything has been given since the start.
func (a *access) settled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.whole
}

// afterTopics returns a component that waits for the topics that all share before it runs.
func (a *access) afterTopics(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-a.shared:
			return run(ctx)
		}
	}
}

// run compares until ctx ends.
func (a *access) run(ctx context.Context) error {
	for {
		wait := reconcileEvery
		if err := a.reconcile(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("what agents may do on Kafka is not as it should be yet", "error", err, "again_in", reconcileRetry)
			wait = reconcileRetry
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-a.signal:
		case <-t.C:
		}
		t.Stop()
	}
}

func (a *access) reconcile(ctx context.Context) error {
	if err := a.ensureBase(ctx); err != nil {
		return err
	}
	list, err := a.registry.Agents(ctx, "")
	if err != nil {
		return err
	}
	// Managers first: they are the ones that wait for commands of a whole cluster.
	slices.SortStableFunc(list, func(x, y registry.Agent) int {
		switch {
		case x.ManagerConfirmed == y.ManagerConfirmed:
			return 0
		case x.ManagerConfirmed:
			return -1
		default:
			return 1
		}
	})
	for _, agent := range list {
		if err := a.give(ctx, agent.ID); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.whole = true
	return nil
}

func (a *access) ensureBase(ctx context.Context) error {
	a.mu.Lock()
	done := a.base
	a.mu.Unlock()
	if done {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, kafkaTimeout)
	defer cancel()
	if err := a.kafka.Ready(ctx); err != nil {
		return fmt.Errorf("the broker is not ready: %w", err)
	}
	if err := a.kafka.EnsureBase(ctx); err != nil {
		return fmt.Errorf("make the topics: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.base = true
	close(a.shared)
	return nil
}

// give brings one agent's access up to date.
func (a *access) give(ctx context.Context, agentID string) error {
	_, err := a.update(ctx, agentID, false)
	if f := failure.Of(err); f != nil && f.Code == "agent_removed" {
		return nil // since the list was read
	}
	return err
}

// Provision gives an agent what it has on Kafka and tells where it is. It implements the enrolment's Kafka.
func (a *access) Provision(ctx context.Context, _, agentID string) (*runnerv1.KafkaAccess, error) {
	return a.update(ctx, agentID, true)
}

// update makes an agent's topics and credentials if that was not done since the start (or is asked for), and its right to the cluster's topic as the registry
// has it.
func (a *access) update(ctx context.Context, agentID string, provision bool) (*runnerv1.KafkaAccess, error) {
	ctx, cancel := context.WithTimeout(ctx, kafkaTimeout)
	defer cancel()
	given := a.of(agentID)
	given.mu.Lock()
	defer given.mu.Unlock()
	agent, err := a.registry.Agent(ctx, agentID)
	if err != nil {
		return nil, err
	}
	if agent.Removed {
		return nil, failure.New(failure.Denied, "agent_removed", agentID, "agent %s was removed", agentID)
	}
	var where *runnerv1.KafkaAccess
	if provision || !given.provisioned {
		if where, err = a.kafka.Provision(ctx, agent.ClusterID, agentID); err != nil {
			return nil, fmt.Errorf("make the topics of agent %s: %w", agentID, err)
		}
		given.provisioned = true
	}
	if given.clusterSet && given.cluster == agent.ManagerConfirmed {
		return where, nil
	}
	if err := a.kafka.AllowClusterTopic(ctx, agent.ClusterID, agentID, agent.ManagerConfirmed); err != nil {
		return nil, fmt.Errorf("set the right of agent %s to the topic of cluster %s: %w", agentID, agent.ClusterID, err)
	}
	given.clusterSet, given.cluster = true, agent.ManagerConfirmed
	a.changed(agentID)
	return where, nil
}

// Remove takes away what an agent has on Kafka. It implements the operator's Kafka; the registry has removed the agent before.
func (a *access) Remove(ctx context.Context, clusterID, agentID string) error {
	ctx, cancel := context.WithTimeout(ctx, kafkaTimeout)
	defer cancel()
	given := a.of(agentID)
	given.mu.Lock()
	defer given.mu.Unlock()
	given.provisioned, given.clusterSet = false, false
	return a.kafka.Remove(ctx, clusterID, agentID)
}

func (a *access) of(agentID string) *agentAccess {
	a.mu.Lock()
	defer a.mu.Unlock()
	given, ok := a.agents[agentID]
	if !ok {
		given = &agentAccess{}
		a.agents[agentID] = given
	}
	return given
}
