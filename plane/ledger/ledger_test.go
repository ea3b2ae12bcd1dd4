package ledger

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/plane/offset"
	"github.com/axion/runner-agent/plane/store"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

// clock is a clock that a test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func open(t *testing.T, cfg Config) (*Ledger, *clock) {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "plane.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	c := &clock{t: time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)}
	return New(cfg, db, c.Now), c
}

func deploy(stack string) NewCommand {
	return NewCommand{ClusterID: "prod", Topic: "runner.commands.prod", TimeToLive: time.Hour, Message: &runnerv1.StackDeploy{Stack: stack}}
}

func remove(stack string) NewCommand {
	n := deploy(stack)
	n.Message = &runnerv1.StackRemove{Stack: stack}
	return n
}

func scale(service string) NewCommand {
	n := deploy("")
	n.Message = &runnerv1.ServiceScale{Service: service, Replicas: 3}
	return n
}

func restart(service string) NewCommand {
	n := deploy("")
	n.Message = &runnerv1.ServiceRestart{Service: service}
	return n
}

func submit(t *testing.T, l *Ledger, n NewCommand) Command {
	t.Helper()
	c, _, err := l.Submit(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// recorded returns what is sent for a command.
func recorded(t *testing.T, l *Ledger, id string) (envelope.Envelope, proto.Message) {
	t.Helper()
	r, ok, err := l.Record(t.Context(), id)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	e, err := envelope.Parse(r.Headers, r.Data, 0)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := e.Message()
	if err != nil {
		t.Fatal(err)
	}
	return e, msg
}

func event(t *testing.T, causation string, msg proto.Message) NewEvent {
	t.Helper()
	e, err := envelope.New("/agents/a-1", msg, time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	e.CausationID, e.CorrelationID, e.Subject = causation, "corr", "shop"
	if _, ok := msg.(*runnerv1.CommandOutcome); ok {
		e.ID = envelope.OutcomeID(causation)
	}
	return NewEvent{Envelope: e, Message: msg, ClusterID: "prod", AgentID: "a-1"}
}

func keep(t *testing.T, l *Ledger, events ...NewEvent) Counts {
	t.Helper()
	counts, err := l.Store(t.Context(), events, nil)
	if err != nil {
		t.Fatal(err)
	}
	return counts
}

func TestGenerationsAreInPayloadAndEnvelope(t *testing.T) {
	l, _ := open(t, Config{})
	for i, n := range []NewCommand{deploy("shop"), remove("shop"), scale("shop_web"), deploy("shop")} {
		want := uint64(i + 1)
		c := submit(t, l, n)
		if c.Generation != want {
			t.Fatalf("command %d has generation %d", i, c.Generation)
		}
		e, msg := recorded(t, l, c.ID)
		inside := msg.(interface{ GetGeneration() uint64 }).GetGeneration()
		if e.Generation != want || inside != want {
			t.Errorf("envelope says %d, payload says %d, want %d", e.Generation, inside, want)
		}
		if e.ID != c.ID || e.Source != "/plane" || e.CorrelationID != c.ID || !e.Deadline.Equal(c.Deadline) || e.Subject != c.Subject {
			t.Errorf("envelope %+v does not say what the command says: %+v", e, c)
		}
	}
	if c := submit(t, l, deploy("other")); c.Generation != 1 {
		t.Errorf("another stack begins at %d", c.Generation)
	}
	n := deploy("shop")
	n.ClusterID = "test"
	if c := submit(t, l, n); c.Generation != 1 {
		t.Errorf("another cluster begins at %d", c.Generation)
	}
}

func TestGenerationsAreUniqueUnderConcurrency(t *testing.T) {
	l, _ := open(t, Config{})
	const workers, each = 8, 10
	var mu sync.Mutex
	var got []uint64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				c, _, err := l.Submit(context.Background(), deploy("shop"))
				if err != nil {
					t.Errorf("worker %d, command %d: %v", w, i, err)
					return
				}
				mu.Lock()
				got = append(got, c.Generation)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(got)
	for i, g := range got {
		if g != uint64(i+1) {
			t.Fatalf("generations %v", got)
		}
	}
	if len(got) != workers*each {
		t.Errorf("%d commands", len(got))
	}
}

func TestReportedGenerationIsJumpedOver(t *testing.T) {
	l, _ := open(t, Config{})
	submit(t, l, deploy("shop"))
	for _, n := range []uint64{41, 12, 0} {
		if err := l.NoteHead(t.Context(), "prod", "swarm", Head{Stack: "shop", Generation: n}); err != nil {
			t.Fatal(err)
		}
	}
	if c := submit(t, l, deploy("shop")); c.Generation != 42 {
		t.Errorf("generation %d, want 42", c.Generation)
	}
	if err := l.NoteHead(t.Context(), "prod", "swarm", Head{Stack: "shop", Generation: MaxGeneration + 1}); failure.Of(err) == nil || failure.Of(err).Code != "generation_too_large" {
		t.Errorf("got %v", err)
	}
}

func TestSupersededOutcomeTeachesTheGeneration(t *testing.T) {
	for name, n := range map[string]NewCommand{
		"a deployment":                   deploy("shop"),
		"a scale by name":                scale("shop_web"),
		"a scale by id, owner unknown":   scale("x4k2"),
		"a scale whose prefix misguides": scale("shop_old_web"),
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := open(t, Config{})
			c := submit(t, l, n)
			keep(t, l, event(t, c.ID, &runnerv1.CommandOutcome{
				Type: c.Type, Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED, Stack: "shop", Generation: c.Generation, CurrentGeneration: 70,
			}))
			if again := submit(t, l, n); again.Generation != 71 {
				t.Errorf("generation %d, want 71", again.Generation)
			}
		})
	}
}

func TestScaleCountsForEveryStackThatMayOwnTheService(t *testing.T) {
	l, _ := open(t, Config{})
	submit(t, l, deploy("a"))   // a: 1
	submit(t, l, deploy("a_b")) // a_b: 1
	submit(t, l, deploy("a_b")) // a_b: 2
	if c := submit(t, l, scale("a_b_c")); c.Generation != 3 || c.Stack != "a_b" {
		t.Errorf("generation %d for %q", c.Generation, c.Stack)
	}
	if c := submit(t, l, deploy("a")); c.Generation != 4 {
		t.Errorf("stack a has generation %d after a service that may be its own", c.Generation)
	}
	if c := submit(t, l, scale("lone_web")); c.Generation != 1 || c.Stack != "lone_web" {
		t.Errorf("generation %d for %q: nothing is known of a stack lone", c.Generation, c.Stack)
	}
	if c := submit(t, l, scale("_x_")); c.Stack != "_x_" {
		t.Errorf("stack %q", c.Stack)
	}
}

func TestRestartTakesNoGeneration(t *testing.T) {
	l, c := open(t, Config{})
	submit(t, l, deploy("shop"))
	cmd := submit(t, l, restart("shop_web"))
	if cmd.Generation != 0 || cmd.Stack != "shop" || cmd.Key != "shop" || cmd.Subject != "shop_web" || !cmd.StackIsGuess() {
		t.Errorf("%+v: its record must have the key of the stack that it waits for", cmd)
	}
	if g, _ := l.Generation(t.Context(), "prod", "shop"); g != 1 {
		t.Errorf("a restart moved the generation to %d", g)
	}
	r, ok, err := l.Record(t.Context(), cmd.ID)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	for _, h := range r.Headers {
		if h.Key == "ce_generation" {
			t.Errorf("it says generation %s", h.Value)
		}
	}
	e, err := envelope.Parse(r.Headers, r.Data, 0)
	if err != nil || !e.Deadline.Equal(c.Now().Add(time.Hour)) {
		t.Errorf("deadline %v, %v", e.Deadline, err)
	}
	if lone := submit(t, l, restart("lone_web")); lone.Key != "lone_web" {
		t.Errorf("%+v: nothing is known of a stack lone", lone)
	}
	if g, _ := l.Generation(t.Context(), "prod", "lone_web"); g != 0 {
		t.Errorf("a restart made a stack known, at generation %d", g)
	}
	keep(t, l, event(t, cmd.ID, &runnerv1.CommandReceived{Attempt: 1}))
	c.Add(time.Hour + restartTime + outcomeMargin - time.Second)
	overdue := func() []string {
		var ids []string
		cs, err := l.Overdue(t.Context(), c.Now(), 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cs {
			ids = append(ids, c.ID)
		}
		return ids
	}
	if ids := overdue(); slices.Contains(ids, cmd.ID) {
		t.Error("given up while its own time lasts, although it was begun")
	}
	c.Add(time.Second)
	if ids := overdue(); !slices.Contains(ids, cmd.ID) {
		t.Error("not given up after its own time")
	}
}

func TestIdempotencyKey(t *testing.T) {
	l, _ := open(t, Config{})
	n := deploy("shop")
	n.IdempotencyKey = "build-7"
	first := submit(t, l, n)
	again, existing, err := l.Submit(t.Context(), n)
	if err != nil || !existing || again.ID != first.ID || again.Generation != first.Generation {
		t.Errorf("got %+v, existing %v, %v", again, existing, err)
	}
	if g, _ := l.Generation(t.Context(), "prod", "shop"); g != 1 {
		t.Errorf("a repeated request moved the generation to %d", g)
	}
	other := remove("shop")
	other.IdempotencyKey = "build-7"
	if _, _, err := l.Submit(t.Context(), other); failure.Of(err) == nil || failure.Of(err).Code != "idempotency_key_reused" {
		t.Errorf("got %v", err)
	}
	elsewhere := n
	elsewhere.ClusterID = "test"
	if c := submit(t, l, elsewhere); c.ID == first.ID {
		t.Error("a key belongs to its cluster")
	}
	keep(t, l, event(t, first.ID, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED}))
	again, existing, err = l.Submit(t.Context(), n)
	if err != nil || !existing || again.Outcome != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("after its end: %+v, %v, %v", again, existing, err)
	}
}

