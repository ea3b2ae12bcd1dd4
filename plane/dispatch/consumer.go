package dispatch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/axion/runner-agent/plane/ledger"
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

// consume reads events, one session after the other: whatever goes wrong ends the session, and the next one begins where the ledger says.
func (d *Dispatch) consume(ctx context.Context) error {
	wait := reopenFirst
	for {
		progress, err := d.session(ctx)
		d.current.Store(false)
		if ctx.Err() != nil {
			return nil
		}
		d.deps.Log.Warn("reading events was interrupted", "topic", d.cfg.EventsTopic, "error", err, "again_in", wait)
		if !sleep(ctx, wait) {
			return nil
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
}

// session reads until something goes wrong. It reports whether it has stored anything.
func (d *Dispatch) session(ctx context.Context) (progress bool, err error) {
	cl, err := d.client(kgo.FetchMaxBytes(fetchBytes), kgo.FetchMaxPartitionBytes(fetchBytes), kgo.FetchMaxWait(fetchWait),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return false, err
	}
	defer cl.Close()
	s, err := d.open(ctx, cl)
	if err != nil {
		return false, err
	}
	offsets := make(map[int32]kgo.Offset, len(s.next))
	for partition, next := range s.next {
		offsets[partition] = kgo.NewOffset().At(next)
	}
	cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{d.cfg.EventsTopic: offsets})
	for {
		d.noteCurrent(s)
		records, err := d.poll(ctx, cl)
		if err != nil {
			return progress, err
		}
		if len(records) == 0 {
			if err := d.checkTopic(ctx, cl, s); err != nil {
				return progress, err
			}
			continue
		}
		if err := d.store(ctx, s, records); err != nil {
			return progress, err
		}
		progress = true
	}
}

// open finds the topic and where to begin: where the ledger left off, or at the topic's beginning if that is later or the topic is another one.
func (d *Dispatch) open(ctx context.Context, cl *kgo.Client) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	topic := d.cfg.EventsTopic
	admin := kadm.NewClient(cl)
	id, err := topicID(ctx, admin, topic)
	if err != nil {
		return nil, err
	}
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err = errors.Join(err, starts.Error()); err != nil {
		return nil, fmt.Errorf("ask where topic %s begins: %w", topic, err)
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err = errors.Join(err, ends.Error()); err != nil {
		return nil, fmt.Errorf("ask where topic %s ends: %w", topic, err)
	}
	known, err := d.deps.Ledger.Offsets(ctx, topic, id)
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

func (d *Dispatch) checkTopic(ctx context.Context, cl *kgo.Client, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	id, err := topicID(ctx, kadm.NewClient(cl), d.cfg.EventsTopic)
	if err == nil && id != s.topicID {
		err = errTopicReplaced
	}
	return err
}

// noteCurrent wakes the sender when everything is stored that the topic held when it was opened.
func (d *Dispatch) noteCurrent(s *session) {
	if d.current.Load() {
		return
	}
	for partition, end := range s.end {
		if s.next[partition] < end {
			return
		}
	}
	d.current.Store(true)
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// poll returns the next messages; none if there were none for idleCheck.
func (d *Dispatch) poll(ctx context.Context, cl *kgo.Client) ([]*kgo.Record, error) {
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
			d.deps.Log.Error("the topic of events has lost messages", "error", lost)
		default:
			return nil, fmt.Errorf("read topic %s, partition %d: %w", e.Topic, e.Partition, e.Err)
		}
	}
	return fetches.Records(), nil
}

// store verifies messages and keeps what is believed, together with how far the topic was read.
func (d *Dispatch) store(ctx context.Context, s *session, records []*kgo.Record) error {
	var events []ledger.NewEvent
	reached := map[int32]int64{}
	for _, r := range records {
		e, reason, err := d.verify(ctx, r)
		if err != nil {
			return fmt.Errorf("verify event %s: %w", e.Envelope.ID, err)
		}
		reached[r.Partition] = r.Offset + 1
		if reason != "" {
			d.drops.add(reason, "source", e.Envelope.Source, "type", e.Envelope.Type, "event_id", e.Envelope.ID, "partition", r.Partition, "offset", r.Offset)
			continue
		}
		events = append(events, e)
	}
	var offsets []ledger.Offset
	for partition, next := range reached {
		offsets = append(offsets, ledger.Offset{Topic: d.cfg.EventsTopic, TopicID: s.topicID, Partition: partition, Next: next})
	}
	counts, err := d.deps.Ledger.Store(ctx, events, offsets)
	if err != nil {
		return err
	}
	for partition, next := range reached {
		s.next[partition] = next
	}
	if counts.Conflicts > 0 {
		d.deps.Log.Error("events came again and said something else; the first ones stand", "conflicts", counts.Conflicts)
	}
	return nil
}
