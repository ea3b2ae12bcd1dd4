package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// supervisor starts the components one after the other and stops them in reverse, each within its deadline, so that what others build on ends last.
type supervisor struct {
	log     *slog.Logger
	running []*running
	failed  chan error
}

// running is a component between its start and its end.
type running struct {
	name     string
	deadline time.Duration
	cancel   context.CancelFunc
	done     chan struct{}
}

func newSupervisor(log *slog.Logger) *supervisor {
	return &supervisor{log: log, failed: make(chan error, 1)}
}

// start runs a component in a goroutine of its own. Its context carries ctx's values but not its end: stop alone ends it, when its turn has come.
func (s *supervisor) start(ctx context.Context, name string, deadline time.Duration, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{name: name, deadline: deadline, cancel: cancel, done: make(chan struct{})}
	s.running = append(s.running, r)
	go func() {
		defer close(r.done)
		err := run(ctx)
		switch {
		case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
			return
		case err == nil:
			err = errors.New("ended by itself")
		}
		select {
		case s.failed <- fmt.Errorf("%s: %w", name, err):
		default: // the first failure is the one that is told
		}
	}()
}

// wait returns when ctx ends (nil) or a component fails (why).
func (s *supervisor) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return err
	}
}

// stop ends the components in reverse. One that does not end within its deadline is left behind and named.
func (s *supervisor) stop() error {
	var late []error
	for i := len(s.running) - 1; i >= 0; i-- {
		r := s.running[i]
		r.cancel()
		timer := time.NewTimer(r.deadline)
		select {
		case <-r.done:
			s.log.Debug("component ended", "component", r.name)
		case <-timer.C:
			late = append(late, fmt.Errorf("%s did not end within %s", r.name, r.deadline))
		}
		timer.Stop()
	}
	s.running = nil
	return errors.Join(late...)
}
