package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/axion/runner-agent/ctl/goldentest"
	"github.com/axion/runner-agent/ctl/planetest"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// letters is a plane with dead letters; it writes down what is replayed.
func letters(replayed *[]*planev1.ReplayDeadLetterRequest) *planetest.Script {
	value := []byte("{\n  \"service\": \"shop_größe\"\n}")
	text := &planev1.DeadLetter{
		Id: 17, AgentId: agentID, ClusterId: "prod", Verified: true, Topic: "runner.commands.prod", Offset: 41, Type: "axion.runner.v1.ServiceScale", CommandId: commandID,
		Class: "invalid", Code: "unreadable", Reason: "message " + commandID + " is no readable axion.runner.v1.ServiceScale", Attempts: 2,
		FirstAt: at(-3 * time.Hour), LastAt: at(-2 * time.Hour), ValueSize: uint64(len(value)),
	}
	binary := &planev1.DeadLetter{
		Id: 18, AgentId: "a-\u202egnp", Topic: "runner.commands.prod", Partition: -1, Offset: -1, Class: "invalid", Code: "bad_envelope",
		Reason: "header ce_specversion is \"\", 1.0 is needed", Attempts: 1, FirstAt: at(-time.Minute), LastAt: at(-time.Minute), ReplayedAt: at(-time.Second), ValueSize: 3 << 20,
	}
	missing := func(id uint64) error {
		return failurepb.Status(failure.New(failure.Invalid, "no_such_letter", "", "there is no dead letter %d", id).WithHint("axionctl dlq list"))
	}
	return &planetest.Script{
		OnListDeadLetters: func(_ context.Context, r *planev1.ListDeadLettersRequest) (*planev1.ListDeadLettersResponse, error) {
			if r.GetBefore() == 17 {
				return &planev1.ListDeadLettersResponse{}, nil
			}
			if r.GetClusterId() != "" && (r.GetClusterId() != "prod" || r.GetAgentId() != agentID || r.GetLimit() != 1) {
				return nil, failurepb.Status(failure.New(failure.Invalid, "test", "", "got %v", r))
			}
			if r.GetClusterId() == "prod" {
				return &planev1.ListDeadLettersResponse{Letters: []*planev1.DeadLetter{text}, Next: 17}, nil
			}
			return &planev1.ListDeadLettersResponse{Letters: []*planev1.DeadLetter{binary, text}}, nil
		},
		OnGetDeadLetter: func(_ context.Context, r *planev1.GetDeadLetterRequest) (*planev1.GetDeadLetterResponse, error) {
			switch r.GetId() {
			case 17:
				return &planev1.GetDeadLetterResponse{
					Letter: text, Key: []byte("shop"), Value: value[:min(len(value), int(r.GetMaxValueBytes()))],
					Headers: []*planev1.DeadLetterHeader{{Key: "ce_id", Value: []byte(commandID)}, {Key: "ce_type", Value: []byte("axion.runner.v1.ServiceScale")}},
				}, nil
			case 18:
				return &planev1.GetDeadLetterResponse{
					Letter: binary, Key: []byte{0xff, 0}, Value: []byte("\x0a\x04shop\x10\xff binary, not text"),
					Headers: []*planev1.DeadLetterHeader{{Key: "x\x1b[2J", Value: []byte("\x1b[2J")}, {Key: "traceparent", Value: []byte("two\nlines")}},
				}, nil
			}
			return nil, missing(r.GetId())
		},
		OnReplayDeadLetter: func(_ context.Context, r *planev1.ReplayDeadLetterRequest) (*planev1.ReplayDeadLetterResponse, error) {
			if replayed != nil {
				*replayed = append(*replayed, r)
			}
			if r.GetId() == 18 && !r.GetAllowUnverified() {
				return nil, failurepb.Status(failure.New(failure.Denied, "unverified_letter", "", "dead letter 18 is not verified").WithHint("look at it"))
			}
			return &planev1.ReplayDeadLetterResponse{Topic: "runner.commands.prod", Offset: 42}, nil
		},
		OnDropDeadLetter: func(_ context.Context, r *planev1.DropDeadLetterRequest) (*planev1.DropDeadLetterResponse, error) {
			if r.GetId() != 17 {
				return nil, missing(r.GetId())
			}
			return &planev1.DropDeadLetterResponse{}, nil
		},
	}
}

