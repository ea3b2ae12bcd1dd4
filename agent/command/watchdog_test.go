package command

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/axion/runner-agent/stack"
)

// logged is a log that several goroutines write to.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// hangsHere is where the test's handler hangs; the log must say so.
func hangsHere(release <-chan struct{}) { <-release }

func TestHungCommand(t *testing.T) {
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r := newRigWith(t, newConfigs(), "a1", filepath.Join(t.TempDir(), "journal.db"), 2, clock)
	warn, log := &codes{set: map[string]bool{}}, &logged{}
	r.runner.deps.Warn, r.runner.deps.Log = warn, slog.New(slog.NewTextHandler(log, nil))
	release := make(chan struct{})
	r.stacks.deploy = func(ctx context.Context, d stack.Deployment, _ func(stack.Event)) (stack.Result, error) {
		if d.Stack == "shop" {
			hangsHere(release) // and not for ctx
		}
		return stack.Result{Status: stack.Converged}, ctx.Err()
	}
	m := message(t, "m1", deploy("shop", 1)) // takes a minute at most
	term, end := context.WithCancel(r.ctx)
	r.runner.Handle(term, m)
	r.until("the deployment", func() bool { return len(r.stacks.all()) == 1 })
	end()
	done := r.runner.Handle(r.ctx, m) // the next term: it waits behind the one that hangs
	at := func(since time.Duration, hung, over bool) {
		t.Helper()
		ahead.Store(int64(since))
		err := r.runner.lookForHung()
		if warn.has("command_hung") != hung || (err != nil) != over {
			t.Errorf("after %s: hung %t, %v", since, warn.has("command_hung"), err)
		}
		if over {
			wantCode(t, err, "command_hung")
		}
	}
	at(2*time.Minute, false, false)
	at(3*time.Minute+30*time.Second, true, false)
	if text := log.String(); strings.Count(text, "command hangs") != 1 || !strings.Contains(text, "hangsHere") || !strings.Contains(text, "command_id=m1") {
		t.Errorf("the log says\n%s", text)
	}
	at(7*time.Minute, true, false)
	if n := strings.Count(log.String(), "command hangs"); n != 1 {
		t.Errorf("told %d times", n)
	}
	at(9*time.Minute, true, true)
	// It comes back after all.
	close(release)
	r.outcome("m1")
	r.settled(done)
	at(9*time.Minute, false, false)
}

// TestWaitingIsNotHanging: for a broker, for a journal, for Kafka's acknowledgement.
func TestWaitingIsNotHanging(t *testing.T) {
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r := newRigWith(t, newConfigs(), "a1", filepath.Join(t.TempDir(), "journal.db"), 2, clock)
	r.runner.Handle(r.ctx, message(t, "m1", deploy("shop", 1)))
	r.until("an outcome that nobody takes", func() bool { return r.journal.Len() == 2 })
	r.topic.mu.Lock()
	r.topic.down = true
	r.topic.mu.Unlock()
	m := message(t, "m2", deploy("blog", 1))
	m.Topic = names.GetAgentTopic()
	r.runner.Handle(r.ctx, m)
	for range 3 {
		asked := r.topic.asked.Load()
		ahead.Add(int64(time.Hour))
		r.until("another attempt", func() bool { return r.topic.asked.Load() > asked+1 })
		if err := r.runner.lookForHung(); err != nil {
			t.Error(err)
		}
	}
}
