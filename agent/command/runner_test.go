package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/agent/journal"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/deadletter"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
)

// stacks is a stack engine whose answers the test gives; it counts what was really done.
type stacks struct {
	deploy func(ctx context.Context, d stack.Deployment, observe func(stack.Event)) (stack.Result, error)
	remove func(ctx context.Context, name string) (stack.Result, error)
	scale  func(ctx context.Context, service string, replicas uint64) (stack.Result, error)
	// restart may be nil, too.
	restart func(ctx context.Context, service string) (stack.Result, error)

	mu   sync.Mutex
	done []string
}

func (s *stacks) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = append(s.done, fmt.Sprintf(format, args...))
}

func (s *stacks) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.done)
}

func (s *stacks) Deploy(ctx context.Context, d stack.Deployment, observe func(stack.Event)) (stack.Result, error) {
	s.note("deploy %s", d.Stack)
	if s.deploy == nil {
		return stack.Result{Status: stack.Converged}, nil
	}
	return s.deploy(ctx, d, observe)
}

func (s *stacks) Remove(ctx context.Context, name string, _ time.Duration, _ func(stack.Event)) (stack.Result, error) {
	s.note("remove %s", name)
	if s.remove == nil {
		return stack.Result{Status: stack.Gone}, nil
	}
	return s.remove(ctx, name)
}

func (s *stacks) Scale(ctx context.Context, service string, replicas uint64, _ time.Duration, _ func(stack.Event)) (stack.Result, error) {
	s.note("scale %s=%d", service, replicas)
	if s.scale == nil {
		return stack.Result{Status: stack.Converged}, nil
	}
	return s.scale(ctx, service, replicas)
}

func (s *stacks) Restart(ctx context.Context, service string, _ time.Duration, _ func(stack.Event)) (stack.Result, error) {
	s.note("restart %s", service)
	if s.restart == nil {
		return stack.Result{Status: stack.Converged}, nil
	}
	return s.restart(ctx, service)
}

func (s *stacks) Stacks(context.Context) ([]stack.Summary, error) {
	return []stack.Summary{{Name: "shop", Services: 2}}, nil
}

func (s *stacks) Status(_ context.Context, name string) (stack.StackStatus, error) {
	return stack.StackStatus{Services: []stack.ServiceStatus{{Name: name + "_web"}}}, nil
}

// topic collects what is produced; it refuses while down is set.
type topic struct {
	mu       sync.Mutex
	down     bool
	messages []bus.Message
	asked    atomic.Int64 // how often
}

func (p *topic) Produce(_ context.Context, ms []bus.Message) error {
	p.asked.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return errors.New("broker is away")
	}
	p.messages = append(p.messages, ms...)
	return nil
}

func (p *topic) all() []bus.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.messages)
}

type warnings struct{}

func (warnings) Set(string, runnerv1.HealthSeverity, string, string) {}
func (warnings) Clear(string)                                        {}

// rig is a Runner with a real journal and nobody who drains its outbox but the test.
type rig struct {
	t       *testing.T
	runner  *Runner
	journal *journal.Bolt
	stacks  *stacks
	topic   *topic
	role    runnerv1.NodeRole
	ctx     context.Context
	stop    context.CancelFunc
}

var names = &runnerv1.KafkaAccess{AgentTopic: "commands.a1", ClusterTopic: "commands.c1", DlqTopic: "dlq", EventsTopic: "events"}

func newRig(t *testing.T, concurrent int) *rig {
	t.Helper()
	return newRigAt(t, filepath.Join(t.TempDir(), "journal.db"), concurrent)
}

func newRigAt(t *testing.T, path string, concurrent int) *rig {
	t.Helper()
	return newRigOn(t, newConfigs(), "a1", path, concurrent)
}

// newRigOn is an agent on a Swarm that others may work on too.
func newRigOn(t *testing.T, swarm *configs, agent, path string, concurrent int) *rig {
	t.Helper()
	return newRigWith(t, swarm, agent, path, concurrent, time.Now)
}

