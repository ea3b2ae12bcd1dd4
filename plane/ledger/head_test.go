package ledger

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// succeed submits a command and lets it succeed.
func succeed(t *testing.T, l *Ledger, n NewCommand, stack string) Command {
	t.Helper()
	c := submit(t, l, n)
	keep(t, l, event(t, c.ID, &runnerv1.CommandOutcome{Type: c.Type, Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, Stack: stack, Generation: c.Generation}))
	return c
}

func bundled(stack, content string) NewCommand {
	n := deploy(stack)
	n.Message = bundleOf(stack, []byte(content))
	return n
}

// back lets the stack's head go back from its newest generation.
func back(t *testing.T, l *Ledger, stack string) *runnerv1.GenerationsWentBack {
	t.Helper()
	g, err := l.Generation(t.Context(), "prod", stack)
	if err != nil {
		t.Fatal(err)
	}
	from := Head{Stack: stack, Generation: max(g, 1), Epoch: 1}
	if err := l.NoteHead(t.Context(), "prod", "swarm", from); err != nil {
		t.Fatal(err)
	}
	told, err := l.WentBack(t.Context(), WentBack{ClusterID: "prod", SwarmID: "swarm", Topic: "runner.commands.prod", From: from, To: Head{Stack: stack}})
	if err != nil || told == nil {
		t.Fatal(told, err)
	}
	return told
}

// offered returns the messages of the commands that were offered again.
func offered(t *testing.T, l *Ledger, told *runnerv1.GenerationsWentBack) (out []proto.Message) {
	t.Helper()
	for _, id := range told.GetOfferedCommandIds() {
		_, msg := recorded(t, l, id)
		out = append(out, msg)
	}
	return out
}

