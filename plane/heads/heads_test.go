package heads

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/plane/fleet"
	"github.com/axion/runner-agent/plane/ledger"
	"github.com/axion/runner-agent/plane/store"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

const topic = "runner.commands.prod"

// world is a Watch on a real ledger, with managers that a test lets speak and a clock that it moves.
type world struct {
	t        *testing.T
	now      time.Time
	db       *store.DB
	ledger   *ledger.Ledger
	watch    *Watch
	sessions []fleet.Session
	swarm    string
	noteErr  error
	log      bytes.Buffer
}

func newWorld(t *testing.T, managers ...string) *world {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "plane.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	w := &world{t: t, now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), db: db, swarm: "swarm1"}
	for _, id := range managers {
		w.sessions = append(w.sessions, fleet.Session{ID: "s-" + id, AgentID: id, ClusterID: "prod", ClusterTopicAllowed: true})
	}
	w.restart()
	return w
}

// restart is a plane that starts with the same database.
func (w *world) restart() {
	w.t.Helper()
	clock := func() time.Time { return w.now }
	w.ledger = ledger.New(ledger.Config{}, w.db, clock)
	var err error
	w.watch, err = New(Deps{
		Sessions: func() []fleet.Session { return slices.Clone(w.sessions) }, Ledger: faulty{w.ledger, w}, Now: clock,
		Swarms:       func(context.Context) (map[string]string, error) { return map[string]string{"prod": w.swarm}, nil },
		CommandTopic: func(id string) string { return "runner.commands." + id }, Log: slog.New(slog.NewTextHandler(&w.log, nil)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// faulty is a ledger that may refuse to note.
type faulty struct {
	Ledger
	w *world
}

func (f faulty) NoteHead(ctx context.Context, clusterID, swarmID string, h ledger.Head) error {
	if f.w.noteErr != nil {
		return f.w.noteErr
	}
	return f.Ledger.NoteHead(ctx, clusterID, swarmID, h)
}

func head(stack string, generation, epoch uint64) *runnerv1.StackGeneration {
	return &runnerv1.StackGeneration{Stack: stack, Generation: generation, Epoch: epoch}
}

func removed(stack string, generation, epoch uint64) *runnerv1.StackGeneration {
	h := head(stack, generation, epoch)
	h.RemovedAt = timestamppb.Now()
	return h
}

// beat lets a manager, or all if the index is negative, send its next heartbeat.
func (w *world) beat(manager int, stacks ...*runnerv1.StackGeneration) {
	for i := range w.sessions {
		if manager >= 0 && i != manager {
			continue
		}
		h := &runnerv1.Heartbeat{Sequence: w.sessions[i].Heartbeat.GetSequence() + 1, EngineReachable: true, Stacks: stacks}
		w.sessions[i].Heartbeat = h
	}
}

func (w *world) look() {
	w.t.Helper()
	if err := w.watch.look(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// tell lets all managers tell that for so long, a heartbeat each 5 s.
func (w *world) tell(d time.Duration, stacks ...*runnerv1.StackGeneration) {
	w.t.Helper()
	for end := w.now.Add(d); !w.now.After(end); w.now = w.now.Add(5 * time.Second) {
		w.beat(-1, stacks...)
		w.look()
	}
}

func (w *world) alarms() []*runnerv1.GenerationsWentBack {
	w.t.Helper()
	events, err := w.ledger.Events(w.t.Context(), ledger.Filter{ClusterID: "prod", Limit: 100})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []*runnerv1.GenerationsWentBack
	for _, e := range events {
		if e.Type != envelope.TypePrefix+"GenerationsWentBack" {
			continue
		}
		m := &runnerv1.GenerationsWentBack{}
		if err := proto.Unmarshal(e.Data, m); err != nil || e.AgentID != "" || e.Subject != m.GetStack() {
			w.t.Fatalf("%+v, %v", e, err)
		}
		out = append(out, m)
	}
	return out
}

func (w *world) wantAlarms(n int, when string) []*runnerv1.GenerationsWentBack {
	w.t.Helper()
	got := w.alarms()
	if len(got) != n {
		w.t.Fatalf("%s: %d alarms, want %d: %v", when, len(got), n, got)
	}
	return got
}

func (w *world) generation(stack string) uint64 {
	w.t.Helper()
	g, err := w.ledger.Generation(w.t.Context(), "prod", stack)
	if err != nil {
		w.t.Fatal(err)
	}
	return g
}

// done submits a command and lets it succeed.
func (w *world) done(msg proto.Message, stack string) ledger.Command {
	w.t.Helper()
	c, _, err := w.ledger.Submit(w.t.Context(), ledger.NewCommand{ClusterID: "prod", Topic: topic, TimeToLive: time.Hour, Message: msg})
	if err != nil {
		w.t.Fatal(err)
	}
	w.end(c, stack, runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED)
	return c
}

func (w *world) end(c ledger.Command, stack string, status runnerv1.OutcomeStatus) {
	w.t.Helper()
	m := &runnerv1.CommandOutcome{Type: c.Type, Status: status, Stack: stack, Generation: c.Generation}
	e, err := envelope.New("/agents/a-1", m, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	e.ID, e.CausationID = envelope.OutcomeID(c.ID), c.ID
	if _, err := w.ledger.Store(w.t.Context(), []ledger.NewEvent{{Envelope: e, Message: m, ClusterID: "prod", AgentID: "a-1"}}, nil); err != nil {
		w.t.Fatal(err)
	}
}

// open returns the message of an open command and its envelope.
func (w *world) open(id string) (proto.Message, envelope.Envelope, ledger.Command) {
	w.t.Helper()
	r, ok, err := w.ledger.Record(w.t.Context(), id)
	if err != nil || !ok {
		w.t.Fatalf("command %s: %v, %v", id, ok, err)
	}
	e, err := envelope.Parse(r.Headers, r.Data, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	msg, err := e.Message()
	if err != nil {
		w.t.Fatal(err)
	}
	return msg, e, r.Command
}

func deploy(stack, content string) *runnerv1.StackDeploy {
	return &runnerv1.StackDeploy{Stack: stack, Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: &runnerv1.BundleContent{
		Files: []*runnerv1.BundleFile{{Path: "/x", Content: []byte(content)}},
	}}}}
}

func TestGenerationsComeFromConfirmedManagers(t *testing.T) {
	w := newWorld(t, "a-1", "a-2", "a-3")
	w.sessions[1].ClusterTopicAllowed = false
	w.beat(0, head("shop", 7, 1))
	w.beat(1, head("shop", 99, 1)) // a worker
	w.look()
	if g := w.generation("shop"); g != 7 {
		t.Errorf("generation %d", g)
	}
	w.noteErr = errors.New("the database is away")
	w.beat(0, head("shop", 8, 1))
	if err := w.watch.look(t.Context()); !errors.Is(err, w.noteErr) {
		t.Errorf("got %v", err)
	}
	w.noteErr = nil
	w.look()
	if g := w.generation("shop"); g != 8 {
		t.Errorf("generation %d: a heartbeat that could not be noted must be looked at again", g)
	}
	w.noteErr = failure.New(failure.Invalid, "generation_too_large", "shop", "too large")
	w.beat(0, head("shop", 9, 1))
	w.look()
	w.noteErr = nil
	w.look()
	if g := w.generation("shop"); g != 8 {
		t.Errorf("generation %d: what is not believed is not tried again with the same heartbeat", g)
	}
}

func TestARestoredSwarmGetsItsLastDeploymentAgain(t *testing.T) {
	w := newWorld(t, "a-1", "a-2")
	w.done(deploy("shop", "one"), "shop")
	w.done(deploy("shop", "two"), "shop")
	scaled := w.done(&runnerv1.ServiceScale{Service: "shop_web", Replicas: 5}, "shop")
	w.tell(5*time.Second, head("shop", scaled.Generation, 9))

	w.tell(Agree-5*time.Second, head("shop", 1, 4))
	w.wantAlarms(0, "before the time is over")
	w.tell(10*time.Second, head("shop", 1, 4))
	told := w.wantAlarms(1, "after it")[0]
	if told.GetStack() != "shop" || told.GetFromGeneration() != 3 || told.GetFromEpoch() != 9 || told.GetToGeneration() != 1 || told.GetToEpoch() != 4 ||
		told.GetNotOffered() != nil || len(told.GetOfferedCommandIds()) != 2 {
		t.Fatalf("%v", told)
	}
	msg, e, c := w.open(told.GetOfferedCommandIds()[0])
	d, ok := msg.(*runnerv1.StackDeploy)
	if !ok || string(d.GetBundle().GetPlain().GetFiles()[0].GetContent()) != "two" || d.GetGeneration() != 4 || e.Generation != 4 || c.Topic != topic || c.Key != "shop" {
		t.Errorf("%v, %+v", msg, c)
	}
	events, err := w.ledger.Events(t.Context(), ledger.Filter{ClusterID: "prod", Limit: 100})
	if alarm := events[len(events)-1]; err != nil || e.CausationID != alarm.ID || e.CorrelationID != alarm.ID {
		t.Errorf("caused by %s, correlation %s; the alarm is %s, %v", e.CausationID, e.CorrelationID, alarm.ID, err)
	}
	msg, e, _ = w.open(told.GetOfferedCommandIds()[1])
	if s, ok := msg.(*runnerv1.ServiceScale); !ok || s.GetReplicas() != 5 || s.GetService() != "shop_web" || e.Generation != 5 {
		t.Errorf("%v", msg)
	}
	if !strings.Contains(w.log.String(), "level=ERROR") || !strings.Contains(w.log.String(), "stack=shop") {
		t.Errorf("log: %s", w.log.String())
	}

	w.tell(5*time.Minute, head("shop", 1, 4))
	w.wantAlarms(1, "as long as nothing changes")
	w.restart()
	w.tell(5*time.Minute, head("shop", 1, 4))
	w.wantAlarms(1, "after a restart of the plane")
	if alarms, err := w.ledger.Alarms(t.Context(), "prod"); err != nil || len(alarms) != 1 || !proto.Equal(alarms[0].Told, told) {
		t.Errorf("%v, %v", alarms, err)
	}

	w.end(c, "shop", runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED)
	if alarms, err := w.ledger.Alarms(t.Context(), ""); err != nil || len(alarms) != 0 {
		t.Errorf("healed, but still told: %v, %v", alarms, err)
	}
	w.tell(time.Minute, head("shop", 5, 6))
	w.tell(time.Minute, head("shop", 1, 4))
	told = w.wantAlarms(2, "the second time")[1]
	if told.GetFromGeneration() != 5 {
		t.Errorf("%v", told)
	}
}

func TestAnAlarmThatWasCutShortIsToldAfterTheRestart(t *testing.T) {
	w := newWorld(t, "a-1")
	w.done(deploy("shop", "one"), "shop")
	w.tell(5*time.Second, head("shop", 3, 1))
	w.tell(20*time.Second, head("shop", 2, 1))
	w.restart()
	w.tell(20*time.Second, head("shop", 2, 1))
	w.wantAlarms(0, "the time begins anew")
	w.tell(20*time.Second, head("shop", 2, 1))
	w.wantAlarms(1, "in the end")
}

func TestWhatIsNoAlarm(t *testing.T) {
	const long = 10 * time.Minute
	for name, do := range map[string]func(w *world){
		"one manager lags": func(w *world) {
			for range 100 {
				w.beat(0, head("shop", 7, 3))
				w.beat(1, head("shop", 5, 1))
				w.now = w.now.Add(5 * time.Second)
				w.look()
			}
		},
		"for a moment": func(w *world) {
			for range 20 {
				w.tell(Agree-10*time.Second, head("shop", 5, 1))
				w.tell(0, head("shop", 7, 3))
			}
		},
		"one and the same heartbeat": func(w *world) {
			w.beat(-1, head("shop", 5, 1))
			for range 100 {
				w.now = w.now.Add(5 * time.Second)
				w.look()
			}
		},
		"nobody is connected": func(w *world) {
			w.sessions = nil
			w.now = w.now.Add(long)
			w.look()
		},
		"without a leader": func(w *world) {
			for range 100 {
				w.beat(-1, head("shop", 5, 1))
				for i := range w.sessions {
					w.sessions[i].Heartbeat.Warnings = []*runnerv1.HealthWarning{{Code: noLeader}}
				}
				w.now = w.now.Add(5 * time.Second)
				w.look()
			}
		},
		"without an engine": func(w *world) {
			for range 100 {
				w.beat(-1)
				for i := range w.sessions {
					w.sessions[i].Heartbeat.EngineReachable = false
				}
				w.now = w.now.Add(5 * time.Second)
				w.look()
			}
		},
		"agents that have just started":  func(w *world) { w.tell(time.Minute) },
		"older agents tell no epochs":    func(w *world) { w.tell(long, head("shop", 7, 0)) },
		"a newer generation, a new head": func(w *world) { w.tell(long, head("shop", 8, 1)) },
		"the forgotten head of a removed stack": func(w *world) {
			w.tell(0, removed("shop", 8, 9))
			w.tell(long, head("blog", 1, 1))
		},
		"a list that is full": func(w *world) {
			var stacks []*runnerv1.StackGeneration
			for i := range maxTold {
				stacks = append(stacks, head("s"+strings.Repeat("x", i%50)+string(rune('a'+i%26)), 1, 1))
			}
			for i := range stacks {
				stacks[i].Stack = "s" + time.Duration(i).String()
			}
			w.tell(time.Minute, stacks...)
		},
		"a Swarm made anew": func(w *world) {
			w.swarm = "swarm2"
			w.tell(long)
			w.tell(long, head("shop", 1, 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a-1", "a-2")
			w.done(deploy("shop", "one"), "shop")
			w.tell(0, head("shop", 7, 3))
			do(w)
			w.wantAlarms(0, name)
		})
	}
}

func TestASwarmMadeAnewIsWatchedFromThenOn(t *testing.T) {
	w := newWorld(t, "a-1")
	w.done(deploy("shop", "one"), "shop")
	w.tell(0, head("shop", 7, 3))
	w.swarm = "swarm2"
	w.tell(0, head("shop", 8, 1))
	w.tell(time.Minute, head("shop", 2, 1))
	if told := w.wantAlarms(1, "of the new Swarm")[0]; told.GetFromGeneration() != 8 {
		t.Errorf("%v", told)
	}
}

func TestAStackThatTheSwarmHasLost(t *testing.T) {
	w := newWorld(t, "a-1", "a-2")
	w.done(deploy("shop", "one"), "shop")
	w.done(deploy("blog", "two"), "blog")
	w.tell(0, head("shop", 1, 2), head("blog", 1, 2))
	w.tell(Agree+10*time.Second, head("blog", 1, 2))
	told := w.wantAlarms(1, "beside one that it has")[0]
	if told.GetStack() != "shop" || told.GetToGeneration() != 0 || len(told.GetOfferedCommandIds()) != 1 {
		t.Errorf("%v", told)
	}
	w.tell(AgreeOnNothing - 5*time.Second)
	w.wantAlarms(1, "nothing at all, before the longer time is over")
	w.tell(10 * time.Second)
	if told := w.wantAlarms(2, "nothing at all")[1]; told.GetStack() != "blog" {
		t.Errorf("%v", told)
	}
	w.tell(10 * time.Minute)
	w.wantAlarms(2, "later")
}

func TestARemovedStackThatIsBackIsRemovedAgain(t *testing.T) {
	w := newWorld(t, "a-1")
	w.done(deploy("shop", "one"), "shop")
	w.done(&runnerv1.StackRemove{Stack: "shop"}, "shop")
	w.tell(0, removed("shop", 2, 5))
	w.tell(time.Minute, head("shop", 1, 2))
	told := w.wantAlarms(1, "it is back")[0]
	if len(told.GetOfferedCommandIds()) != 1 {
		t.Fatalf("%v", told)
	}
	msg, _, _ := w.open(told.GetOfferedCommandIds()[0])
	if r, ok := msg.(*runnerv1.StackRemove); !ok || r.GetGeneration() != 3 {
		t.Errorf("%v", msg)
	}
}

func TestAPlaneRestoredFromABackupJumpsAhead(t *testing.T) {
	w := newWorld(t, "a-1")
	w.done(deploy("shop", "one"), "shop")
	w.tell(0, head("shop", 1, 1))
	w.tell(10*time.Minute, head("shop", 9, 30)) // what happened since the backup
	w.wantAlarms(0, "the plane is behind")
	if c := w.done(deploy("shop", "two"), "shop"); c.Generation != 10 {
		t.Errorf("generation %d", c.Generation)
	}
}

func TestWhatIsUnderWayIsNotUndone(t *testing.T) {
	w := newWorld(t, "a-1")
	w.done(deploy("shop", "one"), "shop")
	w.tell(0, head("shop", 1, 3))
	c, _, err := w.ledger.Submit(t.Context(), ledger.NewCommand{ClusterID: "prod", Topic: topic, TimeToLive: time.Hour, Message: deploy("shop", "two")})
	if err != nil {
		t.Fatal(err)
	}
	w.tell(0, head("shop", 2, 4))
	w.tell(time.Minute, head("shop", 1, 1))
	told := w.wantAlarms(1, "in the middle of a deployment")[0]
	if told.GetNotOffered().GetCode() != "newer_under_way" || len(told.GetOfferedCommandIds()) != 0 {
		t.Errorf("%v", told)
	}
	w.end(c, "shop", runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED)
	if alarms, err := w.ledger.Alarms(t.Context(), "prod"); err != nil || len(alarms) != 1 {
		t.Errorf("a failure heals nothing: %v, %v", alarms, err)
	}
}
