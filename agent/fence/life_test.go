package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/test/engineproxy"
)

func (r *rig) until(what string, within time.Duration, f func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(within); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain for %s; services are %v", what, r.state())
		}
	}
}

// TestKilledWithAWriteThatLandsLate: the owner is gone, but its request is on its way, and lands after the next generation's outcome.
func TestKilledWithAWriteThatLandsLate(t *testing.T) {
	for name, tc := range map[string]struct{ method, path string }{
		"update": {"POST", `/services/[^/]+/update`},
		"create": {"POST", `/services/create`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			proxy := engineproxy.New(t, engineSocket)
			second := r.manager("second", 1, r.api)
			second.deploy("c1", 1, services{"a": "1"})
			gen2, gen3 := services{"a": "2", "b": "2"}, services{"a": "3"}
			held := proxy.Hold(tc.method, tc.path, 1)
			first := r.manager("first", 1, proxy.Client(t))
			c := first.claim(r.command("c2", 2, gen2))
			dying, kill := context.WithCancel(t.Context())
			died := make(chan struct{})
			go func() { defer close(died); _ = first.apply(dying, c, gen2) }()
			held.Reached(t)
			kill()
			<-died
			// The command is delivered to the other manager, which ends it; then comes the next one.
			second.group = 2
			second.deploy("c2", 2, gen2)
			second.deploy("c3", 3, gen3)
			held.Land(t)
			if err := second.fence.round(t.Context(), 2, true); err != nil {
				t.Fatal(err)
			}
			r.wantState(map[string]string{"a": "3 3/1"})
		})
	}
}

// TestSweepComesByItself: Run finds what was created too late.
func TestSweepComesByItself(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	m.deploy("c1", 1, services{"a": "1"})
	m.deploy("c2", 2, services{"a": "2"})
	var err error
	m.fence, err = New(Config{Owner: "m"}, Deps{
		Client: func() API { return r.api }, Assigned: func() (int32, bool) { return 1, true }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	m.fence.only = r.stack
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.fence.Run(ctx) }()
	defer func() { cancel(); <-done }()
	r.until("the heads", 10*time.Second, func() bool {
		for _, h := range m.fence.Heads() {
			if h.Stack == r.stack {
				return h.Generation == 2
			}
		}
		return false
	})
	r.create("late", "1/1")
	r.create("byhand", "") // somebody used docker: no business of the sweep
	r.until("the sweep", 10*time.Second, func() bool { return len(r.state()) == 2 })
	r.wantState(map[string]string{"a": "2 2/1", "byhand": "x "})
	if h := r.head(); h.Phase != Decided || h.Generation != 2 || len(h.Outcomes) != 2 {
		t.Errorf("head is %+v", h)
	}
}

// create makes a service of the stack as an older generation, or a person, would.
func (r *rig) create(name, label string) {
	r.t.Helper()
	labels := map[string]string{labelNamespace: r.stack}
	if label != "" {
		labels[LabelGeneration] = label
	}
	none := uint64(0)
	_, err := r.api.ServiceCreate(r.t.Context(), swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: r.stack + "_" + name, Labels: labels},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: r.image, Env: []string{"MARK=x"}}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &none}},
	}, swarm.ServiceCreateOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestNonceSettlesAnAmbiguousAnswer: a change takes effect and its answer is lost. The owner must find out that it was its own.
func TestNonceSettlesAnAmbiguousAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	proxy := engineproxy.New(t, engineSocket)
	m := r.manager("m", 1, proxy.Client(t))
	steps := []*engineproxy.Held{proxy.DropAnswer("POST", `/configs/create`, 1)} // of the head, or of its manifest
	for n := range 4 {
		steps = append(steps, proxy.DropAnswer("POST", `/configs/.*/update`, n+1)) // renewals after lists, "applied", the outcome
	}
	m.deploy("c1", 1, services{"a": "1"})
	for _, s := range steps {
		s.Reached(t)
	}
	r.wantState(map[string]string{"a": "1 1/1"})
	h := r.head()
	if h.Epoch != 1 || len(h.Outcomes) != 1 || h.Outcomes[0].Status != StatusSucceeded {
		t.Errorf("head is %+v", h)
	}
}

