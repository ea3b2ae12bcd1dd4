package kafka_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/agent/command"
	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/agent/health"
	"github.com/axion/runner-agent/agent/journal"
	"github.com/axion/runner-agent/plane/ca"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/fault"
)

// Bounds of what a flood may cost.
const (
	// floodHeap is how much more memory may be in use at the peak, floodLeft when all is over.
	floodHeap, floodLeft = 48 << 20, 12 << 20
	// floodRoutines is how many more goroutines may run: one for each stack that commands wait for, and what a few clients need.
	floodRoutines = bus.DefaultMaxInFlight + 40
)

// nothing is the part of a stack engine that is not asked for.
type nothing interface{ command.Stacks }

// quick is a stack engine that has nothing to do.
type quick struct{ nothing }

func (quick) Deploy(context.Context, stack.Deployment, func(stack.Event)) (stack.Result, error) {
	return stack.Result{Status: stack.Converged}, nil
}

// counting counts the messages that a handler has and that are not settled.
type counting struct {
	bus.Handler
	mu      sync.Mutex
	open    []<-chan struct{}
	most    int
	handled int
}

func (c *counting) Handle(ctx context.Context, m bus.Message) <-chan struct{} {
	settled := c.Handler.Handle(ctx, m)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = slices.DeleteFunc(c.open, func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	})
	c.open = append(c.open, settled)
	c.most = max(c.most, len(c.open))
	c.handled++
	return settled
}

// flood is the Kafka side of an agent with all its parts, and a Swarm for the heads; only the stack engine does nothing.
type flood struct {
	*world
	client  bus.Config
	topics  *runnerv1.KafkaAccess
	handler *counting
	stop    context.CancelFunc
	over    sync.WaitGroup
}