// newRigWith is one with a clock of its own.
func newRigWith(t *testing.T, swarm *configs, agent, path string, concurrent int, now func() time.Time) *rig {
	t.Helper()
	j, err := journal.Open(path, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, journal: j, stacks: &stacks{}, topic: &topic{}, role: runnerv1.NodeRole_NODE_ROLE_MANAGER}
	r.ctx, r.stop = context.WithCancel(context.Background())
	heads, err := fence.New(fence.Config{Owner: agent, Standstill: time.Second}, fence.Deps{
		Client: func() fence.API { return swarm }, Log: slog.New(slog.DiscardHandler), Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.runner, err = New(Config{
		WorkDir: t.TempDir(), AgentID: agent, ClusterID: "c1", Kafka: names, MaxConcurrent: concurrent, MaxMessageBytes: 1 << 20, DefaultTimeout: time.Minute,
	}, Deps{
		Journal: j, Fence: heads, Stacks: func(Claim) (Stacks, error) { return r.stacks, nil }, Producer: r.topic, Role: func() runnerv1.NodeRole { return r.role }, Warn: warnings{},
		Log: slog.New(slog.DiscardHandler), Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.end)
	return r
}

// end stops the agent: what runs is interrupted, the journal closed.
func (r *rig) end() {
	r.stop()
	r.runner.Wait()
	r.journal.Close()
}

// drain acknowledges all that waits in the outbox and returns it.
func (r *rig) drain() []envelope.Envelope {
	r.t.Helper()
	entries, err := r.journal.Peek(1000, 1<<30)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []envelope.Envelope
	for _, e := range entries {
		out = append(out, e.Envelope)
		if err := r.journal.Acked(e.Seq); err != nil {
			r.t.Fatal(err)
		}
	}
	return out
}

// outcome drains the outbox until the outcome of that command has come, and returns it.
func (r *rig) outcome(commandID string) *runnerv1.CommandOutcome {
	r.t.Helper()
	return r.outcomeWithin(patience, commandID)
}

func (r *rig) outcomeWithin(limit time.Duration, commandID string) *runnerv1.CommandOutcome {
	r.t.Helper()
	var found *runnerv1.CommandOutcome
	r.untilWithin(limit, "the outcome of "+commandID, func() bool {
		for _, ev := range r.drain() {
			if ev.ID == envelope.OutcomeID(commandID) {
				found = decode[*runnerv1.CommandOutcome](r.t, ev)
			}
		}
		return found != nil
	})
	return found
}

// patience bounds whatever takes no real Swarm.
const patience = 10 * time.Second

func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	r.untilWithin(patience, what, f)
}

func (r *rig) untilWithin(limit time.Duration, what string, f func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(limit); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (r *rig) settled(done <-chan struct{}) {
	r.t.Helper()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		r.t.Fatalf("the message is not settled; in the outbox: %v", r.drain())
	}
}

func open(done <-chan struct{}) bool {
	select {
	case <-done:
		return false
	default:
		return true
	}
}

func decode[M proto.Message](t *testing.T, e envelope.Envelope) M {
	t.Helper()
	msg, err := e.Message()
	if err != nil {
		t.Fatal(err)
	}
	m, ok := msg.(M)
	if !ok {
		t.Fatalf("event is a %T", msg)
	}
	return m
}

// message wraps a command as the plane sends it to the cluster.
func message(t *testing.T, id string, cmd proto.Message) bus.Message {
	t.Helper()
	e, err := envelope.New("/plane", cmd, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	e.ID, e.Generation, e.Subject, e.CorrelationID = id, generationOf(cmd), subjectOf(cmd), "corr-"+id
	return bus.Message{Topic: names.GetClusterTopic(), Key: []byte(e.Subject), Value: e.Data, Headers: e.Headers()}
}

func deploy(stackName string, generation uint64) *runnerv1.StackDeploy {
	return &runnerv1.StackDeploy{
		Stack: stackName, Generation: generation,
		Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: &runnerv1.BundleContent{
			WorkingDir: "/w", ComposeFiles: []string{"/w/compose.yml"},
			Files: []*runnerv1.BundleFile{{Path: "/w/compose.yml", Content: []byte("version: \"3.8\"\nservices: {web: {image: web}}\n")}},
		}}},
	}
}

func TestDeployTellsItsStepsAndSettlesLast(t *testing.T) {
	r := newRig(t, 2)
	r.stacks.deploy = func(_ context.Context, d stack.Deployment, observe func(stack.Event)) (stack.Result, error) {
		if d.Timeout <= 0 || d.Timeout > time.Minute || d.ResolveImage != stack.ResolveAlways {
			t.Errorf("deployment is %+v", d)
		}
		change := stack.ObjectChange{Kind: stack.KindService, Action: stack.Created, Name: "shop_web", ID: "s1"}
		observe(change)
		state := stack.ServiceProgress{Service: "shop_web", State: stack.ServiceConverged, Running: 1, Desired: 1}
		observe(state)
		return stack.Result{Status: stack.Converged, Changes: []stack.ObjectChange{change}, Services: []stack.ServiceProgress{state}}, nil
	}
	done := r.runner.Handle(r.ctx, message(t, "m1", deploy("shop", 3)))
	r.until("four events", func() bool {
		entries, err := r.journal.Peek(1000, 1<<30)
		return err == nil && len(entries) == 4
	})
	if !open(done) {
		t.Fatal("settled before Kafka had the outcome")
	}
	events := r.drain()
	r.settled(done)
	var types []string
	for _, ev := range events {
		types = append(types, ev.Type)
		if ev.Source != "/agents/a1" || ev.CausationID != "m1" || ev.CorrelationID != "corr-m1" || ev.Subject != "shop" || ev.Generation != 3 {
			t.Errorf("event %+v", ev)
		}
	}
	want := []string{"axion.runner.v1.CommandReceived", "axion.runner.v1.CommandProgress", "axion.runner.v1.CommandProgress", "axion.runner.v1.CommandOutcome"}
	if !slices.Equal(types, want) {
		t.Fatalf("events are %v", types)
	}
	o := decode[*runnerv1.CommandOutcome](t, events[3])
	if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED || o.GetGeneration() != 3 || len(o.GetChanges()) != 1 || len(o.GetServices()) != 1 {
		t.Errorf("outcome is %v", o)
	}
}

func TestDeliveredAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	r := newRigAt(t, path, 2)
	release := make(chan struct{})
	r.stacks.deploy = func(ctx context.Context, _ stack.Deployment, _ func(stack.Event)) (stack.Result, error) {
		select {
		case <-release:
		case <-ctx.Done():
			return stack.Result{}, ctx.Err()
		}
		return stack.Result{Status: stack.Converged}, nil
	}
	m := message(t, "m1", deploy("shop", 1))
	first := r.runner.Handle(r.ctx, m)
	second := r.runner.Handle(r.ctx, m) // while it runs: it attaches
	r.until("the deployment", func() bool { return len(r.stacks.all()) == 1 })
	close(release)
	r.outcome("m1")
	r.settled(first)
	r.settled(second)
	r.settled(r.runner.Handle(r.ctx, m)) // after it ended: its outcome stands, and Kafka has it already
	if n := len(r.stacks.all()); n != 1 {
		t.Fatalf("deployed %d times", n)
	}

	// After a restart the journal still knows it.
	r.end()
	r = newRigAt(t, path, 2)
	done := r.runner.Handle(r.ctx, m)
	r.until("the settled message", func() bool { r.drain(); return !open(done) })
	if n := len(r.stacks.all()); n != 0 {
		t.Fatalf("deployed again after the restart")
	}
}

func TestInterruptedIsTakenUpAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	r := newRigAt(t, path, 1)
	r.stacks.deploy = func(ctx context.Context, _ stack.Deployment, _ func(stack.Event)) (stack.Result, error) {
		<-ctx.Done()
		return stack.Result{}, ctx.Err()
	}
	m := message(t, "m1", deploy("shop", 1))
	done := r.runner.Handle(r.ctx, m)
	r.until("the deployment", func() bool { return len(r.stacks.all()) == 1 })
	r.end()
	if !open(done) {
		t.Fatal("an interrupted command must not be committed")
	}
	r = newRigAt(t, path, 1)
	r.runner.Handle(r.ctx, m)
	if o := r.outcome("m1"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("outcome is %v", o)
	}
	if n := len(r.stacks.all()); n != 1 {
		t.Errorf("deployed %d times after the restart", n)
	}
}

func TestGenerations(t *testing.T) {
	r := newRig(t, 1)
	run := func(id string, cmd proto.Message) *runnerv1.CommandOutcome {
		t.Helper()
		done := r.runner.Handle(r.ctx, message(t, id, cmd))
		o := r.outcome(id)
		r.settled(done)
		return o
	}
	const (
		succeeded  = runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED
		superseded = runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED
		rejected   = runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED
	)
	for _, step := range []struct {
		id     string
		cmd    proto.Message
		status runnerv1.OutcomeStatus
		code   string
		gen    uint64
	}{
		{"first", deploy("shop", 5), succeeded, "", 5},
		{"older", deploy("shop", 4), superseded, "superseded", 4},
		{"equal, another command", deploy("shop", 5), rejected, "generation_conflict", 5},
		{"none given", deploy("shop", 0), succeeded, "", 6},
		{"a scaling counts with its stack", &runnerv1.ServiceScale{Service: "shop_web", Replicas: 2, Generation: 7}, succeeded, "", 7},
		{"a removal too", &runnerv1.StackRemove{Stack: "shop", Generation: 8}, succeeded, "", 8},
		{"an old deployment after the removal", deploy("shop", 7), superseded, "superseded", 7},
		{"another stack counts alone", deploy("blog", 1), succeeded, "", 1},
	} {
		m := message(t, step.id, step.cmd)
		if s, ok := step.cmd.(*runnerv1.ServiceScale); ok {
			m.Key = []byte("shop")
			_ = s
		}
		done := r.runner.Handle(r.ctx, m)
		o := r.outcome(step.id)
		r.settled(done)
		if o.GetStatus() != step.status || o.GetFailure().GetCode() != step.code || o.GetGeneration() != step.gen && step.status == succeeded {
			t.Errorf("%s: %v", step.id, o)
		}
		if current := o.GetCurrentGeneration(); step.status != succeeded && current == 0 {
			t.Errorf("%s: the current generation is not told: %v", step.id, o)
		}
	}
	if o := run("older again", deploy("shop", 2)); o.GetCurrentGeneration() != 8 {
		t.Errorf("the current generation is not told: %v", o)
	}
	m := message(t, "liar", deploy("shop", 9))
	for i, h := range m.Headers {
		if h.Key == "ce_generation" {
			m.Headers[i].Value = []byte("10")
		}
	}
	r.runner.Handle(r.ctx, m)
	if o := r.outcome("liar"); o.GetFailure().GetCode() != "generation_mismatch" {
		t.Errorf("got %v", o)
	}
}