// TestTakeOver: another owner goes on with the same command, from wherever the first one was.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first, second := r.manager("first", 1, r.api), r.manager("second", 2, r.api)
	s := services{"a": "1", "b": "1"}
	cmd := r.command("c1", 1, s)
	c1 := first.claim(cmd)
	if err := first.apply(t.Context(), c1, s); err != nil {
		t.Fatal(err)
	}
	versions := r.versions()
	c2 := second.claim(cmd)
	if !c2.Watching() {
		t.Error("the successor should only watch")
	}
	if err := second.apply(t.Context(), c2, s); err != nil {
		t.Fatal(err)
	}
	wantCode(t, c1.Decide(t.Context(), StatusSucceeded, nil), CodeLost)
	if err := c2.Decide(t.Context(), StatusSucceeded, []byte("detail")); err != nil {
		t.Fatal(err)
	}
	c1.Release()
	c2.Release()
	if now := r.versions(); fmt.Sprint(now) != fmt.Sprint(versions) {
		t.Errorf("services were written again: %v, then %v", versions, now)
	}
	_, o, err := first.fence.Claim(t.Context(), cmd)
	if err != nil || o == nil || o.Status != StatusSucceeded || string(o.Detail) != "detail" {
		t.Errorf("the first owner is told %v, %v", o, err)
	}
	if got := r.head().Base; fmt.Sprint(got) != fmt.Sprint(map[string]string{r.stack + "_a": "1/1", r.stack + "_b": "1/1"}) {
		t.Errorf("base is %v", got)
	}
}

func (r *rig) versions() map[string]uint64 {
	r.t.Helper()
	all, err := listServices(context.Background(), r.api, r.stack)
	if err != nil {
		r.t.Fatal(err)
	}
	versions := map[string]uint64{}
	for _, s := range all {
		versions[s.Spec.Name] = s.Version.Index
	}
	return versions
}

