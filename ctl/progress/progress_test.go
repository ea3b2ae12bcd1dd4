package progress

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/ctl/goldentest"
	"github.com/axion/runner-agent/ctl/planetest"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const commandID = "7c1f0c9e-3e0b-4f7d-9d5b-0a54c4c5b1a2"

// play tells a display a story; between the steps, mark is called with the step's name.
type play struct {
	t        *testing.T
	display  Display
	now      time.Time
	position uint64
}

func (p *play) after(d time.Duration) *play {
	p.now = p.now.Add(d)
	return p
}

func (p *play) event(message proto.Message) {
	p.position++
	p.display.Event(planetest.Event(p.t, p.position, commandID, p.now.Sub(planetest.Epoch), message), message)
}

func progressOf(step any) *runnerv1.CommandProgress {
	switch s := step.(type) {
	case *runnerv1.ObjectChange:
		return &runnerv1.CommandProgress{Step: &runnerv1.CommandProgress_Object{Object: s}}
	case *runnerv1.ServiceProgress:
		return &runnerv1.CommandProgress{Step: &runnerv1.CommandProgress_Service{Service: s}}
	case *runnerv1.Notice:
		return &runnerv1.CommandProgress{Step: &runnerv1.CommandProgress_Notice{Notice: s}}
	default:
		panic("no such step")
	}
}

func serviceAt(name string, state runnerv1.ServiceState, running, desired uint64) *runnerv1.ServiceProgress {
	return &runnerv1.ServiceProgress{Service: name, State: state, Running: running, Desired: desired}
}

var (
	pending    = runnerv1.ServiceState_SERVICE_STATE_PENDING
	converged  = runnerv1.ServiceState_SERVICE_STATE_CONVERGED
	rolledBack = runnerv1.ServiceState_SERVICE_STATE_ROLLED_BACK
)

// begin is what every deployment begins with.
func (p *play) begin() {
	p.display.Submitted(&planev1.SubmitCommandResponse{CommandId: commandID, Generation: 7, ClusterId: "prod"})
	p.after(time.Second)
	p.event(&runnerv1.CommandReceived{Type: "axion.runner.v1.StackDeploy", Attempt: 1})
	p.event(progressOf(&runnerv1.ObjectChange{Kind: runnerv1.ObjectKind_OBJECT_KIND_NETWORK, Action: runnerv1.ObjectAction_OBJECT_ACTION_CREATED, Name: "shop_default", Id: "net1"}))
	p.event(progressOf(&runnerv1.Notice{Level: runnerv1.NoticeLevel_NOTICE_LEVEL_WARNING, Text: "Ignoring unsupported options: build\n"}))
	p.event(progressOf(serviceAt("shop_db", pending, 0, 1)))
	p.event(progressOf(serviceAt("shop_web", pending, 0, 4)))
	p.after(2 * time.Second)
	p.event(progressOf(serviceAt("shop_db", converged, 1, 1)))
	p.event(progressOf(serviceAt("shop_web", pending, 1, 4)))
}

func (p *play) outcome(status runnerv1.OutcomeStatus, services ...*runnerv1.ServiceProgress) *runnerv1.CommandOutcome {
	return &runnerv1.CommandOutcome{
		Type: "axion.runner.v1.StackDeploy", Status: status, Stack: "shop", Generation: 7, Services: services,
		StartedAt: timestamppb.New(planetest.Epoch.Add(time.Second)), EndedAt: timestamppb.New(p.now),
	}
}

// succeed ends the story well, with a lost connection on the way.
func (p *play) succeed() {
	p.begin()
	p.display.Lost(failure.New(failure.Unavailable, "plane_unreachable", "", "the control plane at plane:9443 cannot be reached: connection refused"), 1500*time.Millisecond)
	p.after(2 * time.Second)
	p.display.Lost(failure.New(failure.Unavailable, "plane_unreachable", "", "the control plane at plane:9443 cannot be reached: connection refused"), 3*time.Second)
	p.display.Restored()
	p.event(progressOf(serviceAt("shop_web", pending, 4, 4)))
	p.after(5 * time.Second)
	p.event(progressOf(serviceAt("shop_web", converged, 4, 4)))
	outcome := p.outcome(runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, serviceAt("shop_db", converged, 1, 1), serviceAt("shop_web", converged, 4, 4))
	outcome.Warnings = []string{"Ignoring unsupported options: build", "Support for x is deprecated"}
	p.event(outcome)
	p.end(outcome)
}