func TestOrderPerStackAndOthersAtOnce(t *testing.T) {
	r := newRig(t, 4)
	hold := make(chan struct{})
	r.stacks.deploy = func(ctx context.Context, d stack.Deployment, _ func(stack.Event)) (stack.Result, error) {
		if d.Stack == "shop" {
			select {
			case <-hold:
			case <-ctx.Done():
			}
		}
		return stack.Result{Status: stack.Converged}, ctx.Err()
	}
	r.runner.Handle(r.ctx, message(t, "1", deploy("shop", 1)))
	r.runner.Handle(r.ctx, message(t, "2", &runnerv1.ServiceScale{Service: "shop_web", Replicas: 3}))
	r.runner.Handle(r.ctx, message(t, "3", deploy("blog", 1)))
	r.outcome("3")
	r.until("the first deployment", func() bool { return len(r.stacks.all()) == 2 }) // the other stack may overtake it
	if got := r.stacks.all(); !slices.Equal(got, []string{"deploy shop", "deploy blog"}) && !slices.Equal(got, []string{"deploy blog", "deploy shop"}) {
		t.Fatalf("done so far: %v", got)
	}
	close(hold)
	r.outcome("2")
	if got := r.stacks.all(); got[len(got)-1] != "scale shop_web=3" {
		t.Errorf("done: %v", got)
	}
}