func TestHeadsAreCompared(t *testing.T) {
	for name, tc := range map[string]struct {
		h, o Head
		want bool
	}{
		"the same":                      {Head{Generation: 1, Epoch: 1}, Head{Generation: 1, Epoch: 1}, false},
		"newer generation":              {Head{Generation: 2, Epoch: 1}, Head{Generation: 1, Epoch: 9}, true},
		"older generation":              {Head{Generation: 1, Epoch: 9}, Head{Generation: 2, Epoch: 1}, false},
		"newer epoch":                   {Head{Generation: 1, Epoch: 2}, Head{Generation: 1, Epoch: 1}, true},
		"removed since":                 {Head{Generation: 1, Epoch: 1, Removed: true}, Head{Generation: 1, Epoch: 1}, true},
		"removed, but in an older head": {Head{Generation: 1, Epoch: 1, Removed: true}, Head{Generation: 1, Epoch: 2}, false},
	} {
		if got := tc.h.Above(tc.o); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestGoingBackIsToldOnce(t *testing.T) {
	l, _ := open(t, Config{MaxOpen: 1})
	succeed(t, l, bundled("shop", "one"), "shop")
	from := Head{Stack: "shop", Generation: 1, Epoch: 4}
	if err := l.NoteHead(t.Context(), "prod", "swarm", from); err != nil {
		t.Fatal(err)
	}
	submit(t, l, deploy("other")) // the cluster's bound on open commands is reached: what is offered again is not an operator's flood
	events, commands := l.EventsChanged(), l.CommandsChanged()
	w := WentBack{ClusterID: "prod", SwarmID: "swarm", Topic: "runner.commands.prod", From: from, To: Head{Stack: "shop", Generation: 1, Epoch: 2}}
	told, err := l.WentBack(t.Context(), w)
	if err != nil || len(told.GetOfferedCommandIds()) != 1 {
		t.Fatal(told, err)
	}
	for name, changed := range map[string]<-chan struct{}{"events": events, "commands": commands} {
		select {
		case <-changed:
		default:
			t.Errorf("nobody was told of new %s", name)
		}
	}
	if again, err := l.WentBack(t.Context(), w); err != nil || again != nil {
		t.Errorf("twice: %v, %v", again, err)
	}
	other := w
	other.From, other.SwarmID = w.To, "another"
	if told, err := l.WentBack(t.Context(), other); err != nil || told != nil {
		t.Errorf("of another Swarm: %v, %v", told, err)
	}
	if heads, err := l.Heads(t.Context(), "prod", "swarm"); err != nil || heads["shop"] != w.To {
		t.Errorf("%v, %v", heads, err)
	}
	if heads, err := l.Heads(t.Context(), "prod", "another"); err != nil || len(heads) != 0 {
		t.Errorf("heads of another Swarm: %v, %v", heads, err)
	}
}

func TestWhatAStackIsMadeOf(t *testing.T) {
	scaleTo := func(service string, replicas uint64) NewCommand {
		n := scale(service)
		n.Message = &runnerv1.ServiceScale{Service: service, Replicas: replicas}
		return n
	}
	replicas := func(m proto.Message) uint64 { return m.(*runnerv1.ServiceScale).GetReplicas() }
	content := func(m proto.Message) string {
		return string(m.(*runnerv1.StackDeploy).GetBundle().GetPlain().GetFiles()[0].GetContent())
	}
	t.Run("the last deployment and the last scaling of each service", func(t *testing.T) {
		l, _ := open(t, Config{})
		succeed(t, l, bundled("shop", "one"), "shop")
		succeed(t, l, scaleTo("shop_web", 9), "shop")
		succeed(t, l, bundled("shop", "two"), "shop")
		succeed(t, l, scaleTo("shop_web", 3), "shop")
		succeed(t, l, scaleTo("shop_db", 2), "shop")
		succeed(t, l, scaleTo("shop_web", 4), "shop")
		failed := submit(t, l, bundled("shop", "three"))
		keep(t, l, event(t, failed.ID, &runnerv1.CommandOutcome{Type: failed.Type, Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED, Stack: "shop"}))
		got := offered(t, l, back(t, l, "shop"))
		if len(got) != 3 || content(got[0]) != "two" || replicas(got[1]) != 2 || replicas(got[2]) != 4 {
			t.Errorf("%v", got)
		}
	})
	t.Run("an outcome that comes late takes no newer one's place", func(t *testing.T) {
		l, _ := open(t, Config{})
		first, second := submit(t, l, bundled("shop", "one")), submit(t, l, bundled("shop", "two"))
		for _, c := range []Command{second, first} {
			keep(t, l, event(t, c.ID, &runnerv1.CommandOutcome{Type: c.Type, Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, Stack: "shop", Generation: c.Generation}))
		}
		if got := offered(t, l, back(t, l, "shop")); len(got) != 1 || content(got[0]) != "two" {
			t.Errorf("%v", got)
		}
	})
	t.Run("a deployment that was sent by hand", func(t *testing.T) {
		l, _ := open(t, Config{})
		succeed(t, l, bundled("shop", "one"), "shop")
		keep(t, l, event(t, "by-hand", &runnerv1.CommandOutcome{Type: deployType, Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, Stack: "shop", Generation: 2}))
		if told := back(t, l, "shop"); told.GetNotOffered().GetCode() != missingForeign || len(told.GetOfferedCommandIds()) != 0 {
			t.Errorf("%v: what the plane had sent before is not what was there last", told)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		l, _ := open(t, Config{})
		if told := back(t, l, "shop"); told.GetNotOffered().GetCode() != missingUnknown {
			t.Errorf("%v", told)
		}
	})
	t.Run("a restart", func(t *testing.T) {
		l, _ := open(t, Config{})
		succeed(t, l, bundled("shop", "one"), "shop")
		succeed(t, l, restart("shop_web"), "shop")
		if got := offered(t, l, back(t, l, "shop")); len(got) != 1 {
			t.Errorf("%v: a restart is over when it is over", got)
		}
	})
}

// kept says how many commands' data hold that text.
func (l *Ledger) kept(t *testing.T, text string) (rows int) {
	t.Helper()
	all, err := l.db.Query(`SELECT data FROM commands WHERE data IS NOT NULL UNION ALL SELECT data FROM last_commands WHERE data IS NOT NULL`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = all.Close() }()
	for all.Next() {
		var data []byte
		if err := all.Scan(&data); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte(text)) {
			rows++
		}
	}
	return rows
}

func TestBundlesThatAreKeptAreBounded(t *testing.T) {
	l, c := open(t, Config{MaxKeptBytes: 3000})
	for _, stack := range []string{"a", "b", "c"} {
		succeed(t, l, bundled(stack, stack+string(make([]byte, 1400))), stack)
		c.Add(time.Second)
	}
	if told := back(t, l, "a"); told.GetNotOffered().GetCode() != missingTooMuch || told.GetNotOffered().GetHint() == "" {
		t.Errorf("the oldest: %v", told)
	}
	if told := back(t, l, "c"); len(told.GetOfferedCommandIds()) != 1 {
		t.Errorf("the newest: %v", told)
	}
	other := bundled("d", string(make([]byte, 2900)))
	other.ClusterID = "test"
	cmd := submit(t, l, other)
	end := event(t, cmd.ID, &runnerv1.CommandOutcome{Type: cmd.Type, Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, Stack: "d", Generation: 1})
	end.ClusterID = "test"
	keep(t, l, end)
	if told := back(t, l, "b"); len(told.GetOfferedCommandIds()) != 1 {
		t.Errorf("another cluster's bundle counts: %v", told)
	}
}

func TestABundleIsKeptOnlyAsLongAsItMayBeNeeded(t *testing.T) {
	l, _ := open(t, Config{})
	succeed(t, l, bundled("shop", "hunter2"), "shop")
	if n := l.kept(t, "hunter2"); n != 1 {
		t.Fatalf("kept %d times", n)
	}
	succeed(t, l, bundled("shop", "hunter3"), "shop")
	if n := l.kept(t, "hunter2"); n != 0 {
		t.Errorf("kept %d times after the next success", n)
	}
	succeed(t, l, remove("shop"), "shop")
	if n := l.kept(t, "hunter3"); n != 0 {
		t.Errorf("kept %d times after the removal", n)
	}
}

func TestBundlesNeedNotBeKept(t *testing.T) {
	l, _ := open(t, Config{})
	succeed(t, l, bundled("shop", "hunter2"), "shop")
	off := New(Config{ForgetBundles: true}, l.db, l.now)
	if err := off.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := off.kept(t, "hunter2"); n != 0 {
		t.Errorf("kept %d times after it was switched off", n)
	}
	succeed(t, off, bundled("blog", "hunter3"), "blog")
	if n := off.kept(t, "hunter3"); n != 0 {
		t.Errorf("kept %d times although it is switched off", n)
	}
	for _, stack := range []string{"shop", "blog"} {
		if told := back(t, off, stack); told.GetNotOffered().GetCode() != missingOff {
			t.Errorf("%v", told)
		}
	}
}
