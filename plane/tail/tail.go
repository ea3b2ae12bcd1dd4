// Package tail reads a topic to its end and goes on with what comes. It is how the plane reads: whatever goes wrong ends a session with the broker, and the
// next one begins where the database says that the topic was left. What is stored and how far the topic was read is one transaction, which is the business of
// whoever stores.
package tail

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/axion/runner-agent/plane/offset"
)

const (
	// pollRecords is how many messages are stored in one transaction.
	pollRecords = 200
	// idleCheck is how long the topic may be silent before it is looked at: one that was made anew gives neither messages nor errors.
	idleCheck = 30 * time.Second
	// askTimeout bounds the questions about the topic.
	askTimeout = 15 * time.Second
	// reopenFirst and reopenMax bound the wait before the topic is opened again; it doubles. A session that stored something begins anew at the first.
	reopenFirst = 500 * time.Millisecond
	reopenMax   = 15 * time.Second
	// fetchBytes bounds one answer of a broker.
	fetchBytes = 32 << 20
	// fetchWait is how long a broker waits for messages.
	fetchWait = 2 * time.Second
)

// errTopicReplaced ends a session: the topic has another id now.
var errTopicReplaced = errors.New("the topic was made anew")

// Deps are what a Tail needs. All but Current are required.
type Deps struct {
	// ClientOpts returns the options of a Kafka client of the plane: brokers, TLS, SASL.
	ClientOpts func() []kgo.Opt
	// Offsets returns how far the topic with that id was read.
	Offsets func(ctx context.Context, topic, topicID string) ([]offset.Offset, error)
	// Store keeps messages and how far the topic was read with them, in one transaction. After an error the same messages come again.
	Store func(ctx context.Context, records []*kgo.Record, offsets []offset.Offset) error
	// Current is told true when everything is stored that the topic held when it was opened, and false when it is no longer read. May be nil.
	Current func(current bool)
	// Log receives what goes wrong.
	Log *slog.Logger
}

// Tail reads one topic.
type Tail struct {
	topic string
	deps  Deps
}

// New checks what it is given.
func New(topic string, deps Deps) (*Tail, error) {
	if topic == "" || deps.ClientOpts == nil || deps.Offsets == nil || deps.Store == nil || deps.Log == nil {
		return nil, errors.New("tail: topic, ClientOpts, Offsets, Store and Log are required")
	}
	if deps.Current == nil {
		deps.Current = func(bool) {}
	}
	return &Tail{topic: topic, deps: deps}, nil
}

// Run reads until ctx ends; then it returns nil.
func (t *Tail) Run(ctx context.Context) error {
	wait := reopenFirst
	for {
		progress, err := t.session(ctx)
		t.deps.Current(false)
		if ctx.Err() != nil {
			return nil
		}
		t.deps.Log.Warn("reading a topic was interrupted", "topic", t.topic, "error", err, "again_in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		wait = min(2*wait, reopenMax)
		if progress {
			wait = reopenFirst
		}
	}
}

// session is the topic, open for reading.
type session struct {
	topicID string
	next    map[int32]int64 // offset of the next message to store
	end     map[int32]int64 // where the topic ended when it was opened
	current bool            // all before end is stored
}

// session reads until something goes wrong. It reports whether it has stored anything.
func (t *Tail) session(ctx context.Context) (progress bool, err error) {
	cl, err := kgo.NewClient(append(t.deps.ClientOpts(), kgo.FetchMaxBytes(fetchBytes), kgo.FetchMaxPartitionBytes(fetchBytes), kgo.FetchMaxWait(fetchWait),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		return false, fmt.Errorf("make Kafka client: %w", err)
	}
	defer cl.Close()
	s, err := t.open(ctx, cl)
	if err != nil {
		return false, err
	}
	offsets := make(map[int32]kgo.Offset, len(s.next))
	for partition, next := range s.next {
		offsets[partition] = kgo.NewOffset().At(next)
	}
	cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{t.topic: offsets})
	for {
		t.noteCurrent(s)
		records, err := t.poll(ctx, cl)
		if err != nil {
			return progress, err
		}
		if len(records) == 0 {
			if err := t.checkTopic(ctx, cl, s); err != nil {
				return progress, err
			}
			continue
		}
		if err := t.store(ctx, s, records); err != nil {
			return progress, err
		}
		progress = true
	}
}

// open finds the topic and where to begin: where the database left off, or at the topic's beginning if that is later or the topic is another one.
func (t *Tail) open(ctx context.Context, cl *kgo.Client) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	admin := kadm.NewClient(cl)
	id, err := topicID(ctx, admin, t.topic)
	if err != nil {
		return nil, err
	}
	starts, err := admin.ListStartOffsets(ctx, t.topic)
	if err = errors.Join(err, starts.Error()); err != nil {
		return nil, fmt.Errorf("ask where topic %s begins: %w", t.topic, err)
	}
	ends, err := admin.ListEndOffsets(ctx, t.topic)
	if err = errors.Join(err, ends.Error()); err != nil {
		return nil, fmt.Errorf("ask where topic %s ends: %w", t.topic, err)
	}
	known, err := t.deps.Offsets(ctx, t.topic, id)
	if err != nil {
		return nil, err
	}
	s := &session{topicID: id, next: map[int32]int64{}, end: map[int32]int64{}}
	starts.Each(func(o kadm.ListedOffset) { s.next[o.Partition] = o.Offset })
	ends.Each(func(o kadm.ListedOffset) { s.end[o.Partition] = o.Offset })
	for _, o := range known {
		// An offset behind the end is of a log that has lost its tail; what is there now was not read.
		if start, ok := s.next[o.Partition]; ok && o.Next <= s.end[o.Partition] {
			s.next[o.Partition] = max(start, o.Next)
		}
	}
	return s, nil
}