func TestCancel(t *testing.T) {
	r := newRig(t, 1)
	r.stacks.deploy = func(ctx context.Context, _ stack.Deployment, _ func(stack.Event)) (stack.Result, error) {
		<-ctx.Done()
		return stack.Result{Status: stack.Cancelled}, ctx.Err()
	}
	running := r.runner.Handle(r.ctx, message(t, "running", deploy("shop", 1)))
	waiting := r.runner.Handle(r.ctx, message(t, "waiting", deploy("shop", 2)))
	r.until("the first one", func() bool { return slices.Equal(r.runner.Running(), []string{"running"}) })
	for _, id := range []string{"waiting", "running"} {
		if err := r.runner.Cancel(t.Context(), id, ""); err != nil { // it knows their stack
			t.Fatal(err)
		}
	}
	wantCode(t, r.runner.Cancel(t.Context(), "unknown", ""), "no_such_command")
	for id, done := range map[string]<-chan struct{}{"running": running, "waiting": waiting} {
		var o *runnerv1.CommandOutcome
		r.until(id, func() bool {
			for _, ev := range r.drain() {
				if ev.Type == "axion.runner.v1.CommandOutcome" {
					o = decode[*runnerv1.CommandOutcome](t, ev)
					if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_CANCELLED {
						t.Errorf("%s: %v", ev.CausationID, o)
					}
				}
			}
			return !open(done)
		})
	}
	if got := r.stacks.all(); len(got) > 1 {
		t.Errorf("done: %v", got)
	}
}

func TestFailures(t *testing.T) {
	changed := []stack.ObjectChange{{Kind: stack.KindNetwork, Action: stack.Created, Name: "shop_default"}}
	for name, tc := range map[string]struct {
		result stack.Result
		err    error
		want   runnerv1.OutcomeStatus
	}{
		"invalid before anything":  {stack.Result{}, failure.New(failure.Invalid, "invalid_compose", "shop", "bad"), runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED},
		"denied before anything":   {stack.Result{}, failure.New(failure.Denied, "not_in_bundle", "/x", "bad"), runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED},
		"invalid after a change":   {stack.Result{Changes: changed}, failure.New(failure.Invalid, "x", "", "bad"), runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED},
		"rolled back":              {stack.Result{Status: stack.RolledBack}, failure.New(failure.Internal, "x", "", "bad"), runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK},
		"timed out":                {stack.Result{Status: stack.TimedOut}, failure.New(failure.Deadline, "x", "", "late"), runnerv1.OutcomeStatus_OUTCOME_STATUS_TIMED_OUT},
		"a task that does not run": {stack.Result{Status: stack.Failed, Changes: changed}, failure.New(failure.Internal, "x", "", "bad"), runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1)
			r.stacks.deploy = func(context.Context, stack.Deployment, func(stack.Event)) (stack.Result, error) {
				return tc.result, tc.err
			}
			r.runner.Handle(r.ctx, message(t, "m", deploy("shop", 1)))
			if o := r.outcome("m"); o.GetStatus() != tc.want || o.GetFailure().GetMessage() != tc.err.Error() {
				t.Errorf("got %v", o)
			}
		})
	}
}

