package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/test/engineproxy"
)

func (r *rig) web() string { return r.stack + "_web" }

func (r *rig) service() swarm.Service {
	r.t.Helper()
	s, _, err := r.api.ServiceInspectWithRaw(context.Background(), r.web(), swarm.ServiceInspectOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) wantRestarts(want uint64) {
	r.t.Helper()
	if got := r.service().Spec.TaskTemplate.ForceUpdate; got != want {
		r.t.Errorf("ForceUpdate is %d, want %d", got, want)
	}
}

func (m *manager) once(id string) Once {
	return Once{ID: id, Deadline: m.fence.deps.Now().Add(time.Hour), GroupGeneration: m.group}
}

// restart leads a command to its outcome, as long as the claim is not lost.
func (m *manager) restart(ctx context.Context, cmd Once) (*Outcome, error) {
	c, outcome, err := m.fence.Recent().Claim(ctx, cmd)
	if c == nil {
		return outcome, err
	}
	defer c.Release()
	return nil, m.restartUnder(ctx, c)
}

func (m *manager) restartUnder(ctx context.Context, c *OnceClaim) error {
	err := m.forceUpdate(ctx, c)
	status := StatusSucceeded
	switch f := failure.Of(err); {
	case ctx.Err() != nil:
		return ctx.Err()
	case f != nil && f.Code == CodeLost:
		return err
	case f != nil:
		status = f.Code
	}
	return errors.Join(err, c.Decide(ctx, status, []byte("detail")))
}

// forceUpdate does the work, repeating passes.
func (m *manager) forceUpdate(ctx context.Context, c *OnceClaim) error {
	ctx, cancel := c.Context(ctx)
	defer cancel(nil)
	for {
		e, err := stack.New(stack.Config{WorkDir: m.t.TempDir(), Poll: 100 * time.Millisecond}, stack.Deps{Client: c.Client(m.api), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		_, err = e.Restart(ctx, m.web(), patience, nil)
		if err == nil {
			err = c.Applied(ctx)
		}
		if f := failure.Of(err); f == nil || f.Code != CodeRepeat {
			return err
		}
	}
}

// ended asks for the command until it has an outcome.
func (m *manager) ended(cmd Once) Outcome {
	m.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); pause(m.t.Context(), swapPause) {
		switch o, err := m.restart(m.t.Context(), cmd); {
		case o != nil:
			return *o
		case err != nil && failure.ClassOf(err) != failure.Unavailable && failure.Of(err).Code != CodeLost:
			m.t.Fatalf("%s: %v", cmd.ID, err)
		}
	}
	m.t.Fatalf("%s has no outcome", cmd.ID)
	return Outcome{}
}

// TestRestartKilledAtEveryStep: the first manager dies with one of its requests on its way. The request lands before, or after, another manager is given the command,
// and two deployments come in between, which take the restart's label off the service and its past, or none. The service is restarted once.
func TestRestartKilledAtEveryStep(t *testing.T) {
	for name, hold := range map[string]struct {
		method, path string
		nth          int
	}{
		"its claim":     {"POST", `/configs/create`, 1},
		"its look":      {"GET", `/services/[^?]+`, 1},
		"its plan":      {"POST", `/configs/.*/update`, 1},
		"its write":     {"POST", `/services/.*/update`, 1},
		"having wrote":  {"POST", `/configs/.*/update`, 2},
		"its outcome":   {"POST", `/configs/.*/update`, 3},
		"after its end": {"GET", `/never`, 1},
	} {
		for _, lands := range []string{"before", "after"} {
			for _, deployed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/landing %s/deployed %t", name, lands, deployed), func(t *testing.T) {
					t.Parallel()
					r := newRig(t)
					proxy := engineproxy.New(t, engineSocket)
					first, second := r.manager("first", 1, proxy.Client(t)), r.manager("second", 2, r.api)
					second.deploy("c1", 1, services{"web": "1"})
					was := r.service()
					held := proxy.Hold(hold.method, hold.path, hold.nth)
					dying, kill := context.WithCancel(t.Context())
					died := make(chan struct{})
					cmd := first.once("r1")
					go func() { defer close(died); _, _ = first.restart(dying, cmd) }()
					land := func() {}
					if hold.path == "/never" {
						<-died
					} else {
						held.Reached(t)
						land = func() { held.Land(t) }
					}
					kill()
					<-died
					if lands == "before" {
						land()
					}
					want := "1/1"
					if deployed {
						second.deploy("c2", 2, services{"web": "2"})
						second.deploy("c3", 3, services{"web": "3"})
						want = "3/1"
					}
					cmd.GroupGeneration = second.group
					if o := second.ended(cmd); o.Status != StatusSucceeded || string(o.Detail) != "detail" {
						t.Errorf("outcome is %+v", o)
					}
					r.wantRestarts(1)
					if lands == "after" {
						land()
					}
					if o := first.ended(cmd); o.Status != StatusSucceeded {
						t.Errorf("the first manager is told %+v", o)
					}
					r.wantRestarts(1)
					if s := r.service(); s.ID != was.ID || s.Spec.Labels[LabelGeneration] != want {
						t.Errorf("the service is %s with %v", s.ID, s.Spec.Labels)
					}
					second.deploy("c4", 4, services{"web": "4"}) // nothing stands in its way
					r.wantRestarts(1)
					r.wantState(map[string]string{"web": "4 4/1"})
				})
			}
		}
	}
}

