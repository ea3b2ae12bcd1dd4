package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/rig"
)

// composeFile is what the tests' one compose file is called.
const composeFile = "/stack/compose.yml"

// generationLabel is where the agents note which generation a service's spec is of.
const generationLabel = "axion.generation"

// event is something that the plane was told about a command.
type event struct {
	agentID string
	message proto.Message
	seen    time.Time // here
}

// command is one that was submitted. Its events are followed as they come.
type command struct {
	world      *world
	id, stack  string
	generation uint64

	mu      sync.Mutex
	events  []event
	changed chan struct{} // closed at the next event
}

// stackName is a name of its own; the stack is removed when the test ends.
func (w *world) stackName(t *testing.T) string {
	t.Helper()
	name := engine.Name(t, "axf")
	t.Cleanup(func() { // before the world's own clean-up, which may find things broken
		ctx, cancel := context.WithTimeout(context.Background(), wholeTimeout)
		defer cancel()
		err := w.heal(ctx)
		if err == nil {
			_, err = w.Axionctl(ctx, "rm", name)
		}
		if err != nil {
			t.Errorf("remove stack %s: %v", name, err)
		}
	})
	return name
}

// deploy submits a deployment and follows it.
func (w *world) deploy(t *testing.T, stack, compose string, timeout time.Duration) *command {
	t.Helper()
	resp, err := w.operator.SubmitCommand(t.Context(), &planev1.SubmitCommandRequest{
		ClusterId: rig.ClusterID,
		Command: &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: &runnerv1.StackDeploy{
			Stack: stack,
			Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: &runnerv1.BundleContent{
				WorkingDir: "/stack", ComposeFiles: []string{composeFile}, Files: []*runnerv1.BundleFile{{Path: composeFile, Content: []byte(compose)}},
			}}},
			Options: &runnerv1.DeployOptions{Prune: true, ResolveImage: runnerv1.ResolveImage_RESOLVE_IMAGE_NEVER, Timeout: durationpb.New(timeout)},
		}},
	})
	must(t, err)
	c := &command{world: w, id: resp.GetCommandId(), stack: stack, generation: resp.GetGeneration(), changed: make(chan struct{})}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); c.follow(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	return c
}

