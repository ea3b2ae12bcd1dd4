package held

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/client"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/agent/command"
	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/agent/journal"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/test/engineproxy"
	"github.com/axion/runner-agent/test/fault/stacks"
)

const (
	// engineSocket is the machine's engine.
	engineSocket = "/var/run/docker.sock"
	// patience bounds whatever a test waits for, on a busy machine.
	patience = 90 * time.Second
	// sweptWithin is how long a stale creation may live.
	sweptWithin = 10 * time.Second
	// poll is how often a manager looks at a stack that it watches.
	poll = 100 * time.Millisecond
)

// names are the topics of the managers' cluster; nothing is read from them or written to them.
var names = &runnerv1.KafkaAccess{
	AgentTopic: "runner.commands.a1", AgentGroup: "runner.a1", ClusterTopic: "runner.commands.c1", ClusterGroup: "runner.c1", EventsTopic: "runner.events", DlqTopic: "runner.commands.dlq",
}

// manager is an agent on a manager node.
type manager struct {
	t      *testing.T
	name   string
	proxy  *engineproxy.Proxy
	group  int32 // the consumer group's generation in which commands come to it
	fence  *fence.Fence
	runner *command.Runner
	store  *journal.Bolt
	ctx    context.Context
	kill   context.CancelFunc
	parts  sync.WaitGroup

	mu       sync.Mutex
	outcomes map[string]*runnerv1.CommandOutcome
	notices  map[string]string
}

