package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/agent"
	"github.com/axion/runner-agent/agent/config"
	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/plane"
	"github.com/axion/runner-agent/plane/ca"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/operatorcontext"
	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/kafka"
	"github.com/axion/runner-agent/test/logbuffer"
	"github.com/axion/runner-agent/test/loopback"
)

// patience bounds what must happen, on a busy machine.
const patience = 90 * time.Second

const cluster = "fault"

// Topics and groups of the contract.
const (
	clusterTopic = "runner.commands." + cluster
	clusterGroup = "runner." + cluster
	eventsTopic  = "runner.events"
)

// world is a plane, an agent and what is between them.
type world struct {
	t        *testing.T
	brokers  brokers
	ca       *ca.CA
	cfg      plane.Config
	operator planev1.OperatorClient
	// ahead is by how much the plane's clock goes ahead, in nanoseconds.
	ahead atomic.Int64
	api   *client.Client

	dir       string // the agent's
	stopAgent func()
	log       logbuffer.Buffer

	mu     sync.Mutex
	stacks map[string]struct{}
}

// eachKafka runs a test with the embedded broker, and in the long form also with each version of a real Kafka with one broker.
func eachKafka(t *testing.T, test func(t *testing.T, w *world)) {
	t.Parallel()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.start(startEmbedded(t, w.ca))
		test(t, w)
	})
	if !fault.Long() {
		return
	}
	for _, version := range []string{kafka.Version4, kafka.Version3} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.start(startApache(t, w.ca, version, 1))
			test(t, w)
		})
	}
}

// newWorld makes the plane's CA, which the brokers must know before they start.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, api: engine.Client(t), dir: t.TempDir(), stacks: map[string]struct{}{},
		cfg: plane.Config{DataDir: filepath.Join(t.TempDir(), "data"), Listen: loopback.FreeAddress(t), HeartbeatInterval: time.Second, CertificateLife: 90 * 24 * time.Hour},
	}
	var err error
	if w.ca, err = ca.Open(filepath.Join(w.cfg.DataDir, "ca"), time.Now); err != nil {
		t.Fatal(err)
	}
	return w
}

// start starts plane and agent, and waits until both are ready.
func (w *world) start(b brokers) {
	w.t.Helper()
	w.brokers, w.cfg.KafkaBrokers = b, b.addresses()
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("the end of the log of plane and agent:\n%s", w.log.Tail())
		}
	})
	w.startPlane()
	token, err := w.operator.CreateToken(w.t.Context(), &planev1.CreateTokenRequest{ClusterId: cluster})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.file("token"), []byte(token.GetToken()), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.removeStacks) // after the agent's end
	w.startAgent()
	w.t.Cleanup(func() { w.stopAgent() })
	w.succeeds(w.submit(w.newStack(), 0)) // it has joined
}

func (w *world) startPlane() {
	w.t.Helper()
	p, err := plane.New(w.cfg, slog.New(slog.NewTextHandler(&w.log, nil)).With("of", "plane"), func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.background("plane", p.Run)
	select {
	case <-p.Ready():
	case <-time.After(patience):
		w.t.Fatal("the plane is not ready")
	}
	c, err := operatorcontext.Load(plane.ContextPath(w.cfg.DataDir))
	if err != nil {
		w.t.Fatal(err)
	}
	tlsConfig, err := c.ClientTLS()
	if err != nil {
		w.t.Fatal(err)
	}
	conn, err := grpc.NewClient(c.Address, grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)), grpc.WithPerRPCCredentials(c.Credentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	w.operator = planev1.NewOperatorClient(conn)
}

// background runs f until the test ends or the returned function is called.
func (w *world) background(name string, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("%s: %v", name, err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

// startAgent starts the agent on the state that it had.
func (w *world) startAgent() {
	w.t.Helper()
	socket, err := os.MkdirTemp("", "axf") // a socket's path must be short
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = os.RemoveAll(socket) })
	var cfg config.Config
	cfg.Agent.StateDir, cfg.Agent.WorkDir = w.file("state"), w.file("work")
	cfg.Plane.Address, cfg.Plane.TokenFile = w.cfg.Listen, w.file("token")
	cfg.Engine.Host = w.api.DaemonHost()
	cfg.Kafka.MaxMessageBytes = 8 << 20
	cfg.Commands.MaxConcurrent, cfg.Commands.DefaultTimeout = 4, time.Minute
	cfg.Health.Listen, cfg.Local.Socket = "127.0.0.1:0", filepath.Join(socket, "s")
	a, err := agent.New(cfg, slog.New(slog.NewTextHandler(&w.log, nil)).With("of", "agent"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.stopAgent = w.background("agent", a.Run)
}

// newStack is a name that no other test has; the stack goes with the test.
func (w *world) newStack() string {
	name := engine.Name(w.t, "axt-fault")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stacks[name] = struct{}{}
	return name
}

func (w *world) removeStacks() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := stack.New(stack.Config{WorkDir: w.t.TempDir()}, stack.Deps{Client: w.api, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Error(err)
		return
	}
	for name := range w.stacks {
		if _, err := e.Remove(ctx, name, time.Minute, nil); err != nil {
			w.t.Errorf("clean up: %v", err)
		}
		for _, label := range []string{"axion.head=", "axion.manifest-of="} {
			configs, err := w.api.ConfigList(ctx, swarm.ConfigListOptions{Filters: filters.NewArgs(filters.Arg("label", label+name))})
			if err != nil {
				w.t.Errorf("clean up: %v", err)
			}
			for _, c := range configs {
				_ = w.api.ConfigRemove(ctx, c.ID)
			}
		}
	}
}

// order deploys a stack of one service, without tasks, that carries a mark.
func order(name string, mark int) *runnerv1.StackDeploy {
	compose := fmt.Sprintf("version: \"3.8\"\nservices: {web: {image: \"axion/none:1\", environment: {MARK: \"%d\"}, deploy: {replicas: 0, endpoint_mode: dnsrr}}}\n", mark)
	return &runnerv1.StackDeploy{
		Stack: name, Options: &runnerv1.DeployOptions{ResolveImage: runnerv1.ResolveImage_RESOLVE_IMAGE_NEVER},
		Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: &runnerv1.BundleContent{
			WorkingDir: "/app", ComposeFiles: []string{"/app/compose.yml"}, Files: []*runnerv1.BundleFile{{Path: "/app/compose.yml", Content: []byte(compose)}},
		}}},
	}
}

// submit submits a deployment and returns the command's id.
func (w *world) submit(name string, mark int) string {
	w.t.Helper()
	resp, err := w.operator.SubmitCommand(w.t.Context(), &planev1.SubmitCommandRequest{
		ClusterId: cluster, Command: &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: order(name, mark)},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.GetCommandId()
}

// outcome waits for the outcome of a command.
func (w *world) outcome(id string) *runnerv1.CommandOutcome {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	all := w.events(ctx, id, true)
	var found []*runnerv1.CommandOutcome
	for _, e := range all {
		if e.GetType() == envelope.TypePrefix+"CommandOutcome" {
			o := &runnerv1.CommandOutcome{}
			if err := proto.Unmarshal(e.GetData(), o); err != nil {
				w.t.Fatal(err)
			}
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		w.t.Fatalf("command %s has %d outcomes", id, len(found))
	}
	return found[0]
}

func (w *world) events(ctx context.Context, id string, follow bool) []*planev1.EventRecord {
	w.t.Helper()
	stream, err := w.operator.WatchEvents(ctx, &planev1.WatchEventsRequest{CommandId: id, Follow: follow})
	if err != nil {
		w.t.Fatal(err)
	}
	var all []*planev1.EventRecord
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			w.t.Fatalf("command %s has no outcome: %v", id, err)
		}
		all = append(all, e)
	}
}

func (w *world) succeeds(id string) *runnerv1.CommandOutcome {
	w.t.Helper()
	o := w.outcome(id)
	if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		w.t.Errorf("command %s: %v", id, o)
	}
	return o
}

