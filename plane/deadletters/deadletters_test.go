package deadletters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/axion/runner-agent/plane/store"
	"github.com/axion/runner-agent/proto/deadletter"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	dlq          = "runner.commands.dlq"
	clusterTopic = "runner.commands.prod"
	agentTopic   = "runner.commands.a-1"
	foreignTopic = "runner.commands.test"
	// patience is how long a test waits for what must happen.
	patience = 20 * time.Second
)

// directory is a registry of two clusters with an agent each.
type directory struct {
	mu  sync.Mutex
	err error
}

func (d *directory) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

func (d *directory) Owner(_ context.Context, topic string) (string, string, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch topic {
	case clusterTopic:
		return "prod", "", true, d.err
	case foreignTopic:
		return "test", "", true, d.err
	case agentTopic:
		return "prod", "a-1", true, d.err
	}
	return "", "", false, d.err
}

func (d *directory) Cluster(_ context.Context, agentID string) (string, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	clusterID, ok := map[string]string{"a-1": "prod", "a-2": "prod", "a-9": "test"}[agentID]
	return clusterID, ok, d.err
}

// clock stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// world is a broker and a database.
type world struct {
	t         *testing.T
	broker    *kfake.Cluster
	client    *kgo.Client // of an agent
	db        *store.DB
	directory *directory
	cfg       Config
	clock     *clock
	letters   *Letters
}

