package bus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/semaphore"

	"github.com/axion/runner-agent/internal/backoff"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

const (
	// commitAttempts is how often a commit is tried before the generation is given up; joining again makes a new connection.
	commitAttempts = 3
	commitPause    = 100 * time.Millisecond
	// maxInFlightBytes bounds what the messages of a partition that are not committed hold in memory; 64 of the largest would be three quarters of a gigabyte.
	maxInFlightBytes = 64 << 20
)

// partition is an assigned partition in one generation. Three goroutines share it: fetch hands messages to the handler, commit follows behind and commits
// the highest offset below which all is settled, watch sees that there is progress. The generation ends when one of them returns.
type partition struct {
	*session
	gen *kafka.Generation
	id  int
	// slots holds one token for each message that is not committed.
	slots chan struct{}
	// room is what is left of maxInFlightBytes.
	room *semaphore.Weighted
	// queue holds them in the order of their offsets. It never blocks: it has as much room as there are slots.
	queue chan inFlight
	// head is the oldest message, once it was taken from the queue; it belongs to commit.
	head *inFlight
	// reader is replaced when the offset is lost.
	reader atomic.Pointer[kafka.Reader]
	// waiting is set while the fetch waits for the broker and not for a slot.
	waiting atomic.Bool
	// failedAt is when a fetch last failed, in Unix nanoseconds; 0 if it works.
	failedAt atomic.Int64
}

type inFlight struct {
	offset  int64
	size    int64
	settled <-chan struct{}
}

func (s *session) startPartition(gen *kafka.Generation, a kafka.PartitionAssignment) {
	p := &partition{
		session: s, gen: gen, id: a.ID,
		slots: make(chan struct{}, s.cfg.MaxInFlight), queue: make(chan inFlight, s.cfg.MaxInFlight), room: semaphore.NewWeighted(maxInFlightBytes),
	}
	p.reader.Store(p.newReader(a.Offset))
	s.committers.Add(1)
	gen.Start(p.fetch)
	gen.Start(p.commit)
	gen.Start(p.watch)
}

func (p *partition) newReader(offset int64) *kafka.Reader {
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: p.cfg.Brokers, Dialer: p.dialer, Topic: p.cfg.Topic, Partition: p.id,
		MinBytes: 1, MaxBytes: MaxMessageBytes, MaxWait: p.timing.maxWait, ReadBatchTimeout: p.timing.readBatch, QueueCapacity: 1,
		ReadLagInterval: -1, OffsetOutOfRangeError: true, ErrorLogger: newClientLog(p.log),
	})
	_ = r.SetOffset(offset) // fails only on a closed reader
	return r
}

// closeReader closes a reader in the background: it can take as long as a fetch, and must not hold up the end of the generation.
func (p *partition) closeReader(r *kafka.Reader) {
	p.closers.Go(func() { _ = r.Close() })
}

// fetch hands messages to the handler until the generation or the agent ends. It never waits for a handler, only for a slot and for room.
func (p *partition) fetch(gen context.Context) {
	defer func() { p.closeReader(p.reader.Load()) }()
	ctx, cancel := context.WithCancel(gen)
	defer cancel()
	defer context.AfterFunc(p.agent, cancel)()
	retry := backoff.Backoff{Floor: minRetry, First: 100 * time.Millisecond, Max: 5 * time.Second}
	for ctx.Err() == nil {
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			continue
		}
		m, ok := p.next(ctx, &retry)
		if !ok {
			break
		}
		size := min(int64(len(m.Value)), maxInFlightBytes)
		if p.room.Acquire(ctx, size) != nil {
			break
		}
		message := fromKafka(m)
		message.GroupGeneration = p.gen.ID
		p.queue <- inFlight{m.Offset, size, p.deps.Handler.Handle(p.agent, message)}
	}
	// The agent stops: the last commit needs the generation, so it is not ended from here.
	<-gen.Done()
}

// next fetches one message, however often that fails. It returns false when ctx ends.
func (p *partition) next(ctx context.Context, retry *backoff.Backoff) (kafka.Message, bool) {
	for {
		p.waiting.Store(true)
		m, err := p.reader.Load().FetchMessage(ctx)
		p.waiting.Store(false)
		if ctx.Err() != nil {
			return m, false
		}
		if err == nil {
			if p.failedAt.Swap(0) != 0 {
				p.state.well()
			}
			retry.Reset()
			return m, true
		}
		p.failedAt.Store(time.Now().UnixNano())
		if errors.Is(err, kafka.OffsetOutOfRange) {
			p.startOver()
			continue
		}
		p.state.trouble(fmt.Errorf("topic %s, partition %d: %w", p.cfg.Topic, p.id, err))
		if errors.Is(err, kafka.UnknownTopicOrPartition) {
			p.end(errTopicAway)
		}
		if !retry.Wait(ctx) {
			return m, false
		}
	}
}

