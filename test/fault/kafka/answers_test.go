package kafka_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/axion/runner-agent/test/fault"
)

// TestProduceResponseLost: the broker has written what agent and plane sent, but its answers are lost and the connections are cut.
func TestProduceResponseLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := startEmbedded(t, w.ca)
	w.start(b)
	cuts, enough := 8, 1
	if fault.Long() {
		cuts, enough = 100, 10
	}
	name := w.newStack()
	var ids []string
	duplicates, conflicts := 0, 0
	for n := 0; n < cuts || duplicates < enough && n < 10*cuts; n++ {
		before := len(w.records(eventsTopic))
		ids = append(ids, w.submit(name, n))
		eventually(t, "an event", func() bool { return len(w.records(eventsTopic)) > before })
		b.proxy.LoseAnswers()
		time.Sleep(time.Duration(20*(n%10)) * time.Millisecond) // at another point of the command's life each time
		b.proxy.Cut()
		w.end(ids[n:])
		duplicates, conflicts = w.counts()
	}
	if duplicates < enough || conflicts > 0 {
		t.Errorf("%d duplicates and %d conflicts in the topic; the fault was not there, or an event has changed", duplicates, conflicts)
	}
	o := w.succeeds(w.submit(name, 1000))
	w.isAt(name, 1000, o.GetGeneration())
	fault.Report(t, "produce responses lost", "duplicates are recognised by event id",
		fmt.Sprintf("%d commands, %d duplicate events in the topic, one outcome a command at the plane", len(ids), duplicates))
}