func TestConcurrentSubmitsOfOneKeyMakeOneCommand(t *testing.T) {
	l, _ := open(t, Config{})
	n := deploy("shop")
	n.IdempotencyKey = "k"
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			c, _, err := l.Submit(context.Background(), n)
			if err != nil {
				t.Error(err)
			}
			ids[i] = c.ID
		})
	}
	wg.Wait()
	slices.Sort(ids)
	if len(slices.Compact(ids)) != 1 {
		t.Errorf("ids %v", ids)
	}
}

func TestBoundsOnOpenCommands(t *testing.T) {
	l, _ := open(t, Config{MaxOpen: 2, MaxOpenBytes: 2000})
	big := deploy("big")
	big.Message = bundleOf("big", make([]byte, 1500))
	submit(t, l, big)
	if _, _, err := l.Submit(t.Context(), big); failure.Of(err) == nil || failure.Of(err).Code != "too_many_open_commands" {
		t.Errorf("bytes: got %v", err)
	}
	submit(t, l, deploy("small"))
	if _, _, err := l.Submit(t.Context(), deploy("small")); failure.Of(err) == nil || failure.Of(err).Code != "too_many_open_commands" {
		t.Errorf("count: got %v", err)
	}
	if g, _ := l.Generation(t.Context(), "prod", "small"); g != 1 {
		t.Errorf("a refused command took generation %d", g)
	}
	huge := deploy("huge")
	huge.Message = bundleOf("huge", make([]byte, envelope.DefaultMaxData))
	if _, _, err := l.Submit(t.Context(), huge); failure.Of(err) == nil || failure.Of(err).Code != "too_large" {
		t.Errorf("size: got %v", err)
	}
	wrong := deploy("")
	wrong.Message = &runnerv1.AgentUpdate{}
	if _, _, err := l.Submit(t.Context(), wrong); failure.Of(err) == nil || failure.Of(err).Code != "unsupported_command" {
		t.Errorf("type: got %v", err)
	}
}

