package crash

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

// outcome is an outcome's event as the topic has it.
type outcome struct {
	eventID, source string
	message         *runnerv1.CommandOutcome
	seen            time.Time
}

// events is the whole topic of events, read from its beginning.
type events struct {
	mu       sync.Mutex
	outcomes map[string][]outcome   // by command id, in the topic's order
	received map[string][]time.Time // by command id: when agents took it, by their clocks
	bad      []string
}

// readEvents reads the topic until the test ends.
func (w *world) readEvents() *events {
	e := &events{outcomes: map[string][]outcome{}, received: map[string][]time.Time{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			w.kafka.PollFetches(ctx).EachRecord(e.take)
		}
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
		for _, what := range e.bad {
			w.t.Errorf("in the topic of events: %s", what)
		}
	})
	return e
}

func (e *events) take(r *kgo.Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var headers []envelope.Header
	for _, h := range r.Headers {
		headers = append(headers, envelope.Header{Key: h.Key, Value: h.Value})
	}
	ev, err := envelope.Parse(headers, r.Value, envelope.DefaultMaxData)
	if err != nil {
		e.bad = append(e.bad, err.Error())
		return
	}
	message, err := ev.Message()
	if err != nil {
		e.bad = append(e.bad, err.Error())
		return
	}
	switch m := message.(type) {
	case *runnerv1.CommandOutcome:
		e.outcomes[ev.CausationID] = append(e.outcomes[ev.CausationID], outcome{ev.ID, ev.Source, m, time.Now()})
	case *runnerv1.CommandReceived:
		e.received[ev.CausationID] = append(e.received[ev.CausationID], ev.Time)
	}
}

// of returns what the topic has of a command's outcome so far.
func (e *events) of(commandID string) []outcome {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.outcomes[commandID])
}

// takenAt returns when agents took a command.
func (e *events) takenAt(commandID string) []time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.received[commandID])
}

// await waits until a command has an outcome and returns the first.
func (w *world) await(commandID string) outcome {
	w.t.Helper()
	eventually(w.t, "the outcome of command "+commandID, func() bool { return len(w.events.of(commandID)) > 0 })
	return w.events.of(commandID)[0]
}

// oneOutcome checks that all outcome events of a command have its one id and say the same, and returns how often it was told.
func (w *world) oneOutcome(commandID string) int {
	w.t.Helper()
	all := w.events.of(commandID)
	if len(all) == 0 {
		w.t.Errorf("command %s has no outcome", commandID)
		return 0
	}
	for _, o := range all {
		if o.eventID != envelope.OutcomeID(commandID) {
			w.t.Errorf("an outcome of command %s has the id %s", commandID, o.eventID)
		}
		if said(o) != said(all[0]) {
			w.t.Errorf("command %s has two outcomes: %s by %s, and %s by %s", commandID, said(all[0]), all[0].source, said(o), o.source)
		}
	}
	return len(all)
}

// said is what an outcome says of the command's end. The lists of what was written and of the services' states are the teller's own; the head does not hold them.
func said(o outcome) string {
	m := o.message
	return fmt.Sprintf("%s of %s/%d (current %d) %s", m.GetStatus(), m.GetStack(), m.GetGeneration(), m.GetCurrentGeneration(), m.GetFailure().GetCode())
}