// fail ends the story with a rolled back service.
func (p *play) fail() {
	p.begin()
	web := serviceAt("shop_web", runnerv1.ServiceState_SERVICE_STATE_ROLLING_BACK, 3, 4)
	web.Message = "update rolled back due to failure or early termination of task x1"
	web.Errors = []*runnerv1.TaskError{
		{TaskId: "x1", Slot: 2, NodeId: "n1", Node: "node-1", State: "failed", Error: "task: non-zero exit (3)", ExitCode: 3, At: timestamppb.New(p.now)},
		{TaskId: "x2", NodeId: "n2", State: "rejected", Error: "No such image: registry.example.com/shop/web:2\x1b[2J\nsecond line", At: timestamppb.New(p.now)},
	}
	p.event(progressOf(web))
	again := proto.CloneOf(web)
	again.Errors[0].TaskId = "x3" // the next task of the slot fails alike
	p.event(progressOf(again))
	p.after(20 * time.Second)
	p.display.Tick()
	done := proto.CloneOf(web)
	done.State, done.Running = rolledBack, 4
	p.event(progressOf(done))
	outcome := p.outcome(runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK, serviceAt("shop_db", converged, 1, 1), done)
	p.event(outcome)
	p.end(outcome)
}

func (p *play) end(outcome *runnerv1.CommandOutcome) {
	if err := p.display.End(outcome); err != nil {
		p.t.Error(err)
	}
}

var stories = map[string]func(*play){"succeed": (*play).succeed, "fail": (*play).fail}

func TestPlain(t *testing.T) {
	for name, story := range stories {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			p := &play{t: t, now: planetest.Epoch}
			p.display = NewPlain(Options{Out: &out, Title: "deploy stack shop", Now: func() time.Time { return p.now }})
			story(p)
			goldentest.Compare(t, "plain-"+name+".golden", out.String())
		})
	}
}

func TestLines(t *testing.T) {
	for name, story := range stories {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			p := &play{t: t, now: planetest.Epoch}
			p.display = NewLines(Options{Out: &out, Now: func() time.Time { return p.now }})
			story(p)
			for line := range strings.Lines(out.String()) {
				var document struct{ Kind string }
				if err := json.Unmarshal([]byte(line), &document); err != nil || document.Kind == "" {
					t.Errorf("%q: %v", line, err)
				}
			}
			goldentest.Compare(t, "lines-"+name+".golden", out.String())
		})
	}
}

// TestTerminal records the screen after every write that changed it.
func TestTerminal(t *testing.T) {
	for name, story := range stories {
		t.Run(name, func(t *testing.T) {
			p := &play{t: t, now: planetest.Epoch}
			s := &screen{t: t, width: 100}
			film := &film{screen: s}
			p.display = NewTerminal(Options{
				Out: film, Title: "deploy stack shop", Now: func() time.Time { return p.now }, Unicode: true, Color: true,
				Size: func() (int, int) { return s.width, 30 },
			})
			story(p)
			film.take()
			goldentest.Compare(t, "terminal-"+name+".golden", film.out.String())
		})
	}
}

// film keeps each picture of a screen.
type film struct {
	screen *screen
	out    strings.Builder
	last   string
}

func (f *film) Write(p []byte) (int, error) {
	n, err := f.screen.Write(p)
	f.take()
	return n, err
}

func (f *film) take() {
	if picture := f.screen.String(); picture != f.last {
		f.last = picture
		fmt.Fprintf(&f.out, "%s%s\n", picture, strings.Repeat("=", 20))
	}
}

func newTerminal(t *testing.T, width, height int, color bool) (*Terminal, *screen, *bytes.Buffer) {
	s := &screen{t: t, width: width}
	var raw bytes.Buffer
	terminal := NewTerminal(Options{
		Out: writers{s, &raw}, Title: "deploy stack shop", Now: func() time.Time { return planetest.Epoch }, Color: color,
		Size: func() (int, int) { return s.width, height },
	})
	return terminal, s, &raw
}

type writers struct {
	screen *screen
	raw    *bytes.Buffer
}

func (w writers) Write(p []byte) (int, error) {
	w.raw.Write(p)
	return w.screen.Write(p)
}

