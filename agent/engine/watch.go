package engine

import (
	"context"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
)

// watch is a subscription to the events that may change the node's facts. Its end is the first sign of an engine that went away.
type watch struct {
	cancel context.CancelFunc
	signal chan struct{} // of one element: something happened
	done   chan struct{} // closed when the stream has ended
}

// watchEvents subscribes to the events of nodes (managers send them) and of the daemon itself.
func watchEvents(ctx context.Context, c *client.Client) *watch {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{cancel: cancel, signal: make(chan struct{}, 1), done: make(chan struct{})}
	kinds := filters.NewArgs(filters.Arg("type", string(events.NodeEventType)), filters.Arg("type", string(events.DaemonEventType)))
	messages, errs := c.Events(ctx, events.ListOptions{Filters: kinds})
	go w.run(ctx, messages, errs)
	return w
}

func (w *watch) run(ctx context.Context, messages <-chan events.Message, errs <-chan error) {
	defer close(w.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-errs:
			return
		case <-messages:
			select {
			case w.signal <- struct{}{}:
			default: // one is waiting already
			}
		}
	}
}

// changes is never ready on a nil watch.
func (w *watch) changes() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.signal
}

// ended is never ready on a nil watch.
func (w *watch) ended() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.done
}

// stop ends the subscription and waits for it.
func (w *watch) stop() {
	if w == nil {
		return
	}
	w.cancel()
	<-w.done
}