func bundleOf(stack string, content []byte) *runnerv1.StackDeploy {
	return &runnerv1.StackDeploy{Stack: stack, Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: &runnerv1.BundleContent{
		Files: []*runnerv1.BundleFile{{Path: "/x", Content: content}},
	}}}}
}

func TestOutcomeClosesAndErases(t *testing.T) {
	l, c := open(t, Config{})
	n := deploy("shop")
	n.Message = bundleOf("shop", []byte("hunter2"))
	cmd := submit(t, l, n)
	if r, ok, err := l.Record(t.Context(), cmd.ID); err != nil || !ok || len(r.Data) == 0 {
		t.Fatal(ok, err)
	}
	c.Add(time.Minute)
	keep(t, l, event(t, cmd.ID, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED}))
	got, err := l.Command(t.Context(), cmd.ID)
	if err != nil || got.Open() || got.Outcome != runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED || !got.ClosedAt.Equal(c.Now()) {
		t.Errorf("got %+v, %v", got, err)
	}
	var rows int
	if err := l.db.QueryRow(`SELECT COUNT(*) FROM commands WHERE data IS NOT NULL`).Scan(&rows); err != nil || rows != 0 {
		t.Errorf("%d commands still have their data, %v", rows, err)
	}
	if _, ok, err := l.Record(t.Context(), cmd.ID); ok || err != nil {
		t.Errorf("a closed command can still be sent: %v, %v", ok, err)
	}
	if due, err := l.Due(t.Context(), 10); err != nil || len(due) != 0 {
		t.Errorf("due %v, %v", due, err)
	}
}

