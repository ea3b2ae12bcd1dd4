package plane_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/axion/runner-agent/agent/identity"
	"github.com/axion/runner-agent/plane/heads"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// manager is the session of a manager's agent that a test lets speak.
type manager struct {
	mu        sync.Mutex
	stacks    []*runnerv1.StackGeneration
	cancelled []*runnerv1.CancelCommand
}

// connect opens the agent's session, which tells the manager's stacks every tenth of a second and acknowledges every request, until the test ends.
func (w *world) connect(id *identity.Identity, node string) *manager {
	w.t.Helper()
	conn, err := grpc.NewClient(w.cfg.Listen, grpc.WithTransportCredentials(credentials.NewTLS(id.PlaneTLS())))
	if err != nil {
		w.t.Fatal(err)
	}
	stream, err := runnerv1.NewRunnerClient(conn).Connect(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	m := &manager{}
	requests := make(chan *runnerv1.Request, 16)
	var parts sync.WaitGroup
	parts.Go(func() { m.speak(stream, node, requests) })
	parts.Go(func() {
		defer close(requests)
		for {
			msg, err := stream.Recv()
			if err != nil {
				return
			}
			if r := msg.GetRequest(); r != nil {
				requests <- r
			}
		}
	})
	w.t.Cleanup(func() {
		_ = conn.Close()
		parts.Wait()
	})
	return m
}

// speak is the only one that sends.
func (m *manager) speak(stream grpc.BidiStreamingClient[runnerv1.AgentMessage, runnerv1.PlaneMessage], node string, requests <-chan *runnerv1.Request) {
	beat := time.NewTicker(100 * time.Millisecond)
	defer beat.Stop()
	msg := &runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Hello{Hello: &runnerv1.Hello{AgentVersion: "test", Node: facts(node), InstanceId: "0123456789abcdef"}}}
	for sequence := uint64(1); stream.Send(msg) == nil; sequence++ {
		select {
		case r, ok := <-requests:
			if !ok {
				return
			}
			m.mu.Lock()
			m.cancelled = append(m.cancelled, r.GetCancelCommand())
			m.mu.Unlock()
			msg = &runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Response{Response: &runnerv1.Response{Id: r.GetId()}}}
		case <-beat.C:
			m.mu.Lock()
			msg = &runnerv1.AgentMessage{Message: &runnerv1.AgentMessage_Heartbeat{Heartbeat: &runnerv1.Heartbeat{
				Sequence: sequence, Role: runnerv1.NodeRole_NODE_ROLE_MANAGER, EngineReachable: true, Stacks: m.stacks,
			}}}
			m.mu.Unlock()
		}
	}
}

func (m *manager) tell(stacks ...*runnerv1.StackGeneration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stacks = stacks
}

