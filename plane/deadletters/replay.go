package deadletters

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/axion/runner-agent/proto/failure"
)

const (
	// produceTimeout is how long Kafka may take to have a replayed message.
	produceTimeout = 15 * time.Second
	// noteTimeout bounds the note that it has not.
	noteTimeout = 5 * time.Second
)

// Place is where a message is.
type Place struct {
	Topic     string
	Partition int32
	Offset    int64
}

// Replay writes a letter's key, value and original headers to its original topic again, and notes that. It can be done once: the note is made first, and taken
// back only if Kafka certainly does not have the message.
//
// Failures: invalid no_such_letter; conflict already_replayed; invalid no_command_topic; denied unverified_letter, unless that is allowed; unavailable
// kafka_unavailable.
func (l *Letters) Replay(ctx context.Context, id uint64, allowUnverified bool) (Place, error) {
	letter, err := l.Get(ctx, id)
	if err == nil {
		err = l.mayReplay(ctx, letter, allowUnverified)
	}
	if err != nil {
		return Place{}, err
	}
	now := l.deps.Now()
	first, err := l.setReplayed(ctx, id, time.Time{}, now)
	if err != nil {
		return Place{}, err
	}
	if !first {
		return Place{}, alreadyReplayed(id)
	}
	// From here on a caller who leaves changes nothing: either Kafka has the message and that is noted, or neither.
	place, err := l.produce(context.WithoutCancel(ctx), letter)
	if err == nil {
		l.deps.Log.Info("dead letter replayed", "letter", id, "topic", place.Topic, "partition", place.Partition, "offset", place.Offset, "command_id", letter.CommandID)
		return place, nil
	}
	f := failure.New(failure.Unavailable, "kafka_unavailable", letter.Topic, "dead letter %d was not replayed: Kafka did not take it: %w", id, err)
	if errors.Is(err, kgo.ErrClientClosed) {
		return Place{}, failure.New(failure.Unavailable, "replay_unknown", letter.Topic, "it is not known whether Kafka has taken dead letter %d; it counts as replayed", id)
	}
	noted, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	if _, err := l.setReplayed(noted, id, now, time.Time{}); err != nil {
		l.deps.Log.Error("a dead letter counts as replayed although it was not", "letter", id, "error", err)
	}
	return Place{}, f
}

func (l *Letters) mayReplay(ctx context.Context, letter Letter, allowUnverified bool) error {
	if !letter.ReplayedAt.IsZero() {
		return alreadyReplayed(letter.ID)
	}
	_, _, ok, err := l.deps.Directory.Owner(ctx, letter.Topic)
	switch {
	case err != nil:
		return err
	case !ok:
		return failure.New(failure.Invalid, "no_command_topic", letter.Topic, "dead letter %d names the topic %q, which is not the command topic of a cluster or agent that is here",
			letter.ID, letter.Topic)
	case !letter.Verified && !allowUnverified:
		return failure.New(failure.Denied, "unverified_letter", letter.Topic, "dead letter %d is not verified: topic %s is not that of the agent that it names, %q", letter.ID, letter.Topic, letter.AgentID).
			WithHint(fmt.Sprintf("see what it holds with `axionctl dlq show %d`, then replay it with --unverified", letter.ID))
	}
	return nil
}

func alreadyReplayed(id uint64) error {
	return failure.New(failure.Conflict, "already_replayed", "", "dead letter %d was replayed already", id).
		WithHint("if it could not be read again, there is a new dead letter")
}

// produce writes the message. A producer that numbers its messages, as this one does, fails one only if the broker certainly does not have it, or if it is
// closed while it does not know.
func (l *Letters) produce(ctx context.Context, letter Letter) (Place, error) {
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	cl, err := kgo.NewClient(append(l.deps.ClientOpts(), kgo.RecordDeliveryTimeout(produceTimeout), kgo.ProducerBatchMaxBytes(maxLetterBytes))...)
	if err != nil {
		return Place{}, fmt.Errorf("make Kafka client: %w", err)
	}
	defer cl.Close()
	record := &kgo.Record{Topic: letter.Topic, Key: letter.Key, Value: letter.Value}
	for _, h := range letter.Headers {
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	written, err := cl.ProduceSync(ctx, record).First()
	if err != nil {
		return Place{}, err
	}
	return Place{Topic: written.Topic, Partition: written.Partition, Offset: written.Offset}, nil
}
