package dispatch

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/plane/ledger"
	"github.com/axion/runner-agent/plane/store"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

const (
	eventsTopic  = "runner.events"
	clusterTopic = "runner.commands.prod"
	// patience is how long a test waits for what must happen.
	patience = 20 * time.Second
)

// signers is a registry of agents in memory.
type signers struct {
	mu   sync.Mutex
	keys map[string]*ecdsa.PrivateKey
	of   map[string]string
	err  error
}

func (s *signers) Signer(_ context.Context, agentID string) (string, []*ecdsa.PublicKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return "", nil, s.err
	}
	key, ok := s.keys[agentID]
	if !ok {
		return "", nil, nil
	}
	old, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // an agent that has renewed has two
	if err != nil {
		return "", nil, err
	}
	return s.of[agentID], []*ecdsa.PublicKey{&old.PublicKey, &key.PublicKey}, nil
}

func (s *signers) add(t *testing.T, agentID, clusterID string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[agentID], s.of[agentID] = key, clusterID
}

// world is a broker, a ledger and a dispatch between them.
type world struct {
	t       *testing.T
	broker  *kfake.Cluster
	client  *kgo.Client // of an agent
	ledger  *ledger.Ledger
	signers *signers
	cfg     Config

	counting *countingLedger  // in place of ledger, if a test counts
	now      func() time.Time // the dispatch's clock
}

func newWorld(t *testing.T, cfg Config) *world {
	t.Helper()
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(1), kfake.SeedTopics(1, eventsTopic, clusterTopic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "plane.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.ListenAddrs()...), kgo.ConsumeTopics(clusterTopic), kgo.MaxVersions(nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	cfg.EventsTopic = eventsTopic
	w := &world{
		t: t, broker: broker, client: client, ledger: ledger.New(ledger.Config{}, db, time.Now), cfg: cfg, now: time.Now,
		signers: &signers{keys: map[string]*ecdsa.PrivateKey{}, of: map[string]string{}},
	}
	w.signers.add(t, "a-1", "prod")
	w.signers.add(t, "a-2", "prod")
	w.signers.add(t, "a-evil", "evil")
	return w
}

// start runs a dispatch until stop is called or the test ends.
func (w *world) start() (d *Dispatch, stop func()) {
	w.t.Helper()
	var kept Ledger = w.ledger
	if w.counting != nil {
		kept = w.counting
	}
	d, err := New(w.cfg, Deps{
		Ledger: kept, Signers: w.signers, Log: slog.New(slog.DiscardHandler), Now: w.now,
		ClientOpts: func() []kgo.Opt { return []kgo.Opt{kgo.SeedBrokers(w.broker.ListenAddrs()...)} },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				w.t.Errorf("Run: %v", err)
			}
		})
	}
	w.t.Cleanup(stop)
	return d, stop
}

