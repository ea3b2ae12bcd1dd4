package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/axion/runner-agent/agent/command"
	"github.com/axion/runner-agent/agent/engine"
	"github.com/axion/runner-agent/agent/health"
	testengine "github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/engineproxy"
)

// TestNoLeaderEndsTheTerm: a manager whose engine has had no leader for 10 s leaves the consumer group, and joins it again when there is one.
func TestNoLeaderEndsTheTerm(t *testing.T) {
	const socket = "unix:///var/run/docker.sock"
	if host := testengine.Client(t).DaemonHost(); host != socket {
		t.Skipf("the engine is at %s", host)
	}
	proxy := engineproxy.New(t, socket[len("unix://"):])
	var ahead atomic.Int64
	warnings := health.New(nil)
	e, err := engine.New(engine.Config{Host: proxy.Client(t).DaemonHost()}, engine.Deps{
		Log: slog.New(slog.DiscardHandler), Warn: warnings, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	began, ended := make(chan struct{}, 8), make(chan error, 8)
	terms := terms{
		may:        e.Quorum,
		changed:    func() (node, session <-chan struct{}) { return e.Changed(), nil },
		leaderless: func() bool { return e.Manager() && !e.Quorum() },
		read: func(ctx context.Context) error {
			began <- struct{}{}
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return nil
		},
		log: slog.New(slog.DiscardHandler),
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 2)
	go func() { stopped <- e.Run(ctx) }()
	go func() { stopped <- terms.run(ctx) }()
	within(t, "the first term", began)

	allow := proxy.Refuse("GET", `/nodes/`, http.StatusInternalServerError, "rpc error: code = Unknown desc = The swarm does not have a leader.")
	asked := len(proxy.Requests())
	for deadline := time.Now().Add(20 * time.Second); len(proxy.Requests()) == asked; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the leader is not asked for")
		}
	}
	select {
	case cause := <-ended:
		t.Fatalf("the first question without an answer ended the term: %v", cause)
	default:
	}
	ahead.Add(int64(10 * time.Second))
	if cause := within(t, "the end of the term", ended); !errors.Is(cause, command.ErrNoQuorum) {
		t.Errorf("it ended because of %v", cause)
	}
	if w := warnings.Warnings(); len(w) != 1 || w[0].GetCode() != engine.WarnNoLeader {
		t.Errorf("warnings: %v", w)
	}
	allow()
	within(t, "the next term", began)
	stop()
	if cause := within(t, "the end", ended); !errors.Is(cause, context.Canceled) {
		t.Errorf("it ended because of %v", cause)
	}
	for range 2 {
		if err := within(t, "the end", stopped); err != nil {
			t.Error(err)
		}
	}
}

func within[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: not within 20 s", what)
		panic("unreachable")
	}
}