func newWorld(t *testing.T, cfg Config) *world {
	t.Helper()
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(1), kfake.SeedTopics(1, dlq, clusterTopic, agentTopic, foreignTopic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "plane.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.ListenAddrs()...), kgo.ProducerBatchMaxBytes(16<<20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	cfg.Topic = dlq
	w := &world{t: t, broker: broker, client: client, db: db, directory: &directory{}, cfg: cfg, clock: &clock{now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}}
	w.letters, err = New(cfg, Deps{
		DB: db, Directory: w.directory, Log: slog.New(slog.DiscardHandler), Now: w.clock.Now,
		ClientOpts: func() []kgo.Opt { return []kgo.Opt{kgo.SeedBrokers(broker.ListenAddrs()...)} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// run reads the topic until stop is called or the test ends.
func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.letters.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

func headersOf(id string) []envelope.Header {
	return []envelope.Header{
		{Key: "ce_specversion", Value: []byte("1.0")},
		{Key: "ce_id", Value: []byte(id)},
		{Key: "ce_type", Value: []byte("axion.runner.v1.StackDeploy")},
		{Key: "trace\xff", Value: []byte{0, 1, 0xff}},
	}
}

func notice(agentID, topic string, at int64) deadletter.Notice {
	return deadletter.Notice{AgentID: agentID, Topic: topic, Offset: at, Class: "invalid", Code: "bad_envelope", Reason: "header ce_source is missing"}
}

// give writes a dead letter as an agent does.
func (w *world) give(n deadletter.Notice, id, value string) {
	w.t.Helper()
	w.write(&kgo.Record{Topic: dlq, Key: []byte("shop"), Value: []byte(value)}, n.Headers(headersOf(id)))
}

func (w *world) write(r *kgo.Record, headers []envelope.Header) {
	w.t.Helper()
	for _, h := range headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	if err := w.client.ProduceSync(w.t.Context(), r).FirstErr(); err != nil {
		w.t.Fatal(err)
	}
}

// wait returns the letters when there are n of them.
func (w *world) wait(n int, f Filter) []Letter {
	w.t.Helper()
	var letters []Letter
	w.eventually(fmt.Sprintf("%d letters", n), func() bool {
		var err error
		if letters, err = w.letters.List(w.t.Context(), f); err != nil {
			w.t.Fatal(err)
		}
		return len(letters) == n
	})
	return letters
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("in vain: %s", what)
		}
	}
}

// read returns all messages of a topic, of which there must be n.
func (w *world) read(topic string, n int) []*kgo.Record {
	w.t.Helper()
	ends, err := kadm.NewClient(w.client).ListEndOffsets(w.t.Context(), topic)
	if err != nil {
		w.t.Fatal(err)
	}
	if end, _ := ends.Lookup(topic, 0); end.Offset != int64(n) {
		w.t.Fatalf("%d messages in %s, want %d", end.Offset, topic, n)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.broker.ListenAddrs()...), kgo.ConsumeTopics(topic))
	if err != nil {
		w.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	var out []*kgo.Record
	for len(out) < n && ctx.Err() == nil {
		out = append(out, cl.PollFetches(ctx).Records()...)
	}
	return out
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if f := failure.Of(err); f == nil || f.Code != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

func TestALetterIsKeptAsItWas(t *testing.T) {
	w := newWorld(t, Config{})
	w.run()
	w.give(notice("a-1", clusterTopic, 7), "c-1", "hunter2\x00")
	w.write(&kgo.Record{Topic: dlq}, nil)
	list := w.wait(2, Filter{})
	if list[0].Key != nil || list[0].Value != nil || list[1].Headers != nil {
		t.Error("a list holds what letters hold")
	}
	got, err := w.letters.Get(t.Context(), list[1].ID)
	want := Letter{
		ID: 1, AgentID: "a-1", ClusterID: "prod", Verified: true, Topic: clusterTopic, Offset: 7, Type: "axion.runner.v1.StackDeploy", CommandID: "c-1",
		Class: "invalid", Code: "bad_envelope", Reason: "header ce_source is missing", Attempts: 1, FirstAt: w.clock.Now(), LastAt: w.clock.Now(), ValueSize: 8,
		Key: []byte("shop"), Value: []byte("hunter2\x00"), Headers: headersOf("c-1"),
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	bare, err := w.letters.Get(t.Context(), list[0].ID)
	if err != nil || bare.Key != nil || bare.Value != nil || len(bare.Headers) != 0 || bare.Verified || bare.AgentID != "" {
		t.Errorf("got %+v, %v", bare, err)
	}
	_, err = w.letters.Get(t.Context(), 99)
	wantCode(t, err, "no_such_letter")
}

func TestClaimsAreCheckedForSense(t *testing.T) {
	for name, tc := range map[string]struct {
		agent, topic string
		cluster      string
		verified     bool
	}{
		"own topic":                   {"a-1", agentTopic, "prod", true},
		"own cluster's topic":         {"a-1", clusterTopic, "prod", true},
		"another agent's topic":       {"a-2", agentTopic, "prod", false},
		"another cluster's topic":     {"a-9", clusterTopic, "test", false},
		"no command topic":            {"a-1", "runner.events", "prod", false},
		"an agent that nobody knows":  {"a-0", clusterTopic, "", false},
		"no agent":                    {"", clusterTopic, "", false},
		"an agent with a huge name":   {strings.Repeat("a", 1<<16), clusterTopic, "", false},
		"a topic with a huge name":    {"a-1", strings.Repeat("a", 1<<16), "prod", false},
		"names that cannot be looked": {"a-\x1b[2J", "\xff\xff", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Config{})
			w.run()
			w.give(notice(tc.agent, tc.topic, 1), "c", "x")
			got := w.wait(1, Filter{})[0]
			if got.ClusterID != tc.cluster || got.Verified != tc.verified || len(got.AgentID) > maxID || len(got.Topic) > maxTopic || strings.Contains(got.AgentID, "\x1b") {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestCopiesAreOneLetter(t *testing.T) {
	w := newWorld(t, Config{})
	w.run()
	w.give(notice("a-1", clusterTopic, 7), "c-1", "x")
	first := w.wait(1, Filter{})[0]
	w.clock.forward(time.Hour)
	again := notice("a-2", clusterTopic, 7)
	again.Code = "unknown_type"
	w.give(again, "c-1", "x")
	w.give(notice("a-9", clusterTopic, 7), "c-1", "x") // not verified: it may not write into the other's
	w.give(notice("a-1", clusterTopic, 8), "c-1", "x") // another message
	w.give(notice("a-1", clusterTopic, 7), "c-1", "y") // of a topic that was made anew
	list := w.wait(4, Filter{})
	got := list[3]
	if got.ID != first.ID || got.Attempts != 2 || got.AgentID != "a-2" || got.Code != "unknown_type" || !got.FirstAt.Equal(first.FirstAt) || !got.LastAt.Equal(w.clock.Now()) {
		t.Errorf("got %+v", got)
	}
}

func TestPages(t *testing.T) {
	w := newWorld(t, Config{})
	w.run()
	for i := range 5 {
		w.give(notice("a-1", agentTopic, int64(i)), "c", "x")
	}
	w.give(notice("a-9", foreignTopic, 0), "c", "x")
	w.wait(6, Filter{})
	for name, tc := range map[string]struct {
		filter Filter
		want   []uint64
	}{
		"newest first": {Filter{Limit: 2}, []uint64{6, 5}},
		"next page":    {Filter{Before: 5, Limit: 2}, []uint64{4, 3}},
		"of a cluster": {Filter{ClusterID: "test"}, []uint64{6}},
		"of an agent":  {Filter{AgentID: "a-1", Limit: 3}, []uint64{5, 4, 3}},
		"of both":      {Filter{AgentID: "a-1", ClusterID: "test"}, nil},
		"too many":     {Filter{Limit: 1 << 30}, []uint64{6, 5, 4, 3, 2, 1}},
	} {
		var got []uint64
		list, err := w.letters.List(t.Context(), tc.filter)
		for _, letter := range list {
			got = append(got, letter.ID)
		}
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, tc.want)
		}
	}
}

func TestReplayOnce(t *testing.T) {
	w := newWorld(t, Config{})
	w.run()
	w.give(notice("a-1", agentTopic, 7), "c-1", "the value")
	id := w.wait(1, Filter{})[0].ID
	place, err := w.letters.Replay(t.Context(), id, false)
	if err != nil || place != (Place{Topic: agentTopic}) {
		t.Fatalf("%+v, %v", place, err)
	}
	_, err = w.letters.Replay(t.Context(), id, true)
	wantCode(t, err, "already_replayed")
	r := w.read(agentTopic, 1)[0]
	var headers []envelope.Header
	for _, h := range r.Headers {
		headers = append(headers, envelope.Header{Key: h.Key, Value: h.Value})
	}
	if string(r.Key) != "shop" || string(r.Value) != "the value" || !reflect.DeepEqual(headers, headersOf("c-1")) {
		t.Errorf("got %q %q %v", r.Key, r.Value, headers)
	}
	if got, err := w.letters.Get(t.Context(), id); err != nil || !got.ReplayedAt.Equal(w.clock.Now()) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestReplayedAtOnceIsReplayedOnce(t *testing.T) {
	w := newWorld(t, Config{})
	w.run()
	w.give(notice("a-1", agentTopic, 7), "c-1", "x")
	id := w.wait(1, Filter{})[0].ID
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			_, err := w.letters.Replay(t.Context(), id, false)
			errs <- err
		}()
	}
	done := 0
	for range cap(errs) {
		if err := <-errs; err == nil {
			done++
		} else {
			wantCode(t, err, "already_replayed")
		}
	}
	if done != 1 {
		t.Errorf("replayed %d times", done)
	}
	w.read(agentTopic, 1)
}

func TestReplayRefuses(t *testing.T) {
	w := newWorld(t, Config{})
	w.run()
	w.give(notice("a-1", dlq, 1), "c", "x")
	w.give(notice("a-1", "runner.events", 1), "c", "x")
	w.give(notice("a-9", clusterTopic, 1), "c", "x")
	w.wait(3, Filter{})
	for id, code := range map[uint64]string{1: "no_command_topic", 2: "no_command_topic", 3: "unverified_letter", 4: "no_such_letter"} {
		_, err := w.letters.Replay(t.Context(), id, false)
		wantCode(t, err, code)
	}
	_, err := w.letters.Replay(t.Context(), 2, true)
	wantCode(t, err, "no_command_topic")
	w.read(clusterTopic, 0)
	if place, err := w.letters.Replay(t.Context(), 3, true); err != nil || place.Topic != clusterTopic {
		t.Errorf("allowed: %+v, %v", place, err)
	}
}

func TestAReplayThatKafkaRefusesCanBeRepeated(t *testing.T) {
	w := newWorld(t, Config{})
	w.run()
	w.give(notice("a-1", agentTopic, 7), "c-1", "x")
	id := w.wait(1, Filter{})[0].ID
	w.broker.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: agentTopic, Err: kerr.MessageTooLarge, Count: 1})
	_, err := w.letters.Replay(t.Context(), id, false)
	wantCode(t, err, "kafka_unavailable")
	if _, err := w.letters.Replay(t.Context(), id, false); err != nil {
		t.Error(err)
	}
}

func TestDropErases(t *testing.T) {
	w := newWorld(t, Config{})
	w.run()
	w.give(notice("a-1", agentTopic, 7), "c-1", "x")
	id := w.wait(1, Filter{})[0].ID
	if err := w.letters.Drop(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	wantCode(t, w.letters.Drop(t.Context(), id), "no_such_letter")
	w.give(notice("a-1", agentTopic, 8), "c-2", "x")
	if got := w.wait(1, Filter{})[0].ID; got == id {
		t.Error("an id was used twice")
	}
}

func TestBounds(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  Config
		want []uint64
	}{
		"count": {Config{MaxLetters: 2}, []uint64{5, 4}},
		"bytes": {Config{MaxBytes: 3600}, []uint64{5, 4, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tc.cfg)
			w.run()
			for i := range 5 {
				w.give(notice("a-1", agentTopic, int64(i)), "c", strings.Repeat("x", 900))
			}
			w.eventually("the last is there", func() bool { _, err := w.letters.Get(t.Context(), 5); return err == nil })
			var got []uint64
			list, err := w.letters.List(t.Context(), Filter{})
			for _, letter := range list {
				got = append(got, letter.ID)
			}
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	t.Run("age", func(t *testing.T) {
		w := newWorld(t, Config{Age: time.Hour})
		w.run()
		w.give(notice("a-1", agentTopic, 1), "c", "x")
		w.wait(1, Filter{})
		w.clock.forward(59 * time.Minute)
		w.give(notice("a-1", agentTopic, 2), "c", "x")
		w.wait(2, Filter{})
		w.clock.forward(2 * time.Minute)
		if err := w.letters.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := w.wait(1, Filter{})[0].Offset; got != 2 {
			t.Errorf("offset %d was kept", got)
		}
	})
}

func TestRestartNeitherLosesNorDoubles(t *testing.T) {
	w := newWorld(t, Config{})
	stop := w.run()
	w.give(notice("a-1", agentTopic, 1), "c", "x")
	w.wait(1, Filter{})
	stop()
	w.give(notice("a-1", agentTopic, 2), "c", "x")
	w.run()
	for _, letter := range w.wait(2, Filter{}) {
		if letter.Attempts != 1 {
			t.Errorf("letter %d was read %d times", letter.ID, letter.Attempts)
		}
	}
}

func TestABrokenRegistryLosesNoLetter(t *testing.T) {
	w := newWorld(t, Config{})
	w.directory.fail(errors.New("the database is away"))
	w.run()
	w.give(notice("a-1", agentTopic, 1), "c", "x")
	w.directory.fail(nil)
	w.wait(1, Filter{})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{Topic: dlq}, Deps{}); err == nil {
		t.Error("letters without a database")
	}
	w := newWorld(t, Config{})
	if _, err := New(Config{}, w.letters.deps); err == nil {
		t.Error("letters without a topic")
	}
}

func FuzzClean(f *testing.F) {
	f.Add("plain", 3)
	f.Add("\xff\xff\xff", 4)
	f.Fuzz(func(t *testing.T, s string, n int) {
		n = min(max(n, 0), 100)
		if got := clean(s, n); len(got) > n || strings.ContainsAny(got, "\x00\n\x1b") {
			t.Errorf("got %q", got)
		}
	})
}