// startOver reads from the first message that there is. The committed offset lies beyond the end when a topic was made anew or has lost messages; the reader
// has ended with its error and would stay silent. What comes again is known by its id.
func (p *partition) startOver() {
	text := fmt.Sprintf("topic %s, partition %d, no longer has the offset that group %s committed; reading from its first message", p.cfg.Topic, p.id, p.cfg.Group)
	p.log.Warn(text)
	p.state.remark(offsetLost, runnerv1.HealthSeverity_HEALTH_SEVERITY_MEDIUM, text)
	p.closeReader(p.reader.Swap(p.newReader(kafka.FirstOffset)))
}

// commit commits what is settled, in the order of the offsets, until the generation or the agent ends. When it cannot commit it ends the generation: the next
// one has a new connection, and what was not committed comes again.
func (p *partition) commit(gen context.Context) {
	err := p.commitAll(gen)
	p.committers.Done()
	if err != nil && gen.Err() == nil {
		p.log.Warn("cannot commit, joining the group again", "topic", p.cfg.Topic, "partition", p.id, "error", err)
		return
	}
	<-gen.Done() // not ended from here
}

// commitAll waits until the oldest message is settled, commits it with all that follow and are settled as well, frees their slots, and so on. It returns nil
// when there is nothing more to commit in this generation.
func (p *partition) commitAll(gen context.Context) error {
	for {
		if p.head == nil {
			select {
			case <-gen.Done():
				return nil
			case <-p.agent.Done():
				return p.commitLast(gen)
			case m := <-p.queue:
				p.head = &m
			}
		}
		select {
		case <-gen.Done():
			return nil
		case <-p.agent.Done():
			return p.commitLast(gen)
		case <-p.head.settled:
		}
		last, n, size := p.takeSettled()
		if err := p.commitOffset(gen, last, commitAttempts); err != nil {
			return err
		}
		p.room.Release(size)
		for range n {
			<-p.slots
		}
	}
}

// commitLast commits what is settled when the agent stops.
func (p *partition) commitLast(gen context.Context) error {
	last, n, _ := p.takeSettled()
	if n == 0 {
		return nil
	}
	return p.commitOffset(gen, last, 1)
}

// takeSettled takes messages off the queue as long as they are settled. It returns the offset of the last of them, how many there were, and their size.
func (p *partition) takeSettled() (last int64, n int, size int64) {
	for {
		if p.head == nil {
			select {
			case m := <-p.queue:
				p.head = &m
			default:
				return last, n, size
			}
		}
		select {
		case <-p.head.settled:
			last, n, size, p.head = p.head.offset, n+1, size+p.head.size, nil
		default:
			return last, n, size
		}
	}
}

// commitOffset commits through the generation: a commit for a lost partition is refused by the broker, because the generation is not the group's any more.
func (p *partition) commitOffset(gen context.Context, last int64, attempts int) error {
	offsets := map[string]map[int]int64{p.cfg.Topic: {p.id: last + 1}}
	for attempt := 1; ; attempt++ {
		if gen.Err() != nil {
			return gen.Err()
		}
		err := p.gen.CommitOffsets(offsets)
		if err == nil || attempt >= attempts || fenced(err) {
			return err
		}
		select {
		case <-gen.Done():
			return gen.Err()
		case <-time.After(commitPause):
		}
	}
}

// fenced reports whether the group has gone on without this member.
func fenced(err error) bool {
	return errors.Is(err, kafka.IllegalGeneration) || errors.Is(err, kafka.UnknownMemberId) || errors.Is(err, kafka.RebalanceInProgress)
}

// watch ends the session when the reader fetches nothing although it should, and clears the warning of a fetch that works again.
func (p *partition) watch(gen context.Context) {
	ticker := time.NewTicker(p.timing.maxWait)
	defer ticker.Stop()
	progress := time.Now()
	for {
		select {
		case <-gen.Done():
			return
		case <-ticker.C:
		}
		fetches := p.reader.Load().Stats().Fetches // since the last call
		if fetches > 0 || !p.waiting.Load() {
			progress = time.Now()
		}
		if failed := p.failedAt.Load(); fetches > 0 && failed != 0 && time.Since(time.Unix(0, failed)) > 3*p.timing.maxWait {
			if p.failedAt.CompareAndSwap(failed, 0) {
				p.state.well()
			}
		}
		if time.Since(progress) > p.timing.stall {
			p.end(fmt.Errorf("topic %s, partition %d: %w", p.cfg.Topic, p.id, errStalled))
			return
		}
	}
}

func fromKafka(m kafka.Message) Message {
	out := Message{Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Key: m.Key, Value: m.Value, Time: m.Time}
	for _, h := range m.Headers {
		out.Headers = append(out.Headers, envelope.Header{Key: h.Key, Value: h.Value})
	}
	return out
}