func TestOutcomeOfAnotherClusterClosesNothing(t *testing.T) {
	l, _ := open(t, Config{})
	cmd := submit(t, l, deploy("shop"))
	e := event(t, cmd.ID, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, Stack: "shop", CurrentGeneration: 99})
	e.ClusterID = "evil"
	keep(t, l, e)
	if got, _ := l.Command(t.Context(), cmd.ID); !got.Open() {
		t.Error("closed by another cluster")
	}
	if g, _ := l.Generation(t.Context(), "prod", "shop"); g != 1 {
		t.Errorf("generation %d", g)
	}
	counts := keep(t, l, event(t, cmd.ID, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED}))
	if got, _ := l.Command(t.Context(), cmd.ID); counts.Stored != 1 || got.Open() {
		t.Error("the right outcome was kept out by the other cluster's event of the same id")
	}
}

// A stack's head holds the verdict and not the lists: a manager that finds an outcome there tells the same one.
func TestOutcomeWithoutItsListsIsTheSame(t *testing.T) {
	l, _ := open(t, Config{})
	cmd := submit(t, l, deploy("shop"))
	whole := &runnerv1.CommandOutcome{
		Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED, Stack: "shop", Generation: 1, Failure: &runnerv1.Failure{Code: "tasks_failed", Message: "long"},
		Services: []*runnerv1.ServiceProgress{{Service: "shop_web"}},
	}
	found := proto.CloneOf(whole)
	found.Services, found.Failure.Message = nil, "shortened"
	another := proto.CloneOf(found)
	another.Failure.Code = "rolled_back"
	if c := keep(t, l, event(t, cmd.ID, whole), event(t, cmd.ID, found), event(t, cmd.ID, another)); c != (Counts{Stored: 1, Duplicates: 2, Conflicts: 1}) {
		t.Errorf("%+v", c)
	}
}

func TestFirstEventWins(t *testing.T) {
	l, _ := open(t, Config{})
	cmd := submit(t, l, deploy("shop"))
	ok := event(t, cmd.ID, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED})
	other := event(t, cmd.ID, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED})
	if c := keep(t, l, ok, ok, other); c != (Counts{Stored: 1, Duplicates: 2, Conflicts: 1}) {
		t.Errorf("in one batch: %+v", c)
	}
	if c := keep(t, l, ok, other); c != (Counts{Duplicates: 2, Conflicts: 1}) {
		t.Errorf("in a later batch: %+v", c)
	}
	events, err := l.Events(t.Context(), Filter{CommandID: cmd.ID, Limit: 10})
	if err != nil || len(events) != 1 {
		t.Fatal(events, err)
	}
	e := events[0]
	var out runnerv1.CommandOutcome
	if err := proto.Unmarshal(e.Data, &out); err != nil || out.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("%v, %v", &out, err)
	}
	if e.Duplicates != 4 || e.Conflicts != 2 || !e.IsOutcomeOf(cmd.ID) || e.AgentID != "a-1" || e.CorrelationID != "corr" || e.Time.Nanosecond() != 6 {
		t.Errorf("%+v", e)
	}
	if got, _ := l.Command(t.Context(), cmd.ID); got.Outcome != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("outcome %v", got.Outcome)
	}
}