// newManager makes a manager that looks after the stacks whose names begin with prefix.
func newManager(t *testing.T, name, prefix string, group int32) *manager {
	t.Helper()
	m := &manager{
		t: t, name: name, group: group, proxy: engineproxy.New(t, engineSocket), outcomes: map[string]*runnerv1.CommandOutcome{}, notices: map[string]string{},
	}
	m.proxy.Confine(prefix)
	api := m.proxy.Client(t)
	var err error
	if m.store, err = journal.Open(filepath.Join(t.TempDir(), "journal.db"), journal.Options{}); err != nil {
		t.Fatal(err)
	}
	m.ctx, m.kill = context.WithCancel(context.Background())
	log, dir := slog.New(slog.DiscardHandler), t.TempDir()
	m.fence, err = fence.New(fence.Config{Owner: name}, fence.Deps{
		Client: func() fence.API { return api }, Assigned: func() (int32, bool) { return group, true }, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.runner, err = command.New(command.Config{
		AgentID: name, ClusterID: "c1", Kafka: names, MaxConcurrent: 4, MaxMessageBytes: 1 << 20, WorkDir: dir, DefaultTimeout: time.Minute,
	}, command.Deps{
		Journal: m.store, Fence: m.fence, Stacks: stacksOf(api, dir, log), Producer: nobody{},
		Role: func() runnerv1.NodeRole { return runnerv1.NodeRole_NODE_ROLE_MANAGER }, Warn: nobody{}, Log: log, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.end)
	return m
}

func stacksOf(api client.APIClient, dir string, log *slog.Logger) func(command.Claim) (command.Stacks, error) {
	return func(c command.Claim) (command.Stacks, error) {
		return stack.New(stack.Config{WorkDir: dir, Poll: poll}, stack.Deps{Client: c.Client(api), Log: log})
	}
}

// sweeps has the manager look after the heads, as it does while the cluster's topic is assigned to it.
func (m *manager) sweeps() *manager {
	m.parts.Go(func() {
		if err := m.fence.Run(m.ctx); err != nil {
			m.t.Error(err)
		}
	})
	return m
}

// dies is the manager's end in the middle of everything: nothing that it began is ended. Requests that it has sent are on their way.
func (m *manager) dies() {
	m.kill()
	m.runner.Wait()
	m.parts.Wait()
}

func (m *manager) end() {
	m.dies()
	if err := m.store.Close(); err != nil {
		m.t.Error(err)
	}
}

// nobody is the outside of a manager in these tests: no health, no Kafka.
type nobody struct{}

func (nobody) Set(string, runnerv1.HealthSeverity, string, string) {}
func (nobody) Clear(string)                                        {}
func (nobody) Produce(context.Context, []bus.Message) error        { return fmt.Errorf("there is no Kafka") }

// give delivers a command, in the consumer group's generation of the manager. The channel is closed when it is settled.
func (m *manager) give(id string, payload proto.Message) <-chan struct{} {
	m.t.Helper()
	e, err := envelope.New("/tests/held", payload, time.Now())
	if err != nil {
		m.t.Fatal(err)
	}
	e.ID = id
	key := ""
	if s, ok := payload.(interface{ GetStack() string }); ok {
		key = s.GetStack()
	}
	return m.runner.Handle(m.ctx, bus.Message{Topic: names.GetClusterTopic(), Key: []byte(key), Value: e.Data, Headers: e.Headers(), GroupGeneration: m.group})
}

// collect takes what is in the outbox, as Kafka does.
func (m *manager) collect() {
	m.mu.Lock()
	defer m.mu.Unlock()
	entries, err := m.store.Peek(1000, 16<<20)
	if err != nil {
		m.t.Fatal(err)
	}
	var seqs []uint64
	for _, e := range entries {
		seqs = append(seqs, e.Seq)
		message, err := e.Envelope.Message()
		if err != nil {
			m.t.Fatal(err)
		}
		switch v := message.(type) {
		case *runnerv1.CommandOutcome:
			m.outcomes[e.Envelope.CausationID] = v
		case *runnerv1.CommandProgress:
			m.notices[e.Envelope.CausationID] += v.GetNotice().GetText() + "\n"
		}
	}
	if err := m.store.Acked(seqs...); err != nil {
		m.t.Fatal(err)
	}
}

// outcome waits for what the manager tells about a command's end.
func (m *manager) outcome(id string) *runnerv1.CommandOutcome {
	m.t.Helper()
	var found *runnerv1.CommandOutcome
	until(m.t, patience, m.name+" telling the outcome of "+id, func() bool {
		m.collect()
		m.mu.Lock()
		defer m.mu.Unlock()
		found = m.outcomes[id]
		return found != nil
	})
	return found
}

// forget has outcome wait for what is told from now on.
func (m *manager) forget(id string) {
	m.collect()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.outcomes, id)
}

// told is what the manager has told about a command in sentences.
func (m *manager) told(id string) string {
	m.collect()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.notices[id]
}

// does has a command done from its delivery to its outcome.
func (m *manager) does(id string, payload proto.Message) *runnerv1.CommandOutcome {
	m.t.Helper()
	m.give(id, payload)
	return m.outcome(id)
}

func (m *manager) succeeds(id string, payload proto.Message) {
	m.t.Helper()
	if o := m.does(id, payload); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		m.t.Errorf("%s: command %s: %v", m.name, id, o)
	}
}

// serviceWrites are the writes to services that the engine accepted from the manager.
func (m *manager) serviceWrites() (accepted []engineproxy.Write) {
	for _, w := range m.proxy.Writes() {
		if w.Accepted() && strings.Contains(w.Path, "/services/") {
			accepted = append(accepted, w)
		}
	}
	return accepted
}

func until(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain for %s", limit, what)
		}
	}
}

// atRest waits until the Swarm holds exactly those marks and the head has that command's outcome, and returns how long that took.
func atRest(t *testing.T, s *stacks.Stack, command string, marks map[string]string) time.Duration {
	t.Helper()
	begun := time.Now()
	for {
		have := s.Marks()
		head, _ := s.Head()
		if fmt.Sprint(have) == fmt.Sprint(marks) && head.Phase == stacks.Decided && head.Command == command {
			return time.Since(begun)
		}
		if time.Since(begun) > sweptWithin {
			t.Errorf("services are %v, want %v; head is %+v, want that of %s", have, marks, head, command)
			return time.Since(begun)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
