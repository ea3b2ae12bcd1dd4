package command

import (
	"slices"
	"sync"
	"time"

	"github.com/axion/runner-agent/stack"
)

// How fast the steps of one command are told. A stack of some size has its first steps told at once; a service that flaps, or hundreds that start, cannot fill
// the outbox: of what comes faster, only the latest state of each service is told.
const (
	progressBurst = 100
	progressEvery = 100 * time.Millisecond
	// maxWaitingSteps bounds the steps that are not told yet; the oldest give way.
	maxWaitingSteps = 1000
)

// pace lets through a burst of steps and then one at a time, in the order in which they came. It is safe for concurrent use.
type pace struct {
	tell func(stack.Event)

	mu sync.Mutex
	// full is when there will be a whole burst again; zero is long ago.
	full time.Time
	// waiting holds at most one step of each service.
	waiting []stack.Event
	timer   *time.Timer
	ended   bool
}

// observe tells a step, now or soon.
func (p *pace) observe(e stack.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) == 0 && p.take() {
		p.tell(e)
		return
	}
	if s, ok := e.(stack.ServiceProgress); ok {
		p.waiting = slices.DeleteFunc(p.waiting, func(w stack.Event) bool {
			older, ok := w.(stack.ServiceProgress)
			return ok && older.Service == s.Service
		})
	}
	if len(p.waiting) == maxWaitingSteps {
		p.waiting = slices.Delete(p.waiting, 0, 1)
	}
	p.waiting = append(p.waiting, e)
	p.wake()
}

// take takes the right to tell a step, if there is one. It needs mu.
func (p *pace) take() bool {
	now := time.Now()
	if p.full.Before(now) {
		p.full = now
	}
	if p.full.Sub(now) > (progressBurst-1)*progressEvery {
		return false
	}
	p.full = p.full.Add(progressEvery)
	return true
}

// wake sees to it that what waits is told. It needs mu.
func (p *pace) wake() {
	if p.timer == nil && !p.ended {
		p.timer = time.AfterFunc(progressEvery, p.next)
	}
}

func (p *pace) next() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = nil
	if p.ended {
		return
	}
	for len(p.waiting) > 0 && p.take() {
		p.tell(p.waiting[0])
		p.waiting = slices.Delete(p.waiting, 0, 1)
	}
	if len(p.waiting) > 0 {
		p.wake()
	}
}

// end tells all that waits: the outcome follows.
func (p *pace) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if p.timer != nil {
		p.timer.Stop()
	}
	for _, e := range p.waiting {
		p.tell(e)
	}
	p.waiting = nil
}