func topicID(ctx context.Context, admin *kadm.Client, topic string) (string, error) {
	topics, err := admin.ListTopics(ctx, topic)
	if err = errors.Join(err, topics[topic].Err); err != nil {
		return "", fmt.Errorf("look for topic %s: %w", topic, err)
	}
	if len(topics[topic].Partitions) == 0 {
		return "", fmt.Errorf("look for topic %s: it does not exist", topic)
	}
	return topics[topic].ID.String(), nil
}

func (t *Tail) checkTopic(ctx context.Context, cl *kgo.Client, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	id, err := topicID(ctx, kadm.NewClient(cl), t.topic)
	if err == nil && id != s.topicID {
		err = errTopicReplaced
	}
	return err
}

// noteCurrent tells once in a session that everything is stored that the topic held when it was opened.
func (t *Tail) noteCurrent(s *session) {
	if s.current {
		return
	}
	for partition, end := range s.end {
		if s.next[partition] < end {
			return
		}
	}
	s.current = true
	t.deps.Current(true)
}

// poll returns the next messages; none if there were none for idleCheck.
func (t *Tail) poll(ctx context.Context, cl *kgo.Client) ([]*kgo.Record, error) {
	quiet, cancel := context.WithTimeout(ctx, idleCheck)
	defer cancel()
	fetches := cl.PollRecords(quiet, pollRecords)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	for _, e := range fetches.Errors() {
		var lost *kgo.ErrDataLoss
		switch {
		case errors.Is(e.Err, context.DeadlineExceeded) && quiet.Err() != nil:
		case errors.As(e.Err, &lost):
			t.deps.Log.Error("a topic has lost messages", "topic", t.topic, "error", lost)
		default:
			return nil, fmt.Errorf("read topic %s, partition %d: %w", e.Topic, e.Partition, e.Err)
		}
	}
	return fetches.Records(), nil
}

// store has messages kept together with how far the topic was read.
func (t *Tail) store(ctx context.Context, s *session, records []*kgo.Record) error {
	reached := map[int32]int64{}
	for _, r := range records {
		reached[r.Partition] = r.Offset + 1
	}
	offsets := make([]offset.Offset, 0, len(reached))
	for partition, next := range reached {
		offsets = append(offsets, offset.Offset{Topic: t.topic, TopicID: s.topicID, Partition: partition, Next: next})
	}
	if err := t.deps.Store(ctx, records, offsets); err != nil {
		return err
	}
	for partition, next := range reached {
		s.next[partition] = next
	}
	return nil
}