func TestCancelThroughASession(t *testing.T) {
	w := newWorld(t)
	w.start()
	operator := w.operator()
	id := w.enrol("prod", "n1")
	m := w.connect(id, "n1")
	submitted, err := operator.SubmitCommand(t.Context(), deployment("shop", "x"))
	if err != nil {
		t.Fatal(err)
	}
	var resp *planev1.CancelCommandResponse
	w.eventually("the manager is connected", func() bool {
		resp, err = operator.CancelCommand(t.Context(), &planev1.CancelCommandRequest{CommandId: submitted.GetCommandId()})
		return err == nil
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if resp.GetAgentId() != id.AgentID() || len(m.cancelled) != 1 || m.cancelled[0].GetCommandId() != submitted.GetCommandId() || m.cancelled[0].GetStack() != "shop" {
		t.Errorf("%v, %v", resp, m.cancelled)
	}
}

func TestASwarmRestoredFromABackupIsDeployedAgain(t *testing.T) {
	w := newWorld(t)
	w.start()
	operator := w.operator()
	id := w.enrol("prod", "n1")
	m := w.connect(id, "n1")
	client := w.kafka(id, id.Kafka().GetClusterTopic())
	for range 2 {
		if _, err := operator.SubmitCommand(t.Context(), deployment("shop", "x")); err != nil {
			t.Fatal(err)
		}
		command, _ := w.receive(client)
		w.publish(client, id, command, succeeded())
		w.watch(operator, command.ID)
	}
	warned := func() bool {
		list, err := operator.ListAgents(t.Context(), &planev1.ListAgentsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list.GetAgents()[0].GetWarnings(), func(w *runnerv1.HealthWarning) bool { return w.GetCode() == "generations_went_back" })
	}
	m.tell(&runnerv1.StackGeneration{Stack: "shop", Generation: 40, Epoch: 8}) // 38 by somebody else
	w.eventually("the plane knows the newest generation", func() bool {
		resp, err := operator.SubmitCommand(t.Context(), deployment("shop", "x"))
		if err != nil {
			t.Fatal(err)
		}
		command, _ := w.receive(client)
		w.publish(client, id, command, succeeded())
		w.watch(operator, command.ID)
		return resp.GetGeneration() > 40
	})

	m.tell(&runnerv1.StackGeneration{Stack: "shop", Generation: 1, Epoch: 1})
	w.eventually("it is told", func() bool {
		w.ahead.Add(int64(heads.Agree) / 100) // 30 s pass in a second
		return warned()
	})
	command, msg := w.receive(client)
	if d, ok := msg.(*runnerv1.StackDeploy); !ok || d.GetGeneration() <= 41 || d.GetBundle().GetPlain().GetRegistryCredentials()[0].GetPassword() != "x" {
		t.Fatalf("%+v, %v", command, msg)
	}
	w.publish(client, id, command, succeeded())
	w.watch(operator, command.ID)
	if warned() {
		t.Error("the agents' list still tells it")
	}
}

// TestAPlaneRestoredFromABackup runs a plane on a data directory that lacks what has happened since: a command that has ended, and a later one that it never heard of.
func TestAPlaneRestoredFromABackup(t *testing.T) {
	w := newWorld(t)
	w.start()
	id := w.enrol("prod", "n1")
	old, err := w.operator().SubmitCommand(t.Context(), deployment("shop", "x"))
	if err != nil {
		t.Fatal(err)
	}
	client := w.kafka(id, id.Kafka().GetClusterTopic())
	first, _ := w.receive(client)
	w.stop()
	backup := t.TempDir()
	copyDatabase(t, w.cfg.DataDir, backup)

	w.start()
	operator := w.operator()
	w.publish(client, id, first, succeeded())
	w.watch(operator, first.ID)
	if _, err := operator.SubmitCommand(t.Context(), deployment("shop", "x")); err != nil {
		t.Fatal(err)
	}
	lost, _ := w.receive(client)
	w.publish(client, id, lost, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, Stack: "shop", Generation: lost.Generation})
	w.watch(operator, lost.ID)
	w.stop()
	copyDatabase(t, backup, w.cfg.DataDir)

	w.start()
	operator = w.operator()
	if events := w.watch(operator, old.GetCommandId()); events[len(events)-1].GetType() != "axion.runner.v1.CommandOutcome" {
		t.Errorf("the command that was open in the backup has no outcome: %v", events)
	}
	w.eventually("what it never heard of is known by its events", func() bool {
		stream, err := operator.WatchEvents(t.Context(), &planev1.WatchEventsRequest{CommandId: lost.ID})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return err == nil
	})
	next, err := operator.SubmitCommand(t.Context(), deployment("shop", "x"))
	if err != nil || next.GetGeneration() != lost.Generation+1 {
		t.Errorf("%v, %v: generation %d was given out already", next, err, lost.Generation)
	}
}

// copyDatabase puts a copy of a stopped plane's database into another folder, in the place of one that may be there. What was written last may still be in the log beside
// the file.
func copyDatabase(t *testing.T, from, to string) {
	t.Helper()
	for _, name := range []string{"plane.db", "plane.db-wal", "plane.db-shm"} {
		if err := os.Remove(filepath.Join(to, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), content, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}
