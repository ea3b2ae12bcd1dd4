package fence

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/axion/runner-agent/test/engineproxy"
)

func (m *manager) cancel(id string) {
	m.t.Helper()
	if err := m.fence.Cancel(m.t.Context(), m.stack, id); err != nil {
		m.t.Fatalf("cancel %s: %v", id, err)
	}
}

// TestCancelledAtEveryStep: one request of the owner is held, another manager cancels the command, and the owner goes on. Whatever it had done, it can decide nothing
// but that the command was cancelled, and writes nothing more than what was under way.
func TestCancelledAtEveryStep(t *testing.T) {
	for name, tc := range map[string]struct {
		method, path string
		nth          int
		want         map[string]string
	}{
		"its first list":         {"GET", `/services\?`, 1, map[string]string{"a": "1 1/1"}},
		"its renewal":            {"POST", `/configs/.*/update`, 2, map[string]string{"a": "1 1/1"}}, // the first is its claim
		"an update":              {"POST", `/services/[^/]+/update`, 1, map[string]string{"a": "2 2/1"}},
		"all is written":         {"POST", `/configs/.*/update`, 4, map[string]string{"a": "2 2/1"}},
		"its outcome's decision": {"POST", `/configs/.*/update`, 5, map[string]string{"a": "2 2/1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			proxy := engineproxy.New(t, engineSocket)
			owner, other := r.manager("owner", 1, proxy.Client(t)), r.manager("other", 1, r.api)
			other.deploy("c1", 1, services{"a": "1"})
			held := proxy.Hold(tc.method, tc.path, tc.nth)
			done := make(chan error, 1)
			go func() {
				c := owner.claim(r.command("c2", 2, services{"a": "2"}))
				defer c.Release()
				_ = owner.apply(t.Context(), c, services{"a": "2"})
				err := c.Decide(t.Context(), StatusSucceeded, nil)
				if err == nil {
					err = fmt.Errorf("it decided that it succeeded")
				}
				if stopped := c.Stopped(); stopped == nil {
					err = fmt.Errorf("the claim is not stopped: %w", err)
				}
				if err := c.Decide(t.Context(), StatusCancelled, []byte("detail")); err != nil {
					t.Errorf("the cancellation cannot be decided: %v", err)
				}
				done <- err
			}()
			held.Reached(t)
			other.cancel("c2")
			held.Land(t)
			wantCode(t, <-done, CodeCancelled)
			r.wantState(tc.want)
			h := r.head()
			if o, ok := h.outcome("c2"); !ok || o.Status != StatusCancelled || h.Base[r.stack+"_a"] != "1/1" || len(h.Cancelled) != 0 || h.atRest() {
				t.Errorf("head is %+v", h)
			}
			wantCode(t, other.fence.Cancel(t.Context(), r.stack, "c2"), CodeDecided)
			// What is there of it is written over, whether or not it differs.
			other.deploy("c3", 3, services{"a": "1"})
			r.wantState(map[string]string{"a": "1 3/1"})
		})
	}
}

// neverRenews stops the manager's clock: its claims are for ever fresh, and it learns what it learns by looking.
func (m *manager) neverRenews() {
	now := time.Now()
	m.fence.deps.Now = func() time.Time { return now }
}

// TestKeepNoticesACancellation: the holder that only waits is told.
func TestKeepNoticesACancellation(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	owner, other := r.manager("owner", 1, r.api), r.manager("other", 1, r.api)
	owner.neverRenews()
	c := owner.claim(r.command("c1", 1, services{"a": "1"}))
	defer c.Release()
	ctx, end := c.Context(t.Context())
	defer end(nil)
	go c.Keep(t.Context())
	other.cancel("c1")
	select {
	case <-ctx.Done():
		wantCode(t, context.Cause(ctx), CodeCancelled)
	case <-time.After(patience):
		t.Fatal("it does not notice")
	}
}

// TestKeepNoticesALoss before it has to write.
func TestKeepNoticesALoss(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	owner, other := r.manager("owner", 1, r.api), r.manager("other", 2, r.api)
	owner.neverRenews()
	cmd := r.command("c1", 1, services{"a": "1"})
	c := owner.claim(cmd)
	defer c.Release()
	ctx, end := c.Context(t.Context())
	defer end(nil)
	go c.Keep(t.Context())
	defer other.claim(cmd).Release()
	select {
	case <-ctx.Done():
		wantCode(t, context.Cause(ctx), CodeLost)
	case <-time.After(patience):
		t.Fatal("it does not notice")
	}
}

