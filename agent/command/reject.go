package command

import (
	"context"
	"strconv"

	"github.com/google/uuid"

	"github.com/axion/runner-agent/agent/bus"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/deadletter"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

// reject copies a message that cannot be a command to the dead-letter topic, tells why, and, if the message at least had an id, ends the command.
func (r *Runner) reject(ctx context.Context, c *command, reason error) bool {
	f := failure.Of(reason)
	c.log.Warn("message rejected", "code", f.Code, "reason", f.Message, "topic", c.message.Topic, "offset", c.message.Offset)
	notice := deadletter.Notice{
		AgentID: r.cfg.AgentID, Topic: c.message.Topic, Partition: int32(c.message.Partition), Offset: c.message.Offset, // Kafka numbers partitions with 32 bits
		Class: f.Class.String(), Code: f.Code, Reason: f.Message,
	}
	dead := bus.Message{Topic: r.cfg.Kafka.GetDlqTopic(), Key: c.message.Key, Value: c.message.Value, Headers: notice.Headers(c.message.Headers)}
	if r.patiently(ctx, c, "copy a message to the dead-letter topic", func() error { return r.deps.Producer.Produce(ctx, []bus.Message{dead}) }) != nil {
		return false
	}
	r.tellRejected(c, f)
	if c.envelope.ID == "" || len(c.envelope.ID) > envelope.MaxID {
		return true
	}
	if r.patiently(ctx, c, "write the journal", func() error {
		_, err := r.deps.Journal.Receive(c.envelope.ID, c.envelope.Type)
		return err
	}) != nil {
		return false
	}
	return r.conclude(ctx, c, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED, Failure: failureOf(f)})
}

// tellRejected sends a MessageRejected whose id is a function of the message's place, so that telling it twice is recognised.
func (r *Runner) tellRejected(c *command, f *failure.Error) {
	ev, err := r.event(c, &runnerv1.MessageRejected{
		Failure:   failureOf(f),
		Topic:     c.message.Topic,
		Partition: int32(c.message.Partition), // Kafka numbers partitions with 32 bits
		Offset:    c.message.Offset,
	})
	if err != nil {
		c.log.Warn("event is lost", "error", err)
		return
	}
	place := c.message.Topic + "/" + strconv.Itoa(c.message.Partition) + "/" + strconv.FormatInt(c.message.Offset, 10)
	ev.ID = uuid.NewSHA1(uuid.NameSpaceURL, []byte("axion.runner.v1/rejected/"+place)).String()
	if err := r.deps.Journal.Append(ev, r.cfg.ClusterID); err != nil {
		c.log.Warn("event is lost", "error", err)
	}
}