func TestEventsFilterAndPages(t *testing.T) {
	l, _ := open(t, Config{})
	for i := range 5 {
		e := event(t, fmt.Sprintf("c%d", i%2), &runnerv1.CommandProgress{Sequence: uint64(i)})
		if i == 4 {
			e.ClusterID = "test"
		}
		keep(t, l, e)
	}
	for name, tc := range map[string]struct {
		f    Filter
		want []uint64
	}{
		"all":                 {Filter{Limit: 10}, []uint64{1, 2, 3, 4, 5}},
		"a page":              {Filter{Limit: 2}, []uint64{1, 2}},
		"the next page":       {Filter{After: 2, Limit: 2}, []uint64{3, 4}},
		"a command":           {Filter{CommandID: "c0", Limit: 10}, []uint64{1, 3, 5}},
		"a cluster":           {Filter{ClusterID: "test", Limit: 10}, []uint64{5}},
		"command and cluster": {Filter{CommandID: "c0", ClusterID: "prod", After: 1, Limit: 10}, []uint64{3}},
		"nothing":             {Filter{After: 5, Limit: 10}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			events, err := l.Events(t.Context(), tc.f)
			if err != nil {
				t.Fatal(err)
			}
			var got []uint64
			for _, e := range events {
				got = append(got, e.Position)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("positions %v, want %v", got, tc.want)
			}
		})
	}
}

func TestLargeEventsComeInSmallPages(t *testing.T) {
	l, _ := open(t, Config{})
	for i := range 4 {
		notice := &runnerv1.Notice{Text: string(make([]byte, 3<<20))}
		keep(t, l, event(t, "c", &runnerv1.CommandProgress{Sequence: uint64(i), Step: &runnerv1.CommandProgress_Notice{Notice: notice}}))
	}
	events, err := l.Events(t.Context(), Filter{Limit: 100})
	if err != nil || len(events) != 2 {
		t.Errorf("%d events of 3 MiB in one page, %v", len(events), err)
	}
}

func TestPrune(t *testing.T) {
	l, c := open(t, Config{MaxEvents: 3, EventAge: time.Hour, CommandAge: 2 * time.Hour})
	cmd := submit(t, l, deploy("shop"))
	outcome := event(t, cmd.ID, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED})
	keep(t, l, outcome)
	for i := range 4 {
		keep(t, l, event(t, "x", &runnerv1.CommandProgress{Sequence: uint64(i)}))
	}
	prune := func() (oldest, last uint64) {
		t.Helper()
		if err := l.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		oldest, last, err := l.Positions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return oldest, last
	}
	if oldest, last := prune(); oldest != 3 || last != 5 {
		t.Errorf("by number: %d to %d", oldest, last)
	}
	if counts := keep(t, l, outcome); counts.Stored != 0 || counts.Duplicates != 1 {
		t.Errorf("a second outcome after the first was forgotten: %+v", counts)
	}
	c.Add(time.Hour + 1)
	if oldest, last := prune(); oldest != 6 || last != 5 {
		t.Errorf("by age: %d to %d", oldest, last)
	}
	keep(t, l, event(t, "x", &runnerv1.CommandProgress{Sequence: 9}))
	if oldest, last := prune(); oldest != 6 || last != 6 {
		t.Errorf("positions are used again: %d to %d", oldest, last)
	}
	if _, err := l.Command(t.Context(), cmd.ID); err != nil {
		t.Error(err)
	}
	open := submit(t, l, deploy("shop"))
	c.Add(2*time.Hour + 1)
	prune()
	if _, err := l.Command(t.Context(), cmd.ID); failure.Of(err) == nil || failure.Of(err).Code != "no_such_command" {
		t.Errorf("an old closed command: %v", err)
	}
	if _, err := l.Command(t.Context(), open.ID); err != nil {
		t.Errorf("an open command was forgotten: %v", err)
	}
}

func TestPruneBySize(t *testing.T) {
	l, _ := open(t, Config{MaxEventBytes: 2500})
	for i := range 4 {
		notice := &runnerv1.Notice{Text: string(make([]byte, 1000))}
		keep(t, l, event(t, "c", &runnerv1.CommandProgress{Sequence: uint64(i), Step: &runnerv1.CommandProgress_Notice{Notice: notice}}))
	}
	if err := l.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if oldest, last, err := l.Positions(t.Context()); err != nil || oldest != 3 || last != 4 {
		t.Errorf("%d to %d, %v: two events of 1,000 bytes fit", oldest, last, err)
	}
}

func TestFloodOfOneClusterLeavesTheOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  Config
		kept []uint64
	}{
		"by number":                    {Config{MaxClusterEvents: 3}, []uint64{1, 2, 10, 11, 12}},
		"by size":                      {Config{MaxClusterEventBytes: 2500}, []uint64{1, 2, 11, 12}},
		"by number of all, afterwards": {Config{MaxClusterEvents: 3, MaxEvents: 4}, []uint64{2, 10, 11, 12}},
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := open(t, tc.cfg)
			for i := range 12 {
				notice := &runnerv1.Notice{Text: string(make([]byte, 1000))}
				e := event(t, "c", &runnerv1.CommandProgress{Sequence: uint64(i), Step: &runnerv1.CommandProgress_Notice{Notice: notice}})
				e.ClusterID = "flooded"
				if i < 2 {
					e.ClusterID = "quiet"
				}
				keep(t, l, e)
			}
			if err := l.Prune(t.Context()); err != nil {
				t.Fatal(err)
			}
			list, err := l.Events(t.Context(), Filter{Limit: 100})
			if err != nil {
				t.Fatal(err)
			}
			var kept []uint64
			for _, e := range list {
				kept = append(kept, e.Position)
			}
			if !slices.Equal(kept, tc.kept) {
				t.Errorf("kept %v, want %v", kept, tc.kept)
			}
		})
	}
}

func TestForgotten(t *testing.T) {
	l, _ := open(t, Config{MaxClusterEvents: 2})
	for i, cluster := range []string{"quiet", "flooded", "flooded", "flooded", "flooded", "quiet"} {
		e := event(t, "c", &runnerv1.CommandProgress{Sequence: uint64(i)})
		e.ClusterID = cluster
		keep(t, l, e)
	}
	if err := l.Prune(t.Context()); err != nil { // forgets 2 and 3
		t.Fatal(err)
	}
	for _, tc := range []struct {
		cluster string
		after   uint64
		want    bool
	}{
		{"", 0, true},
		{"", 1, true},
		{"", 2, true},
		{"", 3, false},
		{"", 6, false},
		{"", 99, false},
		{"flooded", 1, true},
		{"flooded", 3, false},
		{"flooded", 6, false},
		{"quiet", 0, false},
		{"quiet", 1, false},
		{"quiet", 99, false},
		{"unknown", 0, true}, // may have been there
		{"unknown", 3, false},
	} {
		if got, err := l.Forgotten(t.Context(), tc.cluster, tc.after); err != nil || got != tc.want {
			t.Errorf("cluster %q after %d: %v, %v", tc.cluster, tc.after, got, err)
		}
	}
}

