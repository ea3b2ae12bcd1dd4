package progress

import (
	"strings"
	"time"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Bounds on what is remembered of a command.
const (
	maxServices = 10_000
	maxNotices  = 1_000
)

// record is what is known of a command so far.
type record struct {
	commandID string
	received  bool
	began     time.Time // when the agent took it, by its clock

	services []*service // in the order in which they were first told
	byName   map[string]*service
	notices  map[string]bool // texts that were told
}

// service is what is known of one service.
type service struct {
	*runnerv1.ServiceProgress
	changed time.Time       // when it reached its state, by the agent's clock
	told    map[string]bool // errors that were printed
}

func newRecord() *record { return &record{byName: map[string]*service{}, notices: map[string]bool{}} }

// receive notes that an agent has the command.
func (r *record) receive(event *planev1.EventRecord) {
	r.received = true
	if r.began.IsZero() {
		r.began = event.GetTime().AsTime()
	}
}

// update notes a service's state. It returns the service and whether anything that is shown has changed; nil beyond the bound.
func (r *record) update(event *planev1.EventRecord, progress *runnerv1.ServiceProgress) (*service, bool) {
	known := r.byName[progress.GetService()]
	if known == nil {
		if len(r.services) >= maxServices {
			return nil, false
		}
		known = &service{told: map[string]bool{}, ServiceProgress: &runnerv1.ServiceProgress{}}
		r.byName[progress.GetService()] = known
		r.services = append(r.services, known)
	}
	before := known.ServiceProgress
	if before.GetState() != progress.GetState() {
		known.changed = event.GetTime().AsTime()
	}
	known.ServiceProgress = progress
	return known, before.GetState() != progress.GetState() || before.GetRunning() != progress.GetRunning() ||
		before.GetDesired() != progress.GetDesired() || before.GetMessage() != progress.GetMessage()
}

// notice notes that a sentence is on the screen, so that the summary need not repeat it. nil is none.
func (r *record) notice(n *runnerv1.Notice) {
	if n != nil && len(r.notices) < maxNotices {
		r.notices[strings.TrimSpace(n.GetText())] = true
	}
}

// news returns the errors of a service that were not told yet. A task that fails like its predecessor at the same place is no news.
func (s *service) news() []*runnerv1.TaskError {
	var fresh []*runnerv1.TaskError
	for _, e := range s.GetErrors() {
		key := taskName(s.GetService(), e) + "\x00" + e.GetNodeId() + "\x00" + e.GetState() + "\x00" + e.GetError()
		if !s.told[key] {
			s.told[key] = true
			fresh = append(fresh, e)
		}
	}
	return fresh
}

// done counts the services that need no more watching.
func (r *record) done() int {
	n := 0
	for _, s := range r.services {
		if settled(s.GetState()) {
			n++
		}
	}
	return n
}

// took returns how long a service took to reach its last state.
func (r *record) took(outcome *runnerv1.CommandOutcome) func(name string) (time.Duration, bool) {
	return func(name string) (time.Duration, bool) {
		began := r.began
		if outcome.GetStartedAt() != nil {
			began = outcome.GetStartedAt().AsTime()
		}
		ended := time.Time{}
		if s := r.byName[name]; s != nil && settled(s.GetState()) {
			ended = s.changed
		} else if outcome.GetEndedAt() != nil {
			ended = outcome.GetEndedAt().AsTime()
		}
		if began.IsZero() || ended.Before(began) {
			return 0, false
		}
		return ended.Sub(began), true
	}
}

// settled tells states that end the watching of a service.
func settled(state runnerv1.ServiceState) bool {
	return good(state) || bad(state)
}

func good(state runnerv1.ServiceState) bool {
	return state == runnerv1.ServiceState_SERVICE_STATE_CONVERGED || state == runnerv1.ServiceState_SERVICE_STATE_COMPLETED
}

func bad(state runnerv1.ServiceState) bool {
	switch state {
	case runnerv1.ServiceState_SERVICE_STATE_FAILED, runnerv1.ServiceState_SERVICE_STATE_PAUSED, runnerv1.ServiceState_SERVICE_STATE_ROLLED_BACK:
		return true
	default:
		return false
	}
}