func (w *world) submit(ttl time.Duration) ledger.Command {
	w.t.Helper()
	c, _, err := w.ledger.Submit(w.t.Context(), ledger.NewCommand{
		ClusterID: "prod", Topic: clusterTopic, TimeToLive: ttl, Message: &runnerv1.StackDeploy{Stack: "shop"}, CorrelationID: "corr",
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// receive returns the next n messages of the cluster's topic.
func (w *world) receive(n int) []*kgo.Record {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	var out []*kgo.Record
	for len(out) < n {
		f := w.client.PollFetches(ctx)
		if ctx.Err() != nil {
			w.t.Fatalf("%d of %d messages arrived", len(out), n)
		}
		out = append(out, f.Records()...)
	}
	return out
}

// outcome is a signed outcome of that agent.
func (w *world) event(agentID, commandID string, msg proto.Message) envelope.Envelope {
	w.t.Helper()
	e, err := envelope.New("/agents/"+agentID, msg, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	e.CausationID, e.CorrelationID = commandID, "corr"
	if _, ok := msg.(*runnerv1.CommandOutcome); ok {
		e.ID = envelope.OutcomeID(commandID)
	}
	w.sign(&e, agentID)
	return e
}

func (w *world) sign(e *envelope.Envelope, agentID string) {
	w.t.Helper()
	if err := e.Sign(w.signers.keys[agentID]); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) publish(es ...envelope.Envelope) {
	w.t.Helper()
	for _, e := range es {
		if err := w.client.ProduceSync(w.t.Context(), asRecord(e)).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
}

func asRecord(e envelope.Envelope) *kgo.Record {
	r := &kgo.Record{Topic: eventsTopic, Key: []byte("prod"), Value: e.Data}
	for _, h := range e.Headers() {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return r
}

// eventually waits until the condition holds.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("in vain: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (w *world) closed(id string) func() bool {
	return func() bool {
		c, err := w.ledger.Command(w.t.Context(), id)
		if err != nil {
			w.t.Fatal(err)
		}
		return !c.Open()
	}
}

func succeeded() *runnerv1.CommandOutcome {
	return &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED}
}

func TestSendsAgainUntilTheOutcome(t *testing.T) {
	w := newWorld(t, Config{ResendFirst: 50 * time.Millisecond, ResendMax: 100 * time.Millisecond})
	w.start()
	c := w.submit(time.Hour)
	records := w.receive(3)
	for _, r := range records {
		var headers []envelope.Header
		for _, h := range r.Headers {
			headers = append(headers, envelope.Header{Key: h.Key, Value: h.Value})
		}
		e, err := envelope.Parse(headers, r.Value, 0)
		if err != nil {
			t.Fatal(err)
		}
		if e.ID != c.ID || e.Generation != 1 || string(r.Key) != "shop" || string(r.Value) != string(records[0].Value) {
			t.Errorf("%+v with key %s is not the same command again", e, r.Key)
		}
	}
	w.publish(w.event("a-1", c.ID, succeeded()))
	w.eventually("the outcome closes the command", w.closed(c.ID))
	got, err := w.ledger.Command(t.Context(), c.ID)
	if err != nil || got.Outcome != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Fatalf("%+v, %v", got, err)
	}
	time.Sleep(300 * time.Millisecond) // three times the longest wait: a send too many would have happened
	if after, _ := w.ledger.Command(t.Context(), c.ID); after.Sends > got.Sends+1 {
		t.Errorf("%d sends, %d when it was closed", after.Sends, got.Sends)
	}
}

func TestResendAfter(t *testing.T) {
	d, err := New(Config{EventsTopic: "x"}, Deps{Ledger: &ledger.Ledger{}, Signers: &signers{}, ClientOpts: func() []kgo.Opt { return nil }, Log: slog.Default(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	for sends, want := range map[uint64]time.Duration{1: time.Minute, 2: 2 * time.Minute, 4: 8 * time.Minute, 5: 10 * time.Minute, 1 << 40: 10 * time.Minute} {
		if got := d.resendAfter(sends); got != want {
			t.Errorf("after %d sends: %v, want %v", sends, got, want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}, Deps{}); err == nil {
		t.Error("a dispatch without a topic")
	}
	if _, err := New(Config{EventsTopic: "x"}, Deps{}); err == nil {
		t.Error("a dispatch without a ledger")
	}
}

func TestWhatIsNotBelievedIsDropped(t *testing.T) {
	for name, tc := range map[string]struct {
		reason string
		forge  func(w *world, commandID string) envelope.Envelope
	}{
		"another agent's key": {dropBadSignature, func(w *world, id string) envelope.Envelope {
			e := w.event("a-1", id, succeeded())
			w.sign(&e, "a-2")
			return e
		}},
		"no signature": {dropBadSignature, func(w *world, id string) envelope.Envelope {
			e := w.event("a-1", id, succeeded())
			e.Signature = nil
			return e
		}},
		"changed data": {dropBadSignature, func(w *world, id string) envelope.Envelope {
			e := w.event("a-1", id, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED})
			e.Data, _ = proto.Marshal(succeeded())
			return e
		}},
		"an agent of another cluster": {dropForeignCommand, func(w *world, id string) envelope.Envelope {
			return w.event("a-evil", id, succeeded())
		}},
		"an unknown agent": {dropUnknownAgent, func(w *world, id string) envelope.Envelope {
			e := w.event("a-1", id, succeeded())
			e.Source = "/agents/a-nobody"
			w.sign(&e, "a-1")
			return e
		}},
		"the plane's own name": {dropBadSource, func(w *world, id string) envelope.Envelope {
			e := w.event("a-1", id, succeeded())
			e.Source = "/plane"
			w.sign(&e, "a-1")
			return e
		}},
		"an outcome of another id": {dropBadOutcome, func(w *world, id string) envelope.Envelope {
			e := w.event("a-1", id, succeeded())
			e.ID = "x"
			w.sign(&e, "a-1")
			return e
		}},
		"an outcome without status": {dropBadOutcome, func(w *world, id string) envelope.Envelope {
			return w.event("a-1", id, &runnerv1.CommandOutcome{})
		}},
		"progress with the outcome's id": {dropBadOutcome, func(w *world, id string) envelope.Envelope {
			e := w.event("a-1", id, &runnerv1.CommandProgress{})
			e.ID = envelope.OutcomeID(id)
			w.sign(&e, "a-1")
			return e
		}},
		"a command as event": {dropUnknownType, func(w *world, id string) envelope.Envelope {
			return w.event("a-1", id, &runnerv1.StackRemove{Stack: "shop"})
		}},
		"an unknown type": {dropUnknownType, func(w *world, id string) envelope.Envelope {
			e := w.event("a-1", id, succeeded())
			e.Type = "axion.runner.v1.Nonsense"
			w.sign(&e, "a-1")
			return e
		}},
		"unreadable data": {dropUnreadable, func(w *world, id string) envelope.Envelope {
			e := w.event("a-1", id, succeeded())
			e.Data = []byte{0xff, 0xff}
			w.sign(&e, "a-1")
			return e
		}},
		"no envelope": {dropUnreadable, func(w *world, id string) envelope.Envelope {
			e := w.event("a-1", id, succeeded())
			e.ID = ""
			return e
		}},
		"too large": {dropUnreadable, func(w *world, id string) envelope.Envelope {
			return w.event("a-1", id, &runnerv1.CommandOutcome{Status: 1, Warnings: []string{string(make([]byte, 20_000))}})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Config{MaxEventBytes: 10_000})
			d, _ := w.start()
			c := w.submit(time.Hour)
			// The forged one first: if it were believed it would win over the honest one.
			w.publish(tc.forge(w, c.ID), w.event("a-2", c.ID, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK}))
			w.eventually("the honest outcome closes the command", w.closed(c.ID))
			got, err := w.ledger.Command(t.Context(), c.ID)
			if err != nil || got.Outcome != runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK {
				t.Errorf("%+v, %v", got, err)
			}
			events, err := w.ledger.Events(t.Context(), ledger.Filter{Limit: 10})
			if err != nil || len(events) != 1 || events[0].AgentID != "a-2" || events[0].ClusterID != "prod" {
				t.Errorf("%+v, %v", events, err)
			}
			if n := d.Dropped()[tc.reason]; n != 1 || len(d.Dropped()) != 1 {
				t.Errorf("dropped %v, want one %s", d.Dropped(), tc.reason)
			}
		})
	}
}

func TestRestartNeitherLosesNorDoubles(t *testing.T) {
	w := newWorld(t, Config{})
	_, stop := w.start()
	c := w.submit(time.Hour)
	w.receive(1)
	count := func() int {
		events, err := w.ledger.Events(t.Context(), ledger.Filter{Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		return len(events)
	}
	w.publish(w.event("a-1", c.ID, &runnerv1.CommandReceived{Attempt: 1}))
	w.eventually("the first event is stored", func() bool { return count() == 1 })
	stop()
	w.publish(w.event("a-1", c.ID, &runnerv1.CommandProgress{Sequence: 1}), w.event("a-1", c.ID, succeeded()))
	w.start()
	w.eventually("what came meanwhile closes the command", w.closed(c.ID))
	events, err := w.ledger.Events(t.Context(), ledger.Filter{CommandID: c.ID, Limit: 100})
	if err != nil || len(events) != 3 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	for _, e := range events {
		if e.Duplicates != 0 {
			t.Errorf("event %s was read twice", e.ID)
		}
	}
	if got, _ := w.ledger.Command(t.Context(), c.ID); got.Sends != 1 {
		t.Errorf("%d sends: the second start had no reason to send again", got.Sends)
	}
}

func TestExpiresAtTheDeadline(t *testing.T) {
	w := newWorld(t, Config{Grace: time.Millisecond})
	w.start()
	c := w.submit(100 * time.Millisecond)
	w.eventually("the command is closed", w.closed(c.ID))
	got, err := w.ledger.Command(t.Context(), c.ID)
	if err != nil || got.Outcome != runnerv1.OutcomeStatus_OUTCOME_STATUS_EXPIRED || got.ClosedAt.Before(got.Deadline) {
		t.Errorf("%+v, %v", got, err)
	}
	events, err := w.ledger.Events(t.Context(), ledger.Filter{CommandID: c.ID, Limit: 10})
	if err != nil || len(events) != 1 || events[0].AgentID != "" {
		t.Fatalf("%+v, %v", events, err)
	}
	var out runnerv1.CommandOutcome
	if err := proto.Unmarshal(events[0].Data, &out); err != nil {
		t.Fatal(err)
	}
	if out.GetFailure().GetCode() != "expired" || out.GetFailure().GetClass() != runnerv1.FailureClass_FAILURE_CLASS_DEADLINE || out.GetGeneration() != 1 {
		t.Errorf("%v", &out)
	}
}

func TestARestartIsSentAgainAndExpires(t *testing.T) {
	w := newWorld(t, Config{ResendFirst: 50 * time.Millisecond, ResendMax: 50 * time.Millisecond, Grace: time.Millisecond})
	w.start()
	c, _, err := w.ledger.Submit(t.Context(), ledger.NewCommand{
		ClusterID: "prod", Topic: clusterTopic, TimeToLive: time.Second, Message: &runnerv1.ServiceRestart{Service: "shop_web"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range w.receive(2) {
		var headers []envelope.Header
		for _, h := range r.Headers {
			headers = append(headers, envelope.Header{Key: h.Key, Value: h.Value})
		}
		e, err := envelope.Parse(headers, r.Value, 0)
		if err != nil || e.ID != c.ID || e.Generation != 0 || !e.Deadline.Equal(c.Deadline) || string(r.Key) != "shop_web" {
			t.Errorf("%+v with key %s, %v", e, r.Key, err)
		}
	}
	w.eventually("the command is closed", w.closed(c.ID))
	events, err := w.ledger.Events(t.Context(), ledger.Filter{CommandID: c.ID, Limit: 10})
	if err != nil || len(events) != 1 {
		t.Fatalf("%+v, %v", events, err)
	}
	var out runnerv1.CommandOutcome
	if err := proto.Unmarshal(events[0].Data, &out); err != nil {
		t.Fatal(err)
	}
	if out.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_EXPIRED || out.GetStack() != "" || out.GetGeneration() != 0 || out.GetType() != "axion.runner.v1.ServiceRestart" {
		t.Errorf("%v", &out)
	}
}

func TestAnOutcomeThatWaitsInTheTopicWinsOverExpiry(t *testing.T) {
	w := newWorld(t, Config{Grace: time.Millisecond})
	c := w.submit(time.Millisecond)
	w.publish(w.event("a-1", c.ID, succeeded())) // the plane is down: the deadline is over and the outcome waits
	w.eventually("the deadline is over", func() bool { return time.Now().After(c.Deadline.Add(10 * time.Millisecond)) })
	w.start()
	w.eventually("the command is closed", w.closed(c.ID))
	if got, _ := w.ledger.Command(t.Context(), c.ID); got.Outcome != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("outcome %v", got.Outcome)
	}
}

func TestAMissingTopicDoesNotHoldUpOthers(t *testing.T) {
	w := newWorld(t, Config{Retry: 50 * time.Millisecond, ResendFirst: time.Second})
	gone, _, err := w.ledger.Submit(t.Context(), ledger.NewCommand{
		ClusterID: "prod", AgentID: "a-gone", Topic: "runner.commands.a-gone", TimeToLive: time.Hour, Message: &runnerv1.StackDeploy{Stack: "shop"},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := w.submit(time.Hour)
	w.start()
	r := w.receive(1)[0]
	if c.Topic != r.Topic {
		t.Errorf("topic %s", r.Topic)
	}
	// The topic comes, and so does the command.
	if _, err := kadm.NewClient(w.client).CreateTopics(t.Context(), 1, 1, nil, "runner.commands.a-gone"); err != nil {
		t.Fatal(err)
	}
	w.eventually("the command for the new topic is sent", func() bool {
		got, err := w.ledger.Command(t.Context(), gone.ID)
		if err != nil {
			t.Fatal(err)
		}
		return got.Sends > 0
	})
}

func TestATopicMadeAnewIsReadFromItsBeginning(t *testing.T) {
	w := newWorld(t, Config{})
	_, stop := w.start()
	first, second := w.submit(time.Hour), w.submit(time.Hour)
	w.publish(w.event("a-1", first.ID, &runnerv1.CommandReceived{}), w.event("a-1", first.ID, succeeded()))
	w.eventually("the first command is closed", w.closed(first.ID))
	stop()
	admin := kadm.NewClient(w.client)
	if _, err := admin.DeleteTopics(t.Context(), eventsTopic); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CreateTopics(t.Context(), 1, 1, nil, eventsTopic); err != nil {
		t.Fatal(err)
	}
	w.client.PurgeTopicsFromProducing(eventsTopic) // an agent's client learns of the new topic
	w.publish(w.event("a-1", second.ID, succeeded()), w.event("a-1", second.ID, &runnerv1.CommandReceived{}), w.event("a-1", second.ID, &runnerv1.CommandReceived{}))
	w.start()
	w.eventually("the event at offset 0 of the new topic counts", w.closed(second.ID))
}

// answering runs an agent until the test ends. It carries nothing out: it answers each command with the same outcome, as one does that has recorded it.
func (w *world) answering() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			for _, r := range w.client.PollFetches(ctx).Records() {
				for _, h := range r.Headers {
					if h.Key != "ce_id" {
						continue
					}
					if err := w.client.ProduceSync(ctx, asRecord(w.event("a-1", string(h.Value), succeeded()))).FirstErr(); err != nil && ctx.Err() == nil {
						w.t.Error(err)
					}
				}
			}
		}
	})
	w.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

func (w *world) remake(topic string) {
	w.t.Helper()
	admin := kadm.NewClient(w.client)
	if _, err := admin.DeleteTopics(w.t.Context(), topic); err != nil {
		w.t.Fatal(err)
	}
	if _, err := admin.CreateTopics(w.t.Context(), 1, 1, nil, topic); err != nil {
		w.t.Fatal(err)
	}
	w.client.PurgeTopicsFromClient(topic)
}

// countingLedger counts how often the ledger was told to forget.
type countingLedger struct {
	*ledger.Ledger
	prunes atomic.Int64
}

func (l *countingLedger) Prune(ctx context.Context) error {
	l.prunes.Add(1)
	return l.Ledger.Prune(ctx)
}

// TestAFloodOfOneAgentLeavesTheOthers lets one agent tell more than it may, also in another's name, between what the others have to say.
func TestAFloodOfOneAgentLeavesTheOthers(t *testing.T) {
	const burst, flood = 50, 400
	w := newWorld(t, Config{AgentRate: 1, AgentBurst: burst})
	frozen := time.Now() // no budget fills up again
	w.now = func() time.Time { return frozen }
	w.cfg.PruneInterval = time.Hour
	d, _ := w.start()
	mine, theirs, begun := w.submit(time.Hour), w.submit(time.Hour), w.submit(time.Hour)
	progress := func(agentID string, n int) (es []envelope.Envelope) {
		for i := range n {
			es = append(es, w.event(agentID, mine.ID, &runnerv1.CommandProgress{Sequence: uint64(i + 1)}))
		}
		return es
	}
	w.publish(progress("a-1", flood)...)
	forged := progress("a-2", flood)
	for i := range forged {
		w.sign(&forged[i], "a-1") // in the name of a-2
	}
	w.publish(forged...)
	w.publish(progress("a-2", burst)...)
	w.publish(w.event("a-1", begun.ID, &runnerv1.CommandReceived{}), w.event("a-1", mine.ID, succeeded()), w.event("a-2", theirs.ID, succeeded()))
	w.eventually("what the plane waits for is kept", func() bool { return w.closed(mine.ID)() && w.closed(theirs.ID)() })
	if c, err := w.ledger.Command(t.Context(), begun.ID); err != nil || !c.Begun {
		t.Errorf("%+v, %v: that it was begun is what its deadline hangs on", c, err)
	}
	kept := map[string]int{}
	for after := uint64(0); ; {
		events, err := w.ledger.Events(t.Context(), ledger.Filter{After: after, Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		if len(events) == 0 {
			break
		}
		for _, e := range events {
			after = e.Position
			kept[e.AgentID+" "+e.Type[len(envelope.TypePrefix):]]++
		}
	}
	if kept["a-1 CommandProgress"] != burst || kept["a-2 CommandProgress"] != burst {
		t.Errorf("kept %v, each may tell %d", kept, burst)
	}
	if got := d.Dropped(); got[dropTooMany] != flood-burst || got[dropBadSignature] != flood {
		t.Errorf("dropped %v", got)
	}
}

func TestAFloodIsForgottenBeforeItFillsTheStore(t *testing.T) {
	for name, cfg := range map[string]Config{"many": {PruneEvents: 100}, "large": {PruneBytes: 100 << 10}} {
		t.Run(name, func(t *testing.T) {
			cfg.PruneInterval = time.Hour
			w := newWorld(t, cfg)
			counting := &countingLedger{Ledger: w.ledger}
			w.counting = counting
			w.start()
			w.eventually("the ledger forgets at the start", func() bool { return counting.prunes.Load() == 1 })
			c := w.submit(time.Hour)
			for i := range 250 {
				note := &runnerv1.Notice{Text: strings.Repeat("x", 1<<10)}
				w.publish(w.event("a-1", c.ID, &runnerv1.CommandProgress{Sequence: uint64(i + 1), Step: &runnerv1.CommandProgress_Notice{Notice: note}}))
			}
			w.publish(w.event("a-1", c.ID, succeeded()))
			w.eventually("all are read", w.closed(c.ID))
			if n := counting.prunes.Load(); n < 2 || n > 4 {
				t.Errorf("it was told to forget %d times; 250 events of a KiB call for one or two times more than at the start", n)
			}
		})
	}
}

func TestBudgetsFillUpAndAreForgotten(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	b := newBudgets(10, 20, func() time.Time { return now })
	for range 20 {
		b.take("a-1")
	}
	if b.left("a-1") || !b.left("a-2") {
		t.Error("a budget is empty when it is used up, another's is not")
	}
	now = now.Add(time.Second)
	for i := range 10 {
		if !b.left("a-1") {
			t.Fatalf("a second later only %d more", i)
		}
		b.take("a-1")
	}
	if b.left("a-1") {
		t.Error("more than the rate")
	}
	for i := range maxBudgets {
		b.take(fmt.Sprintf("a-x%d", i))
	}
	now = now.Add(time.Hour)
	b.take("a-new")
	if n := len(b.agents); n != 1 {
		t.Errorf("%d budgets are remembered", n)
	}
	now = now.Add(-time.Hour) // a clock that is set back takes nothing away
	if !b.left("a-new") {
		t.Error("set back")
	}
}

// TestEveryCommandEndsWhateverTheTopicsLose loses a command, an outcome that was not read yet, or both topics, and expects an outcome of each command from an agent
// that answers what reaches it, and that the next command is taken.
func TestEveryCommandEndsWhateverTheTopicsLose(t *testing.T) {
	for name, lose := range map[string]func(w *world, c ledger.Command){
		"the commands' topic is made anew": func(w *world, _ ledger.Command) { w.remake(clusterTopic) },
		"both topics are made anew": func(w *world, _ ledger.Command) {
			w.remake(clusterTopic)
			w.remake(eventsTopic)
		},
		"the outcome is too old before the plane comes back": func(w *world, c ledger.Command) {
			w.publish(w.event("a-1", c.ID, succeeded()))
			admin := kadm.NewClient(w.client)
			ends, err := admin.ListEndOffsets(w.t.Context(), eventsTopic, clusterTopic)
			if err != nil {
				w.t.Fatal(err)
			}
			deleted, err := admin.DeleteRecords(w.t.Context(), ends.Offsets())
			if err = errors.Join(err, deleted.Error()); err != nil {
				w.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Config{ResendFirst: 50 * time.Millisecond, ResendMax: 200 * time.Millisecond, Retry: 50 * time.Millisecond})
			_, stop := w.start()
			earlier := w.submit(time.Hour)
			w.receive(1)
			w.publish(w.event("a-1", earlier.ID, succeeded())) // the plane has read something of the topic that goes
			w.eventually("the earlier command is closed", w.closed(earlier.ID))
			c := w.submit(time.Hour)
			w.eventually("the command is sent", func() bool {
				got, err := w.ledger.Command(t.Context(), c.ID)
				return err == nil && got.Sends > 0
			})
			stop()
			lose(w, c)
			w.client.AddConsumeTopics(clusterTopic)
			w.answering()
			w.start()
			w.eventually("the command has its outcome", w.closed(c.ID))
			next := w.submit(time.Hour)
			if next.Generation != c.Generation+1 {
				t.Errorf("generation %d after %d", next.Generation, c.Generation)
			}
			w.eventually("so has the next one", w.closed(next.ID))
			for _, id := range []string{earlier.ID, c.ID, next.ID} {
				if got, err := w.ledger.Command(t.Context(), id); err != nil || got.Outcome != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
					t.Errorf("%+v, %v", got, err)
				}
			}
		})
	}
}

func TestABrokenRegistryLosesNoEvent(t *testing.T) {
	w := newWorld(t, Config{})
	w.signers.mu.Lock()
	w.signers.err = errors.New("the database is away")
	w.signers.mu.Unlock()
	w.start()
	c := w.submit(time.Hour)
	w.publish(w.event("a-1", c.ID, succeeded()))
	w.receive(1)
	w.signers.mu.Lock()
	w.signers.err = nil
	w.signers.mu.Unlock()
	w.eventually("the event is read again", w.closed(c.ID))
}