func TestSendingTimes(t *testing.T) {
	l, c := open(t, Config{})
	if send, overdue, err := l.Next(t.Context()); err != nil || !send.IsZero() || !overdue.IsZero() {
		t.Errorf("%v %v %v: nothing is open", send, overdue, err)
	}
	first := submit(t, l, deploy("shop"))
	c.Add(time.Second)
	second := submit(t, l, deploy("shop"))
	if due, err := l.Due(t.Context(), 10); err != nil || !slices.Equal(due, []string{first.ID, second.ID}) {
		t.Errorf("due %v, %v", due, err)
	}
	if err := l.Sent(t.Context(), first.ID, c.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := l.Postpone(t.Context(), second.ID, c.Now().Add(2*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if due, err := l.Due(t.Context(), 10); err != nil || len(due) != 0 {
		t.Errorf("due %v, %v", due, err)
	}
	send, overdue, err := l.Next(t.Context())
	if err != nil || !send.Equal(c.Now().Add(time.Minute)) || !overdue.Equal(first.Deadline) {
		t.Errorf("%v %v %v", send, overdue, err)
	}
	got, _ := l.Command(t.Context(), first.ID)
	if got.Sends != 1 || !got.LastSentAt.Equal(c.Now()) {
		t.Errorf("%+v", got)
	}
	if got, _ := l.Command(t.Context(), second.ID); got.Sends != 0 || !got.LastSentAt.IsZero() {
		t.Errorf("%+v", got)
	}
}

func TestExpire(t *testing.T) {
	l, c := open(t, Config{})
	idle := submit(t, l, deploy("idle"))
	n := deploy("begun")
	n.Message = &runnerv1.StackDeploy{Stack: "begun", Options: &runnerv1.DeployOptions{Timeout: durationpb.New(20 * time.Minute)}}
	begun := submit(t, l, n)
	keep(t, l, event(t, begun.ID, &runnerv1.CommandReceived{Attempt: 1}))
	overdue := func() []string {
		t.Helper()
		cs, err := l.Overdue(t.Context(), c.Now(), 10)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, c := range cs {
			ids = append(ids, c.ID)
		}
		return ids
	}
	if ids := overdue(); len(ids) != 0 {
		t.Fatalf("overdue at once: %v", ids)
	}
	c.Add(time.Hour)
	if ids := overdue(); !slices.Equal(ids, []string{idle.ID}) {
		t.Errorf("at the deadline: %v; one was begun", ids)
	}
	done, err := l.Expire(t.Context(), idle, &runnerv1.CommandOutcome{Type: idle.Type, Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_EXPIRED})
	if err != nil || !done {
		t.Fatal(done, err)
	}
	if done, err := l.Expire(t.Context(), idle, &runnerv1.CommandOutcome{}); err != nil || done {
		t.Errorf("twice: %v, %v", done, err)
	}
	events, err := l.Events(t.Context(), Filter{CommandID: idle.ID, Limit: 10})
	if err != nil || len(events) != 1 || events[0].ID != envelope.OutcomeID(idle.ID) || events[0].AgentID != "" || events[0].ClusterID != "prod" ||
		events[0].CorrelationID != idle.CorrelationID || !events[0].IsOutcomeOf(idle.ID) {
		t.Errorf("%+v, %v", events, err)
	}
	late := event(t, idle.ID, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED})
	if counts := keep(t, l, late); counts.Conflicts != 1 {
		t.Errorf("an outcome after the end: %+v", counts)
	}
	c.Add(20*time.Minute + outcomeMargin)
	if ids := overdue(); !slices.Equal(ids, []string{begun.ID}) {
		t.Errorf("after its own time: %v", ids)
	}
}

func TestOffsetsGoWithTheirEvents(t *testing.T) {
	l, _ := open(t, Config{})
	at := offset.Offset{Topic: "runner.events", TopicID: "t1", Partition: 0, Next: 7}
	if _, err := l.Store(t.Context(), []NewEvent{event(t, "c", &runnerv1.CommandReceived{})}, []offset.Offset{at}); err != nil {
		t.Fatal(err)
	}
	bad := event(t, "c", &runnerv1.CommandReceived{})
	bad.Message = &runnerv1.CommandReceived{Type: "\xff"} // no UTF-8: cannot be encoded
	if _, err := l.Store(t.Context(), []NewEvent{event(t, "d", &runnerv1.CommandReceived{}), bad}, []offset.Offset{{Topic: "runner.events", TopicID: "t1", Next: 9}}); err == nil {
		t.Fatal("no error")
	}
	got, err := l.Offsets(t.Context(), "runner.events", "t1")
	if err != nil || !slices.Equal(got, []offset.Offset{at}) {
		t.Errorf("%+v, %v: a failed batch must leave neither its events nor its offset", got, err)
	}
	if _, last, _ := l.Positions(t.Context()); last != 1 {
		t.Errorf("last position %d", last)
	}
	if got, err := l.Offsets(t.Context(), "runner.events", "t2"); err != nil || len(got) != 0 {
		t.Errorf("%+v, %v: a topic that was made anew begins at its beginning", got, err)
	}
}

func TestAnnouncements(t *testing.T) {
	l, _ := open(t, Config{})
	events, commands := l.EventsChanged(), l.CommandsChanged()
	closed := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	c := submit(t, l, deploy("shop"))
	if !closed(commands) || closed(events) {
		t.Error("a stored command must wake those who wait for commands only")
	}
	e := event(t, c.ID, &runnerv1.CommandReceived{})
	keep(t, l, e)
	if !closed(events) {
		t.Error("a stored event must wake those who wait for events")
	}
	events = l.EventsChanged()
	keep(t, l, e)
	if closed(events) {
		t.Error("a duplicate is no news")
	}
}