// TestRollbackIsNotRepaired: the owner dies while it writes, Swarm rolls a service back, and the successor leaves it there.
func TestRollbackIsNotRepaired(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	m.deploy("c1", 1, services{"a": "1"})
	s := services{"a": "2", "b": "2"}
	cmd := r.command("c2", 2, s)
	c := m.claim(cmd)
	api := c.Client(r.api)
	listed, err := listServices(t.Context(), api, r.stack)
	if err != nil || len(listed) != 1 {
		t.Fatal(listed, err)
	}
	spec := listed[0].Spec
	spec.TaskTemplate.ContainerSpec.Env = []string{"MARK=2"}
	if _, err := api.ServiceUpdate(t.Context(), listed[0].ID, listed[0].Version, spec, swarm.ServiceUpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.wantState(map[string]string{"a": "2 2/1"})
	written, _, err := r.api.ServiceInspectWithRaw(t.Context(), listed[0].ID, swarm.ServiceInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.api.ServiceUpdate(t.Context(), written.ID, written.Version, written.Spec, swarm.ServiceUpdateOptions{Rollback: "previous"}); err != nil {
		t.Fatal(err)
	}
	r.until("the rollback", 20*time.Second, func() bool {
		now, _, err := r.api.ServiceInspectWithRaw(t.Context(), written.ID, swarm.ServiceInspectOptions{})
		return err == nil && now.UpdateStatus != nil && strings.HasPrefix(string(now.UpdateStatus.State), "rollback_")
	})
	c.Release()
	again := m.claim(cmd)
	err = m.apply(t.Context(), again, s)
	again.Release()
	if err == nil || !strings.Contains(err.Error(), "roll") {
		t.Errorf("the rollback is not told: %v", err)
	}
	r.wantState(map[string]string{"a": "1 1/1", "b": "2 2/1"})
}

// TestGenerations: what becomes of commands that come late.
func TestGenerations(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	for i := range 12 {
		m.deploy(fmt.Sprintf("c%d", i+1), 0, services{"a": fmt.Sprint(i + 1)})
	}
	claim := func(id string, generation uint64) (*Outcome, error) {
		c, o, err := m.fence.Claim(t.Context(), r.command(id, generation, services{"a": "old"}))
		if c != nil {
			c.Release()
			t.Fatalf("%s with generation %d was given a claim", id, generation)
		}
		return o, err
	}
	_, err := claim("c1", 1)
	wantCode(t, err, CodeSuperseded)
	if older := new(Superseded); !errors.As(err, &older) || older.Current != 12 {
		t.Errorf("the current generation is not told: %v", err)
	}
	_, err = claim("another", 12)
	wantCode(t, err, CodeConflict)
	if o, err := claim("c5", 5); err != nil || o == nil || o.Generation != 5 {
		t.Errorf("a recorded one: %v %v", o, err)
	}
	h := r.head()
	names, err := manifests(t.Context(), r.api, r.stack)
	if err != nil || len(names) != KeepManifests || len(h.Outcomes) != KeepOutcomes {
		t.Errorf("%d manifests, %d outcomes, %v", len(names), len(h.Outcomes), err)
	}
	// After a removal the head stays, and so do its numbers.
	m.remove("gone", 13)
	r.wantState(map[string]string{})
	_, err = claim("c2", 7)
	wantCode(t, err, CodeSuperseded)
	if h := r.head(); h.Removed.IsZero() || len(h.Base) != 0 {
		t.Errorf("head is %+v", h)
	}
	m.deploy("back", 0, services{"a": "new"})
	r.wantState(map[string]string{"a": "new 14/1"})
	if h := r.head(); !h.Removed.IsZero() {
		t.Error("the stack counts as removed")
	}
}

func (m *manager) remove(id string, generation uint64) {
	m.t.Helper()
	c := m.claim(Command{ID: id, Stack: m.stack, Generation: generation, Kind: Remove})
	defer c.Release()
	e, err := stack.New(stack.Config{WorkDir: m.t.TempDir()}, stack.Deps{Client: c.Client(m.api), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := e.Remove(m.t.Context(), m.stack, patience, nil); err != nil {
		m.t.Fatal(err)
	}
	if err := c.Decide(m.t.Context(), StatusSucceeded, nil); err != nil {
		m.t.Fatal(err)
	}
}

// TestExpired: a command that nobody has begun ends in the head without a write, and the stack is at rest if it was before; one that was begun can be ended.
func TestExpired(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 0, r.api)
	m.deploy("c1", 1, services{"a": "1"})
	first := r.head()
	expired := func(id string, generation uint64) {
		t.Helper()
		cmd := r.command(id, generation, services{"a": "2"})
		cmd.Expired, cmd.Detail = true, func(status string, generation uint64) []byte { return fmt.Append(nil, status, generation) }
		_, o, err := m.fence.Claim(t.Context(), cmd)
		if want := fmt.Sprint(StatusExpired, generation); err != nil || o == nil || o.Status != StatusExpired || string(o.Detail) != want {
			t.Fatalf("%v, %v", o, err)
		}
		if again, _, err := m.fence.Look(t.Context(), r.stack, id); err != nil || fmt.Sprint(again) != fmt.Sprint(o) {
			t.Errorf("the head knows %v, %v", again, err)
		}
	}
	expired("c2", 2)
	expired("c3", 3)
	r.wantState(map[string]string{"a": "1 1/1"})
	h := r.head()
	if h.Generation != 3 || !h.atRest() || h.Manifest != first.Manifest || h.Good != first.Good || len(h.Manifests) != 1 || fmt.Sprint(h.Base) != fmt.Sprint(first.Base) {
		t.Errorf("head is %+v", h)
	}
	begun := r.command("c4", 4, services{"a": "4"})
	m.claim(begun).Release()
	if !r.head().PrevOK {
		t.Error("the generation before counts as unrest")
	}
	begun.Expired = true
	c := m.claim(begun) // it was begun
	if err := m.apply(t.Context(), c, services{"a": "4"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Decide(t.Context(), "failed", nil); err != nil {
		t.Fatal(err)
	}
	c.Release()
	expired("c5", 5)
	if h := r.head(); h.atRest() {
		t.Errorf("after a failure the stack counts as at rest: %+v", h)
	}
	_, _, err := m.fence.Claim(t.Context(), Command{ID: "c6", Stack: r.stack, Generation: 4, Expired: true})
	wantCode(t, err, CodeSuperseded)
}

// TestHeadIsForgotten after its time, and a command that comes at the same moment goes on from it.
func TestHeadIsForgotten(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	m.deploy("c1", 1, services{"a": "1"})
	m.remove("c2", 2)
	at, err := read(t.Context(), r.api, r.stack)
	if err != nil {
		t.Fatal(err)
	}
	old := at.head.clone()
	old.Removed = time.Now().Add(-keepRemoved - time.Hour)
	if at, err = swap(t.Context(), r.api, at, old); err != nil {
		t.Fatal(err)
	}
	dead := at.head.clone()
	dead.Dead = true
	if _, err = swap(t.Context(), r.api, at, dead); err != nil {
		t.Fatal(err)
	}
	m.deploy("c3", 3, services{"a": "3"})
	if h := r.head(); h.Generation != 3 || h.Dead {
		t.Errorf("head is %+v", h)
	}
	m.remove("c4", 4)
	if at, err = read(t.Context(), r.api, r.stack); err != nil {
		t.Fatal(err)
	}
	old = at.head.clone()
	old.Removed = time.Now().Add(-keepRemoved - time.Hour)
	if _, err = swap(t.Context(), r.api, at, old); err != nil {
		t.Fatal(err)
	}
	if err := m.fence.round(t.Context(), 1, true); err != nil {
		t.Fatal(err)
	}
	if at, err := read(t.Context(), r.api, r.stack); err != nil || at != nil {
		t.Errorf("the head is still there: %v %v", at, err)
	}
	if names, err := manifests(t.Context(), r.api, r.stack); err != nil || len(names) != 0 {
		t.Errorf("manifests are still there: %v %v", names, err)
	}
	if _, err := m.fence.list(t.Context()); err != nil || len(m.fence.seen) != 0 {
		t.Errorf("still remembered: %v %v", m.fence.seen, err)
	}
}

// TestScale is a generation of its own: the other services are taken out of reach of what was sent before, unless the generation before had succeeded.
func TestScale(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	m.deploy("c1", 1, services{"a": "1", "b": "1"})
	scale := func(id string, generation uint64, status string) {
		t.Helper()
		c := m.claim(Command{ID: id, Stack: r.stack, Generation: generation, Kind: Scale, Services: []string{r.stack + "_a"}})
		defer c.Release()
		e, err := stack.New(stack.Config{WorkDir: t.TempDir(), Poll: 100 * time.Millisecond}, stack.Deps{Client: c.Client(r.api), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Scale(t.Context(), r.stack+"_a", 0, patience, nil); err != nil {
			t.Fatal(err)
		}
		if err := c.Decide(t.Context(), status, nil); err != nil {
			t.Fatal(err)
		}
	}
	scale("c2", 2, "timed_out")
	r.wantState(map[string]string{"a": "1 2/1", "b": "1 1/1"})
	scale("c3", 3, StatusSucceeded)
	r.wantState(map[string]string{"a": "1 3/1", "b": "1 3/1"})
	if h := r.head(); h.Manifest == "" || h.Base[r.stack+"_b"] != "3/1" {
		t.Errorf("head is %+v", h)
	}
}

// TestWithoutPrune: what a deployment does not name stays, and is out of reach of older writes too.
func TestWithoutPrune(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	m.deploy("c1", 1, services{"a": "1", "b": "1"})
	for i, status := range []string{"failed", StatusSucceeded} {
		generation := uint64(i + 2)
		s := services{"a": fmt.Sprint(generation)}
		cmd := r.command(fmt.Sprint("c", generation), generation, s)
		cmd.Prune = false
		c := m.claim(cmd)
		if err := m.apply(t.Context(), c, s); err != nil {
			t.Fatal(err)
		}
		if err := c.Decide(t.Context(), status, nil); err != nil {
			t.Fatal(err)
		}
		c.Release()
	}
	r.wantState(map[string]string{"a": "3 3/1", "b": "1 3/1"}) // touched, because generation 2 had failed
	if err := m.fence.round(t.Context(), 1, true); err != nil {
		t.Fatal(err)
	}
	r.wantState(map[string]string{"a": "3 3/1", "b": "1 3/1"})
}

// TestReservedNames: no deployment writes to the agents' own objects.
func TestReservedNames(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manager("m", 1, r.api)
	c := m.claim(r.command("c1", 1, services{"a": "1"}))
	defer c.Release()
	_, err := c.Client(r.api).ConfigCreate(t.Context(), swarm.ConfigSpec{Annotations: swarm.Annotations{Name: headName("other")}, Data: []byte("x")})
	wantCode(t, err, "reserved_name")
}

func FuzzParseHead(f *testing.F) {
	h := Head{
		Stack: "shop", Epoch: 3, Owner: "a", Generation: 4, Step: 1, Command: "c", Phase: Decided, Base: map[string]string{"shop_web": "4/1"},
		Outcomes: []Outcome{{Command: "c", Generation: 4, Status: StatusSucceeded}}, Removed: time.Unix(1e9, 0), Begun: time.Unix(1e9, 5), Spent: 3 * time.Second, Cancelled: []string{"d"}, Rest: true,
	}
	spec, err := h.spec()
	if err != nil {
		f.Fatal(err)
	}
	l := spec.Labels
	f.Add(l[labelBase], l[labelOutcomes], l[labelAt], l[labelRemoved], l[labelCancelled], l[labelSpent])
	f.Add("{}", "[]", noGeneration, "", "", "")
	f.Fuzz(func(t *testing.T, base, outcomes, at, removed, cancelled, spent string) {
		spec, _ := h.spec()
		l := spec.Labels
		l[labelBase], l[labelOutcomes], l[labelAt], l[labelRemoved], l[labelCancelled], l[labelSpent] = base, outcomes, at, removed, cancelled, spent
		parsed, err := parseHead(spec)
		if err != nil {
			return
		}
		again, err := parsed.spec()
		if err != nil {
			return
		}
		if twice, err := parseHead(again); err != nil || fmt.Sprint(twice) != fmt.Sprint(parsed) {
			t.Errorf("%v\n%v\n%v", err, twice, parsed)
		}
	})
}