// follow hears the plane until the command has ended or ctx has. A plane that is out of reach is asked again.
func (c *command) follow(ctx context.Context) {
	after := uint64(0)
	for ctx.Err() == nil {
		stream, err := c.world.operator.WatchEvents(ctx, &planev1.WatchEventsRequest{CommandId: c.id, Follow: true, After: after})
		for err == nil {
			var record *planev1.EventRecord
			if record, err = stream.Recv(); err == nil {
				after = record.GetPosition()
				c.add(record)
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *command) add(record *planev1.EventRecord) {
	message, err := decoded(record)
	if err != nil {
		return // of a type that says nothing here
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, event{record.GetAgentId(), message, time.Now()})
	close(c.changed)
	c.changed = make(chan struct{})
}

func decoded(record *planev1.EventRecord) (proto.Message, error) {
	return envelope.Envelope{ID: record.GetId(), Type: record.GetType(), ContentType: envelope.Protobuf, Data: record.GetData()}.Message()
}

// wait returns the first event that is right, those before included.
func (c *command) wait(ctx context.Context, limit time.Duration, what string, right func(event) bool) (event, error) {
	late := time.NewTimer(limit)
	defer late.Stop()
	for next := 0; ; {
		c.mu.Lock()
		events, changed := c.events, c.changed
		c.mu.Unlock()
		for ; next < len(events); next++ {
			if right(events[next]) {
				return events[next], nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return event{}, ctx.Err()
		case <-late.C:
			return event{}, fmt.Errorf("command %s: %s did not come within %s; %d events came", c.id, what, limit, len(events))
		}
	}
}

// owner waits until an agent says that it works on the services: it is in the middle of the deployment.
func (c *command) owner(t *testing.T) *rig.Node {
	t.Helper()
	e, err := c.wait(t.Context(), wholeTimeout, "progress", func(e event) bool {
		p, ok := e.message.(*runnerv1.CommandProgress)
		return ok && p.GetService() != nil
	})
	must(t, err)
	n, err := c.world.AgentNode(t.Context(), e.agentID)
	must(t, err)
	return n
}

// successor waits until another agent than that node's, or another process there, says after that moment that it has taken the command.
func (c *command) successor(t *testing.T, owner *rig.Node, after time.Time, limit time.Duration) (*rig.Node, time.Duration) {
	t.Helper()
	nodes := map[string]*rig.Node{}
	e, err := c.wait(t.Context(), limit, "another agent's word", func(e event) bool {
		if _, ok := e.message.(*runnerv1.CommandOutcome); !ok {
			if _, ok := e.message.(*runnerv1.CommandReceived); !ok {
				return false
			}
		}
		if e.seen.Before(after) {
			return false
		}
		n, err := c.world.AgentNode(t.Context(), e.agentID)
		nodes[e.agentID] = n
		return err == nil && n != owner
	})
	must(t, err)
	return nodes[e.agentID], e.seen.Sub(after)
}

func isOutcome(e event) bool {
	_, ok := e.message.(*runnerv1.CommandOutcome)
	return ok
}

// outcome waits for the end and checks that it is the only one.
func (c *command) outcome(t *testing.T, limit time.Duration) (*runnerv1.CommandOutcome, time.Time) {
	t.Helper()
	e, err := c.wait(t.Context(), limit, "its outcome", isOutcome)
	must(t, err)
	all, err := c.world.outcomes(t.Context(), c.id)
	must(t, err)
	if len(all) != 1 {
		t.Errorf("command %s has %d outcomes: %v", c.id, len(all), all)
	}
	return e.message.(*runnerv1.CommandOutcome), e.seen
}

// succeeds waits for the end, which must be good and true: the services are those of this generation.
func (c *command) succeeds(t *testing.T, limit time.Duration, services ...string) time.Time {
	t.Helper()
	o, seen := c.outcome(t, limit)
	if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("command %s ended as %s: %v", c.id, o.GetStatus(), o.GetFailure())
	}
	c.isDeployed(t, services...)
	return seen
}

// isDeployed checks that the stack has exactly those services, of this generation.
func (c *command) isDeployed(t *testing.T, services ...string) {
	t.Helper()
	want := map[string]bool{}
	for _, s := range services {
		want[c.stack+"_"+s] = true
	}
	for _, s := range c.world.services(t, c.stack) {
		if !want[s.Spec.Name] {
			t.Errorf("service %s is there and should not be, or twice", s.Spec.Name)
		}
		delete(want, s.Spec.Name)
		if got := s.Spec.Labels[generationLabel]; generationOf(got) != c.generation {
			t.Errorf("service %s is of generation %q, not of %d", s.Spec.Name, got, c.generation)
		}
	}
	for name := range want {
		t.Errorf("service %s is missing", name)
	}
}

// generationOf reads "generation/step".
func generationOf(label string) (generation uint64) {
	_, _ = fmt.Sscanf(label, "%d", &generation)
	return generation
}

// outcomes are all that the plane has of a command.
func (w *world) outcomes(ctx context.Context, id string) ([]*runnerv1.CommandOutcome, error) {
	stream, err := w.operator.WatchEvents(ctx, &planev1.WatchEventsRequest{CommandId: id})
	if err != nil {
		return nil, err
	}
	var all []*runnerv1.CommandOutcome
	for {
		record, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return all, err
		}
		if message, err := decoded(record); err == nil {
			if o, ok := message.(*runnerv1.CommandOutcome); ok {
				all = append(all, o)
			}
		}
	}
}

// slow is a stack whose service is healthy only after that time, on the worker, so that the loss of a manager touches none of its tasks.
func (w *world) slow(converges time.Duration) string {
	return fmt.Sprintf(`
version: "3.9"
services:
  web:
    image: %s
    command: [healthy]
    healthcheck: {test: [CMD, /testimage, health], interval: %s, timeout: 5s, retries: 3}
    deploy:
      replicas: 2
      endpoint_mode: dnsrr
      placement: {constraints: [node.role == worker]}
`, w.image, converges)
}
