package agent

import (
	"context"
	"log/slog"

	"github.com/axion/runner-agent/agent/command"
)

// terms are the times in which this agent reads the cluster's topic, one after the other.
type terms struct {
	// may says whether it may read now; it does not block.
	may func() bool
	// changed returns channels that are closed when the answer may be another.
	changed func() (node, session <-chan struct{})
	// leaderless says whether this node is a manager that cannot reach its Swarm's leader.
	leaderless func() bool
	// read reads, as a member of the consumer group, until its context ends.
	read func(context.Context) error
	log  *slog.Logger
}

// run reads whenever it may, until ctx ends or reading fails. At the end of a term running commands are interrupted without an outcome: whoever has the next
// term takes them up.
func (t terms) run(ctx context.Context) error {
	for t.wait(ctx, true) {
		if err := t.term(ctx); err != nil {
			return err
		}
	}
	return nil
}

// term reads until it may not any more.
func (t terms) term(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	done := make(chan error, 1)
	go func() { done <- t.read(ctx) }()
	t.log.Info("reading the cluster's commands")
	over := make(chan struct{})
	go func() { defer close(over); t.wait(ctx, false) }()
	var err error
	select {
	case err = <-done:
	case <-over:
		t.log.Info("no longer reading the cluster's commands", "leaderless", t.leaderless())
		stop(t.cause())
		err = <-done
	}
	stop(nil)
	<-over
	return err
}

// cause is why a term ends: without quorum the commands that run say so.
func (t terms) cause() error {
	if t.leaderless() {
		return command.ErrNoQuorum
	}
	return context.Canceled
}

// wait returns true when this agent may read (or, with want false, may not any more), and false when ctx ends.
func (t terms) wait(ctx context.Context, want bool) bool {
	for ctx.Err() == nil {
		node, session := t.changed()
		if t.may() == want {
			return true
		}
		select {
		case <-node:
		case <-session:
		case <-ctx.Done():
		}
	}
	return false
}
