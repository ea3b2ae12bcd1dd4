package dispatch

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/plane/ledger"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

const (
	// sendBatch is how many due commands are looked up at once; their data is read one by one.
	sendBatch = 32
	// maxRecordBytes bounds a record: the largest data and room for headers. The command topics take 12 MiB.
	maxRecordBytes = envelope.DefaultMaxData + 1<<20
	// produceTimeout bounds one try; the command stays in the ledger and is tried again.
	produceTimeout = 15 * time.Second
	// unknownTopicRetries: a topic that is not there (its agent was removed) must not hold up the others.
	unknownTopicRetries = 2
	// maxIdle is the longest time that the sender sleeps: a clock that was set does not leave it asleep for long.
	maxIdle = time.Minute
)

// send owns the sending: one loop, one command at a time, oldest first.
func (d *Dispatch) send(ctx context.Context) error {
	cl, err := d.client(kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerBatchMaxBytes(maxRecordBytes), kgo.RecordDeliveryTimeout(produceTimeout),
		// Else neither the timeout nor the plane's end would stop the wait for a broker that took a record and does not answer. A command may arrive twice.
		kgo.AllowIdempotentProduceCancellation(),
		kgo.UnknownTopicRetries(unknownTopicRetries))
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		changed := d.deps.Ledger.CommandsChanged()
		wait := d.sendRound(ctx, cl)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-changed:
		case <-d.kick:
		case <-t.C:
		}
		t.Stop()
	}
}

// sendRound closes what is overdue, sends what is due, and returns the time until there is more to do.
func (d *Dispatch) sendRound(ctx context.Context, cl *kgo.Client) time.Duration {
	err := d.expire(ctx)
	if err == nil {
		err = d.sendDue(ctx, cl)
	}
	var send, overdue time.Time
	if err == nil {
		send, overdue, err = d.deps.Ledger.Next(ctx)
	}
	if err != nil {
		if ctx.Err() == nil {
			d.deps.Log.Error("commands could not be sent", "error", err)
		}
		return d.cfg.Retry
	}
	now, wait := d.deps.Now(), maxIdle
	if send.IsZero() {
		clear(d.failed) // no command is open
	} else {
		wait = min(wait, send.Sub(now))
	}
	if !overdue.IsZero() && d.current.Load() {
		wait = min(wait, overdue.Add(d.cfg.Grace).Sub(now))
	}
	return max(wait, 0)
}

// sendDue sends the commands that are due, at most sendBatch. An error is the ledger's; what Kafka does not take is postponed.
func (d *Dispatch) sendDue(ctx context.Context, cl *kgo.Client) error {
	ids, err := d.deps.Ledger.Due(ctx, sendBatch)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := d.sendOne(ctx, cl, id); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dispatch) sendOne(ctx context.Context, cl *kgo.Client, id string) error {
	r, open, err := d.deps.Ledger.Record(ctx, id)
	if err != nil || !open {
		delete(d.failed, id)
		return err
	}
	c := r.Command
	record := &kgo.Record{Topic: c.Topic, Key: []byte(c.Key), Value: r.Data}
	for _, h := range r.Headers {
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	log := d.deps.Log.With("command_id", c.ID, "correlation_id", c.CorrelationID, "topic", c.Topic)
	if err := cl.ProduceSync(ctx, record).FirstErr(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.UnknownTopicOrPartition) {
			// A topic that was deleted and made anew has another id; the client would keep the old one for ever.
			cl.PurgeTopicsFromProducing(c.Topic)
		}
		wait := doubled(d.cfg.Retry, d.failed[id], d.cfg.ResendFirst)
		d.failed[id]++
		log.Warn("Kafka did not take a command; it will be sent again", "error", err, "again_in", wait)
		return d.deps.Ledger.Postpone(ctx, id, d.deps.Now().Add(wait))
	}
	delete(d.failed, id)
	log.Info("command sent", "type", c.Type, "subject", c.Subject, "generation", c.Generation, "sends", c.Sends+1)
	return d.deps.Ledger.Sent(ctx, id, d.deps.Now().Add(d.resendAfter(c.Sends+1)))
}

// resendAfter returns the time until the next send after the given number of sends.
func (d *Dispatch) resendAfter(sends uint64) time.Duration {
	return doubled(d.cfg.ResendFirst, int(min(sends, 64))-1, d.cfg.ResendMax)
}

// doubled returns first, doubled so many times, but at most most.
func doubled(first time.Duration, times int, most time.Duration) time.Duration {
	for ; times > 0 && first < most; times-- {
		first *= 2
	}
	return min(first, most)
}

// expire closes the commands whose time is over.
func (d *Dispatch) expire(ctx context.Context) error {
	if !d.current.Load() {
		return nil
	}
	overdue, err := d.deps.Ledger.Overdue(ctx, d.deps.Now().Add(-d.cfg.Grace), sendBatch)
	if err != nil {
		return err
	}
	for _, c := range overdue {
		done, err := d.deps.Ledger.Expire(ctx, c, d.expired(c))
		if err != nil {
			return err
		}
		delete(d.failed, c.ID)
		if done {
			d.deps.Log.Warn("command closed as expired", "command_id", c.ID, "correlation_id", c.CorrelationID, "begun", c.Begun, "sends", c.Sends)
		}
	}
	return nil
}

// expired is the outcome of a command whose time is over.
func (d *Dispatch) expired(c ledger.Command) *runnerv1.CommandOutcome {
	deadline := c.Deadline.Format(time.RFC3339)
	why := failure.New(failure.Deadline, "expired", c.Subject, "no agent had begun the command for %s by its deadline, %s", c.Subject, deadline).
		WithHint("see whether an agent is connected: on a manager node for a stack")
	switch {
	case c.Begun:
		why = failure.New(failure.Deadline, "no_outcome", c.Subject, "an agent took the command for %s, but long after its deadline, %s, there is no outcome", c.Subject, deadline).
			WithHint("see what the stack looks like now, and deploy it again")
	case c.Sends == 0:
		why = failure.New(failure.Deadline, "expired", c.Subject, "Kafka did not take the command for %s before its deadline, %s", c.Subject, deadline).
			WithHint("see whether the plane reaches the broker and the topic " + c.Topic + " exists")
	}
	outcome := &runnerv1.CommandOutcome{
		Type: c.Type, Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_EXPIRED, Failure: failurepb.FromError(why), Generation: c.Generation,
		EndedAt: timestamppb.New(d.deps.Now()),
	}
	if !c.StackIsGuess() {
		outcome.Stack = c.Stack
	}
	return outcome
}