func TestEngineAwayIsTriedAgain(t *testing.T) {
	r := newRig(t, 1)
	r.stacks.deploy = func(context.Context, stack.Deployment, func(stack.Event)) (stack.Result, error) {
		if len(r.stacks.all()) < 3 {
			return stack.Result{}, failure.New(failure.Unavailable, "engine_unreachable", "", "the engine is away")
		}
		return stack.Result{Status: stack.Converged}, nil
	}
	r.runner.Handle(r.ctx, message(t, "m", deploy("shop", 1)))
	if o := r.outcome("m"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED || len(r.stacks.all()) != 3 {
		t.Errorf("%v after %d attempts", o, len(r.stacks.all()))
	}
	// ... but not for longer than the command may take.
	r.stacks.deploy = func(context.Context, stack.Deployment, func(stack.Event)) (stack.Result, error) {
		return stack.Result{}, failure.New(failure.Unavailable, "engine_unreachable", "", "the engine is away")
	}
	cmd := deploy("shop", 2)
	cmd.Options = &runnerv1.DeployOptions{Timeout: durationpb.New(time.Second)}
	r.runner.Handle(r.ctx, message(t, "late", cmd))
	if o := r.outcome("late"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED || o.GetFailure().GetClass() != runnerv1.FailureClass_FAILURE_CLASS_UNAVAILABLE {
		t.Errorf("got %v", o)
	}
}

func TestRejected(t *testing.T) {
	big := message(t, "big", deploy("shop", 1))
	big.Value = make([]byte, 1<<20+1)
	unknown := message(t, "unknown", deploy("shop", 1))
	for i, h := range unknown.Headers {
		if h.Key == "ce_type" {
			unknown.Headers[i].Value = []byte("axion.runner.v1.StackDance")
		}
	}
	unreadable := message(t, "unreadable", deploy("shop", 1))
	unreadable.Value = []byte{0xff}
	for name, tc := range map[string]struct {
		m    bus.Message
		id   string // of the command that gets an outcome; empty if the message has none
		code string
	}{
		"no envelope at all": {bus.Message{Topic: names.GetClusterTopic(), Value: []byte("hello"), Offset: 7}, "", "bad_envelope"},
		"too large":          {big, "big", "too_large"},
		"unknown type":       {unknown, "unknown", "unknown_type"},
		"unreadable":         {unreadable, "unreadable", "unreadable"},
		"not yet done":       {message(t, "prune", &runnerv1.ImagePrune{}), "prune", "unsupported_command"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1)
			r.topic.down = true
			done := r.runner.Handle(r.ctx, tc.m)
			if r.journal.Len() != 0 || !open(done) {
				t.Fatal("settled without a copy in the dead-letter topic")
			}
			r.topic.mu.Lock()
			r.topic.down = false
			r.topic.mu.Unlock()
			var rejectedEvent *runnerv1.MessageRejected
			var outcome *runnerv1.CommandOutcome
			r.until("the settled message", func() bool {
				for _, ev := range r.drain() {
					switch ev.Type {
					case "axion.runner.v1.MessageRejected":
						rejectedEvent = decode[*runnerv1.MessageRejected](t, ev)
					case "axion.runner.v1.CommandOutcome":
						outcome = decode[*runnerv1.CommandOutcome](t, ev)
					}
				}
				return !open(done)
			})
			for _, ev := range r.drain() {
				if ev.Type == "axion.runner.v1.MessageRejected" {
					rejectedEvent = decode[*runnerv1.MessageRejected](t, ev)
				}
			}
			if rejectedEvent.GetFailure().GetCode() != tc.code || rejectedEvent.GetOffset() != tc.m.Offset {
				t.Errorf("told: %v", rejectedEvent)
			}
			if (outcome != nil) != (tc.id != "") || outcome != nil && outcome.GetFailure().GetCode() != tc.code {
				t.Errorf("outcome: %v", outcome)
			}
			dead := r.topic.all()
			if len(dead) != 1 || dead[0].Topic != "dlq" || string(dead[0].Value) != string(tc.m.Value) {
				t.Fatalf("dead letters: %v", dead)
			}
			notice, headers := deadletter.Split(dead[0].Headers)
			if notice.Code != tc.code || notice.Topic != tc.m.Topic || notice.Offset != tc.m.Offset || notice.AgentID == "" || len(headers) != len(tc.m.Headers) {
				t.Errorf("dead letter's notice is %+v, with %d headers beside it", notice, len(headers))
			}
			// The next message is handled.
			r.runner.Handle(r.ctx, message(t, "next", deploy("blog", 1)))
			r.outcome("next")
		})
	}
}

func TestAgentTopic(t *testing.T) {
	m := message(t, "m", deploy("shop", 1))
	m.Topic = names.GetAgentTopic()
	t.Run("a manager hands it on", func(t *testing.T) {
		r := newRig(t, 1)
		r.settled(r.runner.Handle(r.ctx, m))
		got := r.topic.all()
		if len(got) != 1 || got[0].Topic != names.GetClusterTopic() || string(got[0].Value) != string(m.Value) || len(got[0].Headers) != len(m.Headers) {
			t.Errorf("handed on: %+v", got)
		}
		if len(r.stacks.all()) != 0 || r.journal.Len() != 0 {
			t.Error("nothing else may happen")
		}
	})
	t.Run("a worker refuses it", func(t *testing.T) {
		r := newRig(t, 1)
		r.role = runnerv1.NodeRole_NODE_ROLE_WORKER
		r.runner.Handle(r.ctx, m)
		if o := r.outcome("m"); o.GetFailure().GetCode() != "wrong_node" {
			t.Errorf("got %v", o)
		}
	})
}

func TestFailingJournalLosesNothing(t *testing.T) {
	r := newRig(t, 1)
	r.runner.deps.Journal = &journal.Failing{Err: errors.New("disk full")}
	done := r.runner.Handle(r.ctx, message(t, "m", deploy("shop", 1)))
	r.stop()
	r.runner.Wait()
	if !open(done) || len(r.stacks.all()) != 0 {
		t.Errorf("settled %v, done %v", !open(done), r.stacks.all())
	}
}