// end waits until each command has its outcome: it succeeded, or a newer one of its stack came before it, which is truth enough.
func (w *world) end(ids []string) (superseded int) {
	w.t.Helper()
	for _, id := range ids {
		switch o := w.outcome(id); o.GetStatus() {
		case runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED:
		case runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED:
			superseded++
		default:
			w.t.Errorf("command %s: %v", id, o)
		}
	}
	return superseded
}

// service returns a stack's service, with how often it was written: its version grows with each.
func (w *world) service(name string) (mark, label string, version uint64) {
	w.t.Helper()
	services, err := w.api.ServiceList(w.t.Context(), swarm.ServiceListOptions{Filters: filters.NewArgs(filters.Arg("label", "com.docker.stack.namespace="+name))})
	if err != nil || len(services) != 1 {
		w.t.Fatalf("stack %s has %d services, %v", name, len(services), err)
	}
	s := services[0]
	return s.Spec.TaskTemplate.ContainerSpec.Env[0], s.Spec.Labels[fence.LabelGeneration], s.Version.Index
}

// isAt checks that a stack is as its last deployment left it.
func (w *world) isAt(name string, mark int, generation uint64) {
	w.t.Helper()
	got, label, _ := w.service(name)
	if want := fmt.Sprint("MARK=", mark); got != want || label != fmt.Sprint(generation, "/1") {
		w.t.Errorf("stack %s has %s and is labelled %s, want %s and %d/1", name, got, label, want, generation)
	}
}

// records reads a topic from its beginning to its end of now.
func (w *world) records(topic string) []*kgo.Record {
	w.t.Helper()
	ends, err := w.brokers.admin().ListEndOffsets(w.t.Context(), topic)
	if err != nil {
		w.t.Fatal(err)
	}
	end, ok := ends.Lookup(topic, 0)
	if !ok || end.Err != nil {
		w.t.Fatalf("topic %s: %v", topic, end.Err)
	}
	starts, err := w.brokers.admin().ListStartOffsets(w.t.Context(), topic)
	if err != nil {
		w.t.Fatal(err)
	}
	begin, _ := starts.Lookup(topic, 0)
	if begin.Offset >= end.Offset {
		return nil
	}
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().At(begin.Offset)}})}, w.brokers.options()...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	var all []*kgo.Record
	for ctx.Err() == nil {
		all = append(all, cl.PollFetches(ctx).Records()...)
		if n := len(all); n > 0 && all[n-1].Offset >= end.Offset-1 {
			return all
		}
	}
	w.t.Fatalf("topic %s: read %d records, its end is at %d", topic, len(all), end.Offset)
	return nil
}

// header returns a record's header.
func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// counts says how often the topic of events holds each id, and how many outcomes of a command say something else than the first of them.
func (w *world) counts() (duplicates, conflicts int) {
	w.t.Helper()
	first := map[string]string{}
	for _, r := range w.records(eventsTopic) {
		id := header(r, "ce_id")
		data, told := first[id]
		switch {
		case !told:
			first[id] = string(r.Value)
		default:
			duplicates++
			if data != string(r.Value) {
				conflicts++
			}
		}
	}
	return duplicates, conflicts
}

// eventually waits until f is true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}