func newFlood(t *testing.T) *flood {
	t.Helper()
	authority, err := ca.Open(filepath.Join(t.TempDir(), "ca"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	b := startEmbedded(t, authority)
	f := &flood{
		world:  &world{t: t, brokers: b, api: engine.Client(t), stacks: map[string]struct{}{}},
		topics: &runnerv1.KafkaAccess{AgentTopic: "runner.commands.a-1", ClusterTopic: clusterTopic, DlqTopic: "runner.commands.dlq", EventsTopic: eventsTopic},
	}
	t.Cleanup(f.removeStacks)
	for _, topic := range []string{clusterTopic, eventsTopic, f.topics.GetDlqTopic()} {
		if _, err := b.admin().CreateTopic(t.Context(), 1, 1, nil, topic); err != nil {
			t.Fatal(err)
		}
	}
	certificate, err := authority.IssueClient("flood")
	if err != nil {
		t.Fatal(err)
	}
	f.client = bus.Config{
		Name: "flood", Brokers: b.addresses(), ClientID: "a-1",
		TLS: &tls.Config{RootCAs: authority.Pool(), Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
	}
	return f
}

// start starts the agent's parts; they end with the test.
func (f *flood) start() {
	t := f.t
	t.Helper()
	log, warn := slog.New(slog.DiscardHandler), health.New(time.Now)
	store, err := journal.Open(filepath.Join(t.TempDir(), "journal.db"), journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	producer, err := bus.NewProducer(bus.ProducerConfig{Config: f.client, Topics: []string{eventsTopic, f.topics.GetDlqTopic(), clusterTopic}}, bus.ProducerDeps{Log: log, Warn: warn})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(producer.Close)
	publisher, err := bus.NewPublisher(bus.PublisherConfig{EventsTopic: eventsTopic}, bus.PublisherDeps{
		Outbox: store, Producer: producer, Sign: func(*envelope.Envelope) error { return nil }, Log: log, Warn: warn,
	})
	if err != nil {
		t.Fatal(err)
	}
	heads, err := fence.New(fence.Config{Owner: "a-1"}, fence.Deps{Client: func() fence.API { return f.api }, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	runner, err := command.New(command.Config{
		AgentID: "a-1", ClusterID: cluster, Kafka: f.topics, MaxConcurrent: 4, MaxMessageBytes: 8 << 20, DefaultTimeout: time.Minute, WorkDir: t.TempDir(),
	}, command.Deps{
		Journal: store, Fence: heads, Stacks: func(command.Claim) (command.Stacks, error) { return quick{}, nil }, Producer: producer,
		Role: func() runnerv1.NodeRole { return runnerv1.NodeRole_NODE_ROLE_MANAGER }, Warn: warn, Log: log, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.handler = &counting{Handler: runner}
	consumer, err := bus.NewConsumer(bus.ConsumerConfig{Config: f.client, Topic: clusterTopic, Group: clusterGroup}, bus.ConsumerDeps{Handler: f.handler, Log: log, Warn: warn})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = func() { cancel(); f.over.Wait(); runner.Wait() }
	f.over.Go(func() { _ = publisher.Run(ctx) })
	f.over.Go(func() { _ = consumer.Run(ctx) })
	t.Cleanup(func() { f.stop() })
}

// record is a command as it goes over Kafka.
func (f *flood) record(id, name string, generation, inEnvelope uint64) *kgo.Record {
	f.t.Helper()
	deploy := order(name, 0)
	deploy.Generation = generation
	e, err := envelope.New("/test", deploy, time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	e.ID, e.Generation, e.Subject = id, inEnvelope, name
	r := &kgo.Record{Topic: clusterTopic, Key: []byte(name), Value: e.Data}
	for _, h := range e.Headers() {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return r
}

// send writes n commands of all kinds that are quickly done and returns their ids with the status that each must have.
func (f *flood) send(n int, stacks []string, other string) map[string]runnerv1.OutcomeStatus {
	t := f.t
	t.Helper()
	cl, err := kgo.NewClient(f.brokers.options()...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	want := map[string]runnerv1.OutcomeStatus{}
	first := func(r *kgo.Record, id string, status runnerv1.OutcomeStatus) *kgo.Record {
		want[id] = status
		return r
	}
	for i := range n {
		id := fmt.Sprintf("c-%06d", i)
		current := stacks[i/4%len(stacks)] // so that what comes again is the same command
		var r *kgo.Record
		switch {
		case i%100 == 7: // the next generation of a stack
			r = first(f.record(id, other, uint64(i), uint64(i)), id, runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED)
		case i%4 == 0: // older than what its stack is at
			r = first(f.record(id, current, 1, 1), id, runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED)
		case i%4 == 1: // invalid
			r = first(f.record(id, current, 1, 2), id, runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED)
		case i%4 == 2: // what came before it, again
			r = f.record(fmt.Sprintf("c-%06d", i-2), current, 1, 1)
		default: // unreadable: to the dead letters
			r = first(f.record(id, current, 1, 1), id, runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED)
			r.Value = []byte("no protobuf")
		}
		cl.Produce(t.Context(), r, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return want
}

// committed is the group's offset.
func (f *flood) committed() int64 {
	offsets, err := f.brokers.admin().FetchOffsets(f.t.Context(), clusterGroup)
	if err != nil {
		return -1
	}
	o, _ := offsets.Lookup(clusterTopic, 0)
	return o.At
}

func live() (heap int64, routines int) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), runtime.NumGoroutine()
}

// TestFlood: ten thousand commands wait in the cluster's topic. No other test runs beside it.
func TestFlood(t *testing.T) {
	n := 2_000
	if fault.Long() {
		n = 10_000
	}
	f := newFlood(t)
	current, other := []string{f.newStack(), f.newStack(), f.newStack(), f.newStack()}, f.newStack()
	f.start()
	cl, err := kgo.NewClient(f.brokers.options()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range current {
		if err := cl.ProduceSync(t.Context(), f.record("before-"+name, name, 1_000_000, 1_000_000)).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	cl.Close()
	eventually(t, "the first commands", func() bool { return f.committed() == int64(len(current)) })
	f.stop()
	want := f.send(n, current, other)
	f.start()
	heapBefore, routinesBefore := live()
	begun := time.Now()
	var heapMost int64
	routinesMost := 0
	for f.committed() < int64(n+len(current)) {
		if time.Since(begun) > 10*patience {
			t.Fatalf("committed %d of %d", f.committed(), n)
		}
		heap, routines := live()
		heapMost, routinesMost = max(heapMost, heap), max(routinesMost, routines)
		time.Sleep(250 * time.Millisecond)
	}
	took := time.Since(begun)
	heapAfter, routinesAfter := live()
	if heapMost-heapBefore > floodHeap || heapAfter-heapBefore > floodLeft {
		t.Errorf("the heap went from %d to %d and then to %d MiB", heapBefore>>20, heapMost>>20, heapAfter>>20)
	}
	if routinesMost-routinesBefore > floodRoutines || routinesAfter-routinesBefore > floodRoutines/4 {
		t.Errorf("%d goroutines became %d and then %d", routinesBefore, routinesMost, routinesAfter)
	}
	if f.handler.most > bus.DefaultMaxInFlight || f.handler.handled != n {
		t.Errorf("%d messages were handled, %d of them at once; want %d, at most %d at once", f.handler.handled, f.handler.most, n, bus.DefaultMaxInFlight)
	}
	f.check(want)
	fault.Report(t, fmt.Sprintf("a flood of %d commands", n), "worked off without growing memory, at most 64 uncommitted",
		fmt.Sprintf("%.0f s; heap %.1f MiB before, %.1f at its peak, %.1f after; goroutines %d, %d, %d; at most %d uncommitted", took.Seconds(),
			mib(heapBefore), mib(heapMost), mib(heapAfter), routinesBefore, routinesMost, routinesAfter, f.handler.most))
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// check compares the outcomes in the topic of events with what they must be.
func (f *flood) check(want map[string]runnerv1.OutcomeStatus) {
	t := f.t
	t.Helper()
	got, wrong := map[string]bool{}, 0
	for _, r := range f.records(eventsTopic) {
		id := header(r, "ce_causationid")
		if header(r, "ce_type") != envelope.TypePrefix+"CommandOutcome" || strings.HasPrefix(id, "before-") {
			continue
		}
		o := &runnerv1.CommandOutcome{}
		if err := proto.Unmarshal(r.Value, o); err != nil {
			t.Fatal(err)
		}
		if header(r, "ce_id") != envelope.OutcomeID(id) || o.GetStatus() != want[id] {
			wrong++
			t.Logf("command %s: %v", id, o)
		}
		got[id] = true
	}
	if len(got) != len(want) || wrong > 0 {
		t.Errorf("%d of %d commands have an outcome, %d a wrong one", len(got), len(want), wrong)
	}
}