func TestTerminalWithManyServices(t *testing.T) {
	terminal, s, _ := newTerminal(t, 60, 10, false)
	for i := range 20 {
		state := pending
		if i%2 == 0 {
			state = converged
		}
		message := progressOf(serviceAt(fmt.Sprintf("shop_service-%02d", i), state, 1, 2))
		terminal.Event(planetest.Event(t, uint64(i+1), commandID, 0, message), message)
	}
	if len(s.lines) > 10 {
		t.Errorf("the block has %d lines on a screen of 10", len(s.lines))
	}
	goldentest.Compare(t, "terminal-many.golden", s.String())
}

func TestTerminalIsResized(t *testing.T) {
	terminal, s, _ := newTerminal(t, 100, 24, false)
	web := serviceAt("shop_web", runnerv1.ServiceState_SERVICE_STATE_ROLLING_BACK, 1, 2)
	web.Message = strings.Repeat("a long message ", 20)
	message := progressOf(web)
	terminal.Event(planetest.Event(t, 1, commandID, 0, message), message)
	s.resize(40)
	terminal.Tick()
	if got := len(s.lines); got != 2 {
		t.Errorf("%d lines on the screen, want the service and the whole:\n%s", got, s)
	}
	if err := terminal.End(nil); err != nil || s.String() != "" {
		t.Errorf("left on the screen: %q, %v", s, err)
	}
}

func TestColorsAreOptional(t *testing.T) {
	for _, color := range []bool{true, false} {
		terminal, _, raw := newTerminal(t, 80, 24, color)
		message := progressOf(serviceAt("shop_web", converged, 1, 1))
		terminal.Event(planetest.Event(t, 1, commandID, 0, message), message)
		if got := strings.Contains(raw.String(), colorGreen); got != color {
			t.Errorf("colours wanted %v, seen %v", color, got)
		}
	}
}

func TestWriteErrorsAreReported(t *testing.T) {
	for name, display := range map[string]Display{
		"plain":    NewPlain(Options{Out: broken{}, Now: time.Now}),
		"lines":    NewLines(Options{Out: broken{}, Now: time.Now}),
		"terminal": NewTerminal(Options{Out: broken{}, Now: time.Now}),
	} {
		display.Submitted(&planev1.SubmitCommandResponse{CommandId: commandID})
		if err := display.End(nil); err == nil {
			t.Errorf("%s: the error of the write is lost", name)
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, fmt.Errorf("no space left on device") }

func TestPlainSaysThatItIsAlive(t *testing.T) {
	var out bytes.Buffer
	now := planetest.Epoch
	plain := NewPlain(Options{Out: &out, Title: "deploy stack shop", Now: func() time.Time { return now }})
	plain.Tick()
	if out.Len() != 0 {
		t.Errorf("too early: %q", out.String())
	}
	plain.Submitted(&planev1.SubmitCommandResponse{CommandId: commandID, ClusterId: "prod"})
	out.Reset()
	for range 3 {
		now = now.Add(quietLimit)
		plain.Tick()
		plain.Tick()
	}
	want := "still waiting after 15s: no agent has taken the command yet\n" +
		"still waiting after 30s: no agent has taken the command yet\n" +
		"still waiting after 45s: no agent has taken the command yet\n"
	if got := strings.ReplaceAll(out.String(), "1m0s", "60s"); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestDescribeUnknown(t *testing.T) {
	got := Describe(&planev1.EventRecord{Type: "axion.runner.v1.FromTheFuture"}, nil)
	if got != "event of type axion.runner.v1.FromTheFuture" {
		t.Errorf("got %q", got)
	}
}

func TestDescribeWentBack(t *testing.T) {
	for want, m := range map[string]*runnerv1.GenerationsWentBack{
		"ALARM: stack shop was at generation 7 (epoch 4), now the Swarm is back at generation 5 (epoch 2); offered again as command c-1, c-2": {
			Stack: "shop", FromGeneration: 7, FromEpoch: 4, ToGeneration: 5, ToEpoch: 2, OfferedCommandIds: []string{"c-1", "c-2"},
		},
		"ALARM: stack shop was at generation 7 (epoch 4), now the Swarm knows it no longer; not offered again: the plane does not keep bundles": {
			Stack: "shop", FromGeneration: 7, FromEpoch: 4, NotOffered: &runnerv1.Failure{Message: "the plane does not keep bundles"},
		},
	} {
		if got := Describe(&planev1.EventRecord{}, m); got != want {
			t.Errorf("got %q", got)
		}
	}
}