// TestRestartHeldWriteOfALivingOwner: it is refused, the owner learns that it has lost the command, and is told the outcome of its successor.
func TestRestartHeldWriteOfALivingOwner(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	proxy := engineproxy.New(t, engineSocket)
	first, second := r.manager("first", 1, proxy.Client(t)), r.manager("second", 2, r.api)
	second.deploy("c1", 1, services{"web": "1"})
	held := proxy.Hold("POST", `/services/.*/update`, 1)
	cmd := first.once("r1")
	done := make(chan error, 1)
	go func() { _, err := first.restart(t.Context(), cmd); done <- err }()
	held.Reached(t)
	cmd.GroupGeneration = 2
	second.ended(cmd)
	if status := held.Land(t); status != 500 {
		t.Errorf("the late write was answered with %d", status)
	}
	wantCode(t, <-done, CodeLost)
	if o := first.ended(cmd); o.Status != StatusSucceeded {
		t.Errorf("outcome is %+v", o)
	}
	r.wantRestarts(1)
	if s := r.service(); s.Spec.Labels[LabelRestart] != "r1" || s.Spec.Labels[LabelGeneration] != "1/1" {
		t.Errorf("labels are %v", s.Spec.Labels)
	}
}

// TestRestartsAtOnce: two managers with the same command, of the same consumer group generation or not, do it once; with two commands, twice; a scaling goes on beside them.
func TestRestartsAtOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		ids    [2]string
		groups [2]int32
		want   uint64
	}{
		"one command":            {[2]string{"r1", "r1"}, [2]int32{1, 2}, 1},
		"one command, one group": {[2]string{"r1", "r1"}, [2]int32{1, 1}, 1},
		"two commands":           {[2]string{"r1", "r2"}, [2]int32{1, 2}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			third := r.manager("third", 1, r.api)
			third.deploy("c1", 1, services{"web": "1"})
			var wg sync.WaitGroup
			for i, owner := range []string{"first", "second"} {
				m := r.manager(owner, tc.groups[i], r.api)
				wg.Go(func() {
					if o := m.ended(m.once(tc.ids[i])); o.Status != StatusSucceeded {
						t.Errorf("%s: outcome is %+v", owner, o)
					}
				})
			}
			third.deploy("c2", 2, services{"web": "2"})
			wg.Wait()
			r.wantRestarts(tc.want)
			r.wantState(map[string]string{"web": "2 2/1"})
		})
	}
}

