// Package supervise runs the components of a program: it starts them one after the other and stops them in reverse, each within its deadline, so that what
// others build on ends last.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Supervisor starts and stops components. It is used by one goroutine.
type Supervisor struct {
	log     *slog.Logger
	running []*component
	failed  chan error
}

// component is a component between its start and its end.
type component struct {
	name     string
	deadline time.Duration
	cancel   context.CancelFunc
	done     chan struct{}
}

// New returns a supervisor of nothing yet.
func New(log *slog.Logger) *Supervisor {
	return &Supervisor{log: log, failed: make(chan error, 1)}
}

// Start runs a component in a goroutine of its own. Its context carries ctx's values but not its end: Stop alone ends it, when its turn has come. A component
// that ends before is a failure, with or without an error.
func (s *Supervisor) Start(ctx context.Context, name string, deadline time.Duration, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &component{name: name, deadline: deadline, cancel: cancel, done: make(chan struct{})}
	s.running = append(s.running, c)
	go func() {
		defer close(c.done)
		err := run(ctx)
		if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
			return
		}
		if err == nil {
			err = errors.New("ended by itself")
		}
		select {
		case s.failed <- fmt.Errorf("%s: %w", name, err):
		default: // the first failure is the one that is told
		}
	}()
}

// Wait returns nil when ctx ends, or a component's failure.
func (s *Supervisor) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return err
	}
}

// Stop ends the components in reverse. One that does not end within its deadline is left behind and named in the error.
func (s *Supervisor) Stop() error {
	var late []error
	for i := len(s.running) - 1; i >= 0; i-- {
		c := s.running[i]
		c.cancel()
		timer := time.NewTimer(c.deadline)
		select {
		case <-c.done:
			s.log.Debug("component ended", "component", c.name)
		case <-timer.C:
			late = append(late, fmt.Errorf("%s did not end within %s", c.name, c.deadline))
		}
		timer.Stop()
	}
	s.running = nil
	return errors.Join(late...)
}
