package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/axion/runner-agent/agent/journal"
	"github.com/axion/runner-agent/test/fault"
)

// resent makes the plane send again what has no outcome: it does so after a minute. Another command makes it look at its clock.
func (w *world) resent() {
	w.t.Helper()
	w.ahead.Add(int64(2 * time.Minute))
	w.succeeds(w.submit(w.newStack(), 0))
}

// TestTopicRecreated: the cluster's topic is deleted, with a command in it that nobody has read, and made anew.
func TestTopicRecreated(t *testing.T) {
	eachKafka(t, func(t *testing.T, w *world) {
		admin, name := w.brokers.admin(), w.newStack()
		w.succeeds(w.submit(name, 1))
		settings, err := admin.DescribeTopicConfigs(t.Context(), clusterTopic)
		if err != nil {
			t.Fatal(err)
		}
		w.stopAgent() // so that it cannot read the command
		lost := w.submit(name, 2)
		eventually(t, "the command in the topic", func() bool { return w.holds(clusterTopic, lost) })
		w.startAgentAfter(func() {
			if _, err := admin.DeleteTopic(t.Context(), clusterTopic); err != nil {
				t.Fatal(err)
			}
		})
		eventually(t, "the agent's warning", func() bool { return strings.Contains(w.log.String(), "problem=topic_missing") })
		began := time.Now()
		configs := map[string]*string{}
		for _, c := range settings[0].Configs {
			if c.Source == kmsgDynamicTopicConfig {
				configs[c.Key] = c.Value
			}
		}
		eventually(t, "the new topic", func() bool { // the name is free a moment after the deletion
			_, err := admin.CreateTopic(t.Context(), 1, 1, configs, clusterTopic)
			return err == nil || errors.Is(err, kerr.TopicAlreadyExists)
		})
		next := w.submit(name, 3)
		w.succeeds(next)
		took := time.Since(began)
		w.resent()
		w.end([]string{lost})
		last := w.submit(name, 4)
		o := w.succeeds(last)
		w.isAt(name, 4, o.GetGeneration())
		_, conflicts := w.counts()
		if conflicts > 0 {
			t.Errorf("%d events say something else than the first of their id", conflicts)
		}
		fault.Report(t, "topic deleted with an unread command, and made anew", "every command has an outcome; next deployment accepted",
			fmt.Sprintf("next deployment done %.1f s after the topic was there; the lost command has an outcome", took.Seconds()))
	})
}

// kmsgDynamicTopicConfig marks a setting that was made for the topic.
const kmsgDynamicTopicConfig = 1

// startAgentAfter does f and starts the agent.
func (w *world) startAgentAfter(f func()) {
	w.t.Helper()
	f()
	w.startAgent()
}

// holds says whether a topic holds a command.
func (w *world) holds(topic, commandID string) bool {
	w.t.Helper()
	for _, r := range w.records(topic) {
		if header(r, "ce_id") == commandID {
			return true
		}
	}
	return false
}

// forgetOffsets deletes what the cluster's group has committed. The group must be empty.
func (w *world) forgetOffsets() {
	w.t.Helper()
	eventually(w.t, "an empty group", func() bool {
		groups, err := w.brokers.admin().DescribeGroups(w.t.Context(), clusterGroup)
		return err == nil && len(groups[clusterGroup].Members) == 0
	})
	var offsets kadm.TopicsSet
	offsets.Add(clusterTopic, 0)
	if _, err := w.brokers.admin().DeleteOffsets(w.t.Context(), clusterGroup, offsets); err != nil {
		w.t.Fatal(err)
	}
}