// TestCancelledBeforeTheFirstClaim: a head that only holds cancellations is no generation, and goes when nothing ever comes of it.
func TestCancelledBeforeTheFirstClaim(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	r.create("old", "7/1") // its head was lost
	for i := range KeepCancelled + 2 {
		m.cancel(fmt.Sprint("c", i))
	}
	h := r.head()
	if h.Generation != 0 || len(h.Cancelled) != KeepCancelled || h.isCancelled("c1") || !h.isCancelled("c2") {
		t.Fatalf("head is %+v", h)
	}
	if o, begun, err := m.fence.Look(t.Context(), r.stack, "c2"); o != nil || begun || err != nil {
		t.Errorf("a look says %v, %t, %v", o, begun, err)
	}
	if err := m.fence.round(t.Context(), 1, true); err != nil {
		t.Fatal(err)
	}
	r.wantState(map[string]string{"old": "x 7/1"})
	// The services still know the newest generation.
	claim := func(id string, generation uint64) (*Outcome, error) {
		c, o, err := m.fence.Claim(t.Context(), r.command(id, generation, services{"a": "1"}))
		if c != nil {
			c.Release()
			t.Fatalf("%s was given a claim", id)
		}
		return o, err
	}
	_, err := claim("c3", 6)
	wantCode(t, err, CodeSuperseded)
	o, err := claim("c4", 0)
	if err != nil || o == nil || o.Status != StatusCancelled || o.Generation != 8 {
		t.Errorf("the cancelled one: %v, %v", o, err)
	}
	if h := r.head(); h.Generation != 8 || h.isCancelled("c4") || !h.isCancelled("c5") || h.Base[r.stack+"_old"] != "7/1" || h.Manifest != "" || !h.Removed.IsZero() {
		t.Errorf("head is %+v", h)
	}
	m.deploy("d1", 0, services{"a": "1"})
	r.wantState(map[string]string{"a": "1 9/1"})
}

// TestUnusedCancellationIsForgotten with its head.
func TestUnusedCancellationIsForgotten(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	m.cancel("c1")
	for _, age := range []time.Duration{keepRemoved - time.Hour, keepRemoved + time.Hour} {
		m.fence.deps.Now = func() time.Time { return time.Now().Add(age) }
		if err := m.fence.round(t.Context(), 1, true); err != nil {
			t.Fatal(err)
		}
		at, err := read(t.Context(), r.api, r.stack)
		if err != nil || (at == nil) != (age > keepRemoved) {
			t.Errorf("after %s the head is %v, %v", age, at, err)
		}
	}
}

// TestCancelOfARemovedStack keeps it removed; one whose head is about to go is made anew.
func TestCancelOfARemovedStack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	m.deploy("c1", 1, services{"a": "1"})
	m.remove("c2", 2)
	removed := r.head().Removed
	m.cancel("c3")
	cmd := r.command("c3", 3, services{"a": "3"})
	cmd.GroupGeneration = 1
	if _, o, err := m.fence.Claim(t.Context(), cmd); err != nil || o == nil || o.Status != StatusCancelled {
		t.Fatalf("%v, %v", o, err)
	}
	if h := r.head(); h.Generation != 3 || !h.Removed.Equal(removed) || !h.atRest() {
		t.Errorf("head is %+v", h)
	}
	at, err := read(t.Context(), r.api, r.stack)
	if err != nil {
		t.Fatal(err)
	}
	dead := at.head.clone()
	dead.Dead = true
	if _, err = swap(t.Context(), r.api, at, dead); err != nil {
		t.Fatal(err)
	}
	m.cancel("c4")
	if h := r.head(); h.Dead || h.Generation != 3 || !h.isCancelled("c4") {
		t.Errorf("head is %+v", h)
	}
}

// TestAmbiguousCancellation: it took effect, its answer was lost.
func TestAmbiguousCancellation(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	proxy := engineproxy.New(t, engineSocket)
	m := r.manager("m", 1, proxy.Client(t))
	created, updated := proxy.DropAnswer("POST", `/configs/create`, 1), proxy.DropAnswer("POST", `/configs/.*/update`, 1)
	m.cancel("c1")
	m.cancel("c2")
	created.Reached(t)
	updated.Reached(t)
	if h := r.head(); len(h.Cancelled) != 2 {
		t.Errorf("cancelled are %v", h.Cancelled)
	}
}