// TestRestartIsHeld: who was given the topic in an older group generation takes no command of somebody who shows that he is alive, and takes it once he does not.
func TestRestartIsHeld(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	newer, older := r.manager("newer", 2, r.api), r.manager("older", 1, r.api)
	older.fence.cfg.Standstill = renewEvery + 2*time.Second
	c, _, err := newer.fence.Recent().Claim(t.Context(), newer.once("r1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	keeping, stop := context.WithCancel(t.Context())
	kept := make(chan struct{})
	go func() { defer close(kept); c.Keep(keeping) }()
	claim := func() error {
		c, o, err := older.fence.Recent().Claim(t.Context(), older.once("r1"))
		if o != nil {
			t.Fatalf("outcome is %+v", o)
		}
		if c != nil {
			c.Release()
		}
		return err
	}
	for begun := time.Now(); time.Since(begun) < 2*older.fence.cfg.Standstill; pause(t.Context(), time.Second) {
		wantCode(t, claim(), CodeHeld)
	}
	stop()
	<-kept
	r.until("the older member", patience, func() bool { return claim() == nil })
	wantCode(t, c.Decide(t.Context(), StatusSucceeded, nil), CodeLost)
}

// TestRestartOfOneGroupGeneration: two that were given the topic in the same one do not take the command from each other; a later life of the same agent goes on at once.
func TestRestartOfOneGroupGeneration(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first, other, again := r.manager("first", 1, r.api), r.manager("other", 1, r.api), r.manager("first", 1, r.api)
	for _, step := range []struct {
		m    *manager
		code string
	}{{first, ""}, {other, CodeHeld}, {again, ""}} {
		c, _, err := step.m.fence.Recent().Claim(t.Context(), step.m.once("r1"))
		if f := failure.Of(err); (f == nil) != (step.code == "") || f != nil && f.Code != step.code {
			t.Errorf("got %v, want %q", err, step.code)
		}
		if c != nil {
			c.Release()
		}
	}
}

// TestRestartExpired: past its deadline a command that nobody has begun ends, for every clock; one that was begun goes on.
func TestRestartExpired(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	m.deploy("c1", 1, services{"web": "1"})
	fast, slow := r.manager("fast", 1, r.api), r.manager("slow", 2, r.api)
	ahead := func(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(d) } }
	fast.fence.deps.Now = ahead(50 * time.Minute)
	late := Once{ID: "late", Deadline: time.Now().Add(40 * time.Minute), GroupGeneration: 2, Detail: func(status string, _ uint64) []byte { return []byte("it is " + status) }}
	for _, manager := range []*manager{fast, slow} {
		if o := manager.ended(late); o.Status != StatusExpired || string(o.Detail) != "it is expired" {
			t.Errorf("outcome is %+v", o)
		}
	}
	begun := Once{ID: "begun", Deadline: time.Now().Add(40 * time.Minute), GroupGeneration: 2}
	c, _, err := slow.fence.Recent().Claim(t.Context(), begun)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Client(r.api).ServiceInspectWithRaw(t.Context(), r.web(), swarm.ServiceInspectOptions{}); err != nil { // its write may be on its way
		t.Fatal(err)
	}
	c.Release()
	begun.GroupGeneration = 3
	if o := fast.ended(begun); o.Status != StatusSucceeded {
		t.Errorf("outcome is %+v", o)
	}
	r.wantRestarts(1)
	// When it is over for every clock, and its end as long ago, it is dropped, and still not run.
	fast.fence.deps.Now = ahead(50*time.Minute + ClockTolerance + time.Minute)
	other := fast.once("other")
	if o := fast.ended(other); o.Status != StatusSucceeded {
		t.Errorf("outcome is %+v", o)
	}
	if o, begun, err := fast.fence.Recent().Look(t.Context(), "late"); o != nil || begun || err != nil {
		t.Errorf("it is still there: %v %t %v", o, begun, err)
	}
	if o := fast.ended(late); o.Status != StatusExpired {
		t.Errorf("outcome is %+v", o)
	}
	r.wantRestarts(2)
}

// TestRecentIsBounded: the ring takes no more commands than it may hold, whatever is said of them, and each waits until there is room.
func TestRecentIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	err := m.fence.Recent().change(t.Context(), func(g *ring) (bool, error) {
		for i := range KeepRecent {
			g.entries = append(g.entries, &entry{
				Command: fmt.Sprintf("%0128d", i), Deadline: time.Now().Add(time.Hour), Owner: strings.Repeat("o", 40), Service: strings.Repeat("s", 25),
				Status: StatusSucceeded, Detail: []byte(strings.Repeat("d", MaxDetailBytes)),
			})
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	at, g, err := m.fence.Recent().read(t.Context())
	if err != nil || len(g.entries) != KeepRecent || len(at.spec.Labels[labelRecent]) > maxRecentBytes {
		t.Fatalf("%d commands in %d bytes, %v", len(g.entries), len(at.spec.Labels[labelRecent]), err)
	}
	if first, last := g.entries[0], g.entries[KeepRecent-1]; first.Detail != nil || last.Detail == nil || first.Status != StatusSucceeded {
		t.Errorf("the oldest details should go first: %d and %d bytes", len(first.Detail), len(last.Detail))
	}
	_, _, err = m.fence.Recent().Claim(t.Context(), m.once("r1"))
	wantCode(t, err, CodeRecentFull)
	if failure.ClassOf(err) != failure.Unavailable {
		t.Errorf("a full ring must have the command wait: %v", err)
	}
	m.fence.deps.Now = func() time.Time { return time.Now().Add(time.Hour + ClockTolerance + time.Minute) }
	c, _, err := m.fence.Recent().Claim(t.Context(), m.once("r1"))
	if err != nil {
		t.Fatal(err)
	}
	c.Release()
	if _, g, _ := m.fence.Recent().read(t.Context()); len(g.entries) != 1 {
		t.Errorf("%d commands are left", len(g.entries))
	}
}

// TestRestartOfNothing: a service that is not there, or is about to go, is not written to; one that was made anew under the name is another one.
func TestRestartOfNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	_, err := m.restart(t.Context(), m.once("r1"))
	wantCode(t, err, "no_such_service")
	m.deploy("c1", 1, services{"web": "1"})
	c, _, err := m.fence.Recent().Claim(t.Context(), m.once("r2"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	if _, _, err := c.Client(r.api).ServiceInspectWithRaw(t.Context(), r.web(), swarm.ServiceInspectOptions{}); err != nil {
		t.Fatal(err)
	}
	m.remove("c2", 2)
	m.deploy("c3", 3, services{"web": "3"})
	wantCode(t, m.restartUnder(t.Context(), c), CodeServiceGone)
	r.wantRestarts(0)
	s := r.service()
	s.Spec.Labels[LabelTombstone] = "4/1"
	if _, err := r.api.ServiceUpdate(t.Context(), s.ID, s.Version, s.Spec, swarm.ServiceUpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = m.restart(t.Context(), m.once("r3"))
	wantCode(t, err, "no_such_service")
	r.wantRestarts(0)
}

// stale is the client of an engine that has not heard of a service's last changes.
type stale struct {
	API
	service swarm.Service
}

func (s stale) ServiceInspectWithRaw(context.Context, string, swarm.ServiceInspectOptions) (swarm.Service, []byte, error) {
	return s.service, nil, nil
}

// TestRestartReadsWhatIsOld: a manager that sees an older service than the command's last owner leaves that one's plan alone; with its own nobody could tell any more
// whether the write has landed.
func TestRestartReadsWhatIsOld(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	m.deploy("c1", 1, services{"web": "1"})
	old := r.service()
	m.ended(m.once("r1"))
	for _, look := range []struct {
		api  API
		code string
	}{{r.api, ""}, {stale{r.api, old}, CodeRepeat}} {
		c, _, err := m.fence.Recent().Claim(t.Context(), m.once("r2"))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = c.Client(look.api).ServiceInspectWithRaw(t.Context(), r.web(), swarm.ServiceInspectOptions{})
		if f := failure.Of(err); (f == nil) != (look.code == "") || f != nil && f.Code != look.code {
			t.Errorf("got %v, want %q", err, look.code)
		}
		if e := c.now(); e.Target != 2 || e.Written {
			t.Errorf("the plan is %+v", e)
		}
		c.Release()
	}
	m.ended(m.once("r2"))
	r.wantRestarts(2)
}

// TestRestartUndoneBySwarm: the owner dies right after its write, whose tasks fail, and Swarm goes back. Its successor tells so and does not try again.
func TestRestartUndoneBySwarm(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	proxy := engineproxy.New(t, engineSocket)
	first, second := r.manager("first", 1, proxy.Client(t)), r.manager("second", 2, r.api)
	one := uint64(1)
	_, err := r.api.ServiceCreate(t.Context(), swarm.ServiceSpec{
		Annotations:    swarm.Annotations{Name: r.web(), Labels: map[string]string{labelNamespace: r.stack}},
		TaskTemplate:   swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: r.image, Args: []string{"exit", "3"}}, RestartPolicy: &swarm.RestartPolicy{Condition: "none"}},
		Mode:           swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &one}},
		UpdateConfig:   &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionRollback, Monitor: 2 * time.Second},
		RollbackConfig: &swarm.UpdateConfig{Parallelism: 1, Monitor: time.Nanosecond, FailureAction: swarm.UpdateFailureActionContinue},
	}, swarm.ServiceCreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	held := proxy.Hold("POST", `/configs/.*/update`, 2)
	dying, kill := context.WithCancel(t.Context())
	died := make(chan struct{})
	cmd := first.once("r1")
	go func() { defer close(died); _, _ = first.restart(dying, cmd) }()
	held.Reached(t)
	kill()
	<-died
	r.wantRestarts(1)
	r.until("the rollback", patience, func() bool {
		u := r.service().UpdateStatus
		return u != nil && u.State == swarm.UpdateStateRollbackCompleted
	})
	r.wantRestarts(0)
	undone := r.service().Version
	cmd.GroupGeneration = 2
	_, err = second.restart(t.Context(), cmd)
	wantCode(t, err, "rolled_back")
	held.Land(t)
	if o := second.ended(cmd); o.Status != "rolled_back" {
		t.Errorf("outcome is %+v", o)
	}
	if now := r.service().Version; now != undone {
		t.Errorf("the service was at version %d and is at %d", undone.Index, now.Index)
	}
}

// TestRestartCancelled before it comes, while somebody works on it, and too late.
func TestRestartCancelled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	owner, other := r.manager("owner", 1, r.api), r.manager("other", 1, r.api)
	owner.deploy("c1", 1, services{"web": "1"})
	if known, err := other.fence.Recent().Cancel(t.Context(), "r1"); known || err != nil {
		t.Fatal(known, err)
	}
	for range 2 {
		if o := owner.ended(owner.once("r1")); o.Status != StatusCancelled {
			t.Errorf("outcome is %+v", o)
		}
	}
	c, _, err := owner.fence.Recent().Claim(t.Context(), owner.once("r2"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	ctx, end := c.Context(t.Context())
	defer end(nil)
	go c.Keep(t.Context())
	if known, err := other.fence.Recent().Cancel(t.Context(), "r2"); !known || err != nil {
		t.Fatal(known, err)
	}
	select {
	case <-ctx.Done():
		wantCode(t, context.Cause(ctx), CodeLost)
	case <-time.After(patience):
		t.Fatal("the holder does not notice")
	}
	wantCode(t, owner.restartUnder(t.Context(), c), CodeLost)
	if o := owner.ended(owner.once("r2")); o.Status != StatusCancelled {
		t.Errorf("outcome is %+v", o)
	}
	r.wantRestarts(0)
	owner.ended(owner.once("r3"))
	_, err = other.fence.Recent().Cancel(t.Context(), "r3")
	wantCode(t, err, CodeDecided)
	r.wantRestarts(1)
}

// TestRestartWithLostAnswers: each change takes effect, and its answer is lost.
func TestRestartWithLostAnswers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	proxy := engineproxy.New(t, engineSocket)
	m := r.manager("m", 1, proxy.Client(t))
	r.manager("other", 1, r.api).deploy("c1", 1, services{"web": "1"})
	steps := []*engineproxy.Held{proxy.DropAnswer("POST", `/configs/create`, 1), proxy.DropAnswer("POST", `/services/.*/update`, 1)}
	for n := range 3 {
		steps = append(steps, proxy.DropAnswer("POST", `/configs/.*/update`, n+1)) // the plan, that it wrote, the outcome
	}
	if _, err := m.restart(t.Context(), m.once("r1")); err != nil {
		t.Fatal(err)
	}
	for _, s := range steps {
		s.Reached(t)
	}
	r.wantRestarts(1)
	if o := m.ended(m.once("r1")); o.Status != StatusSucceeded {
		t.Errorf("outcome is %+v", o)
	}
}

// TestLanded is the table of what a service says of a write.
func TestLanded(t *testing.T) {
	before := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web", Labels: map[string]string{"a": "b"}}, TaskTemplate: swarm.TaskSpec{ForceUpdate: 4}}
	spec := func(force uint64, labels map[string]string) swarm.ServiceSpec {
		s := before
		s.TaskTemplate.ForceUpdate, s.Labels = force, labels
		return s
	}
	r1, r2 := map[string]string{LabelRestart: "r1"}, map[string]string{LabelRestart: "r2"}
	at := time.Unix(1e9, 0)
	rollback := &swarm.UpdateStatus{State: swarm.UpdateStateRollbackCompleted, StartedAt: &at}
	for name, tc := range map[string]struct {
		version  uint64
		spec     swarm.ServiceSpec
		previous *swarm.ServiceSpec
		update   *swarm.UpdateStatus
		other    *entry
		want     bool
	}{
		"the same version":                      {10, before, nil, nil, nil, false},
		"its label":                             {11, spec(5, r1), nil, nil, nil, true},
		"its label, and scaled since":           {12, spec(5, r1), &before, nil, nil, true},
		"deployed since":                        {12, spec(5, nil), nil, nil, nil, true},
		"rolled back by hand since":             {12, before, &swarm.ServiceSpec{Annotations: swarm.Annotations{Labels: r1}}, nil, nil, true},
		"deployed before":                       {11, spec(4, nil), &before, nil, nil, false},
		"only its update status moved":          {11, before, nil, &swarm.UpdateStatus{State: swarm.UpdateStateCompleted}, nil, false},
		"rolled back by Swarm since":            {13, before, nil, rollback, nil, true},
		"rolled back by Swarm, of another's":    {13, spec(4, map[string]string{"older": "x"}), nil, rollback, nil, false},
		"restarted by another command":          {11, spec(5, r2), nil, nil, &entry{Command: "r2", Service: "s", Target: 5}, false},
		"by another one, and deployed since":    {12, spec(5, nil), nil, nil, &entry{Command: "r2", Service: "s", Target: 5, Written: true}, false},
		"by another one that was first":         {12, spec(5, nil), nil, nil, &entry{Command: "r2", Service: "s", Target: 4, Written: true}, true},
		"the number is another service's, too":  {12, spec(5, nil), nil, nil, &entry{Command: "r2", Service: "t", Target: 5, Written: true}, true},
		"the other one with the number is late": {12, spec(5, nil), nil, nil, &entry{Command: "r2", Service: "s", Target: 5}, true},
	} {
		t.Run(name, func(t *testing.T) {
			e := &entry{Command: "r1"}
			e.plan(swarm.Service{ID: "s", Meta: swarm.Meta{Version: swarm.Version{Index: 10}}, Spec: before})
			g := &ring{entries: []*entry{e}}
			if tc.other != nil {
				g.entries = append(g.entries, tc.other)
			}
			s := swarm.Service{ID: "s", Meta: swarm.Meta{Version: swarm.Version{Index: tc.version}}, Spec: tc.spec, PreviousSpec: tc.previous, UpdateStatus: tc.update}
			if got := g.landed(e, s); got != tc.want {
				t.Errorf("got %t", got)
			}
		})
	}
	// A number that Swarm took back is made again, and is then nobody else's.
	g := &ring{entries: []*entry{
		{Command: "undone", Service: "s", Version: 9, Target: 5, Written: true},
		{Command: "stands", Service: "s", Version: 8, Target: 4, Written: true},
		{Command: "newer than the look", Service: "s", Version: 10, Target: 5, Written: true},
		{Command: "not written", Service: "s", Version: 9, Target: 5},
	}}
	g.free(swarm.Service{ID: "s", Meta: swarm.Meta{Version: swarm.Version{Index: 10}}, Spec: before})
	for i, want := range []uint64{0, 4, 5, 5} {
		if e := g.entries[i]; e.Target != want {
			t.Errorf("%s: number %d, want %d", e.Command, e.Target, want)
		}
	}
}

// TestRestartReadBeforeAnother: a command looks at the service before another's write, and plans after it. The other's number stays the other's.
func TestRestartReadBeforeAnother(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	m.deploy("c1", 1, services{"web": "1"})
	old := r.service()
	m.ended(m.once("r1"))
	c, _, err := m.fence.Recent().Claim(t.Context(), m.once("r2"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err = c.Client(stale{r.api, old}).ServiceInspectWithRaw(t.Context(), r.web(), swarm.ServiceInspectOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Release()
	m.ended(m.once("r2"))
	r.wantRestarts(2)
}

func FuzzParseRing(f *testing.F) {
	g := &ring{entries: []*entry{{Command: "r1", Deadline: time.Unix(1e9, 0), Owner: "a", Service: "s", Version: 3, Target: 1, Written: true, Status: StatusSucceeded}}, cancelled: []string{"r2"}}
	spec, err := g.spec("ring")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(spec.Labels[labelRecent], spec.Labels[labelCancelled])
	f.Add("[null]", "")
	f.Fuzz(func(t *testing.T, recent, cancelled string) {
		g, err := parseRing(&object{spec: swarm.ConfigSpec{Annotations: swarm.Annotations{Labels: map[string]string{labelRecent: recent, labelCancelled: cancelled}}}})
		if err != nil {
			return
		}
		g.forget(time.Now())
		again, err := g.spec("ring")
		if err != nil {
			return
		}
		twice, err := parseRing(&object{spec: again})
		if err != nil || len(twice.entries) != len(g.entries) || len(twice.cancelled) != len(g.cancelled) {
			t.Errorf("%v\n%v\n%v", err, twice, g)
		}
	})
}