// dropRecords deletes all messages of the cluster's topic, as retention does.
func (w *world) dropRecords() {
	w.t.Helper()
	ends, err := w.brokers.admin().ListEndOffsets(w.t.Context(), clusterTopic)
	if err != nil {
		w.t.Fatal(err)
	}
	deleted, err := w.brokers.admin().DeleteRecords(w.t.Context(), ends.Offsets())
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// commitOffset puts the group's offset somewhere, as an operator's tool does.
func (w *world) commitOffset(at int64) {
	w.t.Helper()
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: clusterTopic, Partition: 0, At: at, LeaderEpoch: -1})
	committed, err := w.brokers.admin().CommitOffsets(w.t.Context(), clusterGroup, offsets)
	if err == nil {
		err = committed.Error()
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestOffsetsExpired: the group's offsets are gone, and the whole topic comes again; then they are beyond the topic's end; then they are before its beginning,
// with an unread command between.
func TestOffsetsExpired(t *testing.T) {
	eachKafka(t, func(t *testing.T, w *world) {
		name := w.newStack()
		ids := []string{w.submit(name, 1)}
		w.succeeds(ids[0])
		ids = append(ids, w.submit(name, 2))
		w.succeeds(ids[1])
		_, _, version := w.service(name)

		w.stopAgent()
		w.forgetOffsets()
		w.startAgent()
		replayed := w.submit(w.newStack(), 0)
		w.succeeds(replayed) // all before it has come again by now
		if _, _, now := w.service(name); now != version {
			t.Error("the replay wrote the service again")
		}

		w.stopAgent()
		w.commitOffset(1000)
		w.startAgent()
		beyond := w.submit(name, 3)
		w.succeeds(beyond)
		if !strings.Contains(w.log.String(), "no longer has the offset") {
			t.Error("the agent did not say that the offset was lost")
		}

		w.stopAgent()
		lost := w.submit(name, 4)
		eventually(t, "the command in the topic", func() bool { return w.holds(clusterTopic, lost) })
		w.dropRecords()
		w.startAgent()
		next := w.submit(name, 5)
		w.succeeds(next)
		w.resent()
		w.end([]string{lost})
		o := w.succeeds(w.submit(name, 6))
		w.isAt(name, 6, o.GetGeneration())
		duplicates, conflicts := w.counts()
		if conflicts > 0 {
			t.Errorf("%d events say something else than the first of their id", conflicts)
		}
		fault.Report(t, "offsets expired: replay of the topic, offset beyond its end, offset before its beginning",
			"every command has an outcome, none applied twice; next deployment accepted",
			fmt.Sprintf("nothing written again in the replay, %d outcomes told again and recognised", duplicates))
	})
}

// TestEightDaysOff: the agent was away for longer than Kafka keeps messages and offsets and than the journal remembers; a command that it missed is gone, and an old
// one comes again.
func TestEightDaysOff(t *testing.T) {
	eachKafka(t, func(t *testing.T, w *world) {
		name := w.newStack()
		first := w.submit(name, 1)
		w.succeeds(first)
		second := w.submit(name, 2)
		w.succeeds(second)
		_, _, version := w.service(name)
		old := w.records(clusterTopic)

		w.stopAgent()
		missed := w.submit(name, 3)
		eventually(t, "the command in the topic", func() bool { return w.holds(clusterTopic, missed) })
		w.forgetOffsets()
		w.dropRecords()
		store, err := journal.Open(filepath.Join(w.file("state"), "journal.db"), journal.Options{})
		if err != nil {
			t.Fatal(err)
		}
		// What the agent does each hour, eight days from now.
		err = errors.Join(store.Expire(time.Now().Add(time.Hour)), store.ExpireProgress(time.Now().Add(time.Hour)), store.Close())
		if err != nil {
			t.Fatal(err)
		}
		w.replay(old)
		w.startAgent()
		w.succeeds(w.submit(w.newStack(), 0)) // all that was replayed has been handled
		if mark, _, now := w.service(name); mark != "MARK=2" || now != version {
			t.Errorf("the replay wrote %s", mark)
		}
		w.resent()
		w.succeeds(missed)
		o := w.succeeds(w.submit(name, 4))
		w.isAt(name, 4, o.GetGeneration())
		duplicates, conflicts := w.counts()
		// A command that the journal has forgotten is answered from the head, in fewer words than the first time: the first event stands.
		if status := w.outcome(first).GetStatus(); status != 1 {
			t.Errorf("the first command's outcome became %v", status)
		}
		fault.Report(t, "agent off for 8 days: messages, offsets and journal expired, old commands replayed",
			"every command has an outcome, none applied twice; next deployment accepted",
			fmt.Sprintf("nothing written in the replay; %d outcomes told again, of which %d in other words, and the first stands", duplicates, conflicts))
	})
}

// replay writes records to the cluster's topic again.
func (w *world) replay(old []*kgo.Record) {
	w.t.Helper()
	cl, err := kgo.NewClient(w.brokers.options()...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for _, r := range old {
		again := &kgo.Record{Topic: clusterTopic, Key: r.Key, Value: r.Value, Headers: r.Headers}
		if err := cl.ProduceSync(ctx, again).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
}