func TestDeadLetterOutput(t *testing.T) {
	p := planetest.Start(t, letters(nil))
	for name, args := range map[string][]string{
		"dlq-list":      {"dlq", "list"},
		"dlq-list-page": {"dlq", "list", "--cluster", "prod", "--agent", agentID, "--limit", "1"},
		"dlq-list-end":  {"dlq", "list", "--before", "17"},
		"dlq-show":      {"dlq", "show", "17"},
		"dlq-show-part": {"dlq", "show", "17", "--bytes", "25"},
		"dlq-show-hex":  {"dlq", "show", "18"},
		"dlq-show-none": {"dlq", "show", "19"},
		"dlq-replay":    {"dlq", "replay", "17", "--yes"},
		"dlq-denied":    {"dlq", "replay", "18", "-y"},
		"dlq-drop":      {"dlq", "drop", "17"},
		"dlq-drop-none": {"dlq", "drop", "19"},
	} {
		for _, format := range []string{"table", "json"} {
			t.Run(name+"-"+format, func(t *testing.T) {
				got := axionctl(t, p, append(args, "-o", format)...)
				if format == "json" && got.stdout != "" && !json.Valid([]byte(got.stdout)) {
					t.Errorf("stdout is not one document: %q", got.stdout)
				}
				if format == "table" && strings.ContainsAny(got.stdout, "\x1b\u202e") {
					t.Errorf("what came from outside reaches the terminal: %q", got.stdout)
				}
				goldentest.Compare(t, name+"-"+format+".golden", got.golden(p.Context.Address, "ADDRESS"))
			})
		}
	}
}

func TestDeadLetterUsage(t *testing.T) {
	p := planetest.Start(t, letters(nil))
	for name, tc := range map[string]struct {
		args []string
		says string
	}{
		"no id":        {[]string{"dlq", "show"}, "ID is missing"},
		"no number":    {[]string{"dlq", "drop", "x"}, `"x" is not the id of a dead letter`},
		"zero":         {[]string{"dlq", "replay", "-y", "0"}, `"0" is not the id of a dead letter`},
		"no limit":     {[]string{"dlq", "list", "--limit", "0"}, "between 1 and 1000"},
		"large limit":  {[]string{"dlq", "list", "--limit", "1001"}, "between 1 and 1000"},
		"large value":  {[]string{"dlq", "show", "17", "--bytes", "16777217"}, "between 1 and 16777216"},
		"nobody there": {[]string{"dlq", "replay", "17"}, "--yes is needed"},
	} {
		t.Run(name, func(t *testing.T) {
			got := axionctl(t, p, tc.args...)
			if got.code != 2 || !strings.Contains(got.stderr, tc.says) || got.stdout != "" {
				t.Errorf("exit code %d, stderr %q, stdout %q", got.code, got.stderr, got.stdout)
			}
		})
	}
}

// silence is a terminal at which nobody answers.
type silence struct{ ctx context.Context }

func (s silence) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, io.EOF
}

func TestReplayAsks(t *testing.T) {
	for name, tc := range map[string]struct {
		answer string
		args   []string
		code   int
		sent   int
	}{
		"yes":             {"y\n", nil, 0, 1},
		"the whole word":  {"YES\n", nil, 0, 1},
		"no":              {"n\n", nil, 1, 0},
		"nothing":         {"\n", nil, 1, 0},
		"end of input":    {"", nil, 1, 0},
		"something else":  {"yesterday\n", nil, 1, 0},
		"it is not asked": {"n\n", []string{"--yes", "--unverified"}, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var replayed []*planev1.ReplayDeadLetterRequest
			p := planetest.Start(t, letters(&replayed))
			got := run(t, Environment{Args: append([]string{"dlq", "replay", "17"}, tc.args...), Stdin: strings.NewReader(tc.answer), Interactive: true}, p)
			if got.code != tc.code || len(replayed) != tc.sent {
				t.Errorf("got %+v, sent %v", got, replayed)
			}
			if asked := strings.Contains(got.stderr, "to runner.commands.prod? [y/N]"); asked != (tc.args == nil) {
				t.Errorf("stderr %q", got.stderr)
			}
			if tc.args != nil && !replayed[0].GetAllowUnverified() {
				t.Errorf("sent %v", replayed)
			}
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := (&app{env: Environment{Stdin: silence{t.Context()}, Stderr: io.Discard}}).confirm(ctx, "?")
		if !errors.Is(err, errInterrupted) {
			t.Errorf("got %v", err)
		}
	})
}
