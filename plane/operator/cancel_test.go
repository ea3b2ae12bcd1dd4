package operator

import (
	"slices"
	"strings"
	"testing"

	"github.com/axion/runner-agent/plane/ledger"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

func TestCancelAsksOneAgentAfterTheOther(t *testing.T) {
	p := start(t, ledger.Config{})
	p.enrol("prod", "n1")
	p.fleet.manager = func(string) (string, error) {
		return "", failure.New(failure.Unavailable, "no_manager_connected", "prod", "no manager")
	}
	id := p.submit(submission(deploy("shop"))).GetCommandId()
	broken := failure.New(failure.Unavailable, "agent_disconnected", "a-1", "the session has ended")
	silent := failure.New(failure.Deadline, "request_timeout", "a-1", "no answer")
	older := failure.New(failure.Invalid, "no_such_command", "a-1", "not mine")
	refusal := failure.New(failure.Denied, "not_signed", "a-1", "no")
	for name, tc := range map[string]struct {
		managers []string
		answers  map[string]error
		asked    []string
		agent    string
		code     string
	}{
		"the first acknowledges":    {[]string{"a-1", "a-2"}, nil, []string{"a-1"}, "a-1", ""},
		"its session breaks":        {[]string{"a-1", "a-2"}, map[string]error{"a-1": broken}, []string{"a-1", "a-2"}, "a-2", ""},
		"it is silent":              {[]string{"a-1", "a-2"}, map[string]error{"a-1": silent}, []string{"a-1", "a-2"}, "a-2", ""},
		"it is of an older version": {[]string{"a-1", "a-2"}, map[string]error{"a-1": older}, []string{"a-1", "a-2"}, "a-2", ""},
		"it refuses":                {[]string{"a-1", "a-2"}, map[string]error{"a-1": refusal}, []string{"a-1"}, "", "not_signed"},
		"all are away":              {[]string{"a-1", "a-2"}, map[string]error{"a-1": silent, "a-2": broken}, []string{"a-1", "a-2"}, "", "agent_disconnected"},
		"nobody is connected":       {nil, nil, nil, "", "no_manager_connected"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			p.fleet.managers = tc.managers
			p.fleet.request = func(agentID string, req *runnerv1.Request) (*runnerv1.Response, error) {
				asked = append(asked, agentID)
				if c := req.GetCancelCommand(); c.GetCommandId() != id || c.GetStack() != "shop" || req.GetTimeout().AsDuration() != cancelTimeout {
					t.Errorf("sent %v", req)
				}
				return &runnerv1.Response{}, tc.answers[agentID]
			}
			resp, err := p.client.CancelCommand(t.Context(), &planev1.CancelCommandRequest{CommandId: id})
			if codeOf(err) != tc.code || resp.GetAgentId() != tc.agent || !slices.Equal(asked, tc.asked) {
				t.Errorf("asked %v: %v, %v", asked, resp, err)
			}
		})
	}
}

func TestCancelOfWhatHasEnded(t *testing.T) {
	p := start(t, ledger.Config{})
	p.enrol("prod", "n1")
	p.fleet.managers = []string{"a-1"}
	if _, err := p.client.CancelCommand(t.Context(), &planev1.CancelCommandRequest{CommandId: "nothing"}); codeOf(err) != "no_such_command" {
		t.Errorf("got %v", err)
	}
	id := p.submit(submission(deploy("shop"))).GetCommandId()
	p.fleet.request = func(string, *runnerv1.Request) (*runnerv1.Response, error) {
		// The outcome is stored while the agent is asked, who knows nothing of the command any more.
		p.keep(id, &runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK})
		return nil, failure.New(failure.Invalid, "no_such_command", id, "not known")
	}
	for _, ended := range []string{"while the agent is asked", "before"} {
		_, err := p.client.CancelCommand(t.Context(), &planev1.CancelCommandRequest{CommandId: id})
		f := failure.Of(failurepb.FromStatus(err))
		if f == nil || f.Class != failure.Conflict || f.Code != "already_ended" || !strings.Contains(f.Message, "rolled back") {
			t.Errorf("%s: %+v", ended, f)
		}
	}
}

func TestCancelOfAWorkersCommand(t *testing.T) {
	p := start(t, ledger.Config{})
	manager := p.enrol("prod", "n1")
	worker := p.enrolWorker("prod", manager, "n2")
	p.fleet.managers = []string{manager}
	var asked []string
	p.fleet.request = func(agentID string, _ *runnerv1.Request) (*runnerv1.Response, error) {
		asked = append(asked, agentID)
		return &runnerv1.Response{}, nil
	}
	submit := func(agentID string) string {
		req := submission(deploy("shop"))
		req.AgentId = agentID
		return p.submit(req).GetCommandId()
	}
	id := submit(worker)
	if _, err := p.client.CancelCommand(t.Context(), &planev1.CancelCommandRequest{CommandId: id}); codeOf(err) != "agent_not_connected" || asked != nil {
		t.Errorf("asked %v: %v", asked, err)
	}
	p.fleet.connected[worker] = true
	resp, err := p.client.CancelCommand(t.Context(), &planev1.CancelCommandRequest{CommandId: id})
	if err != nil || resp.GetAgentId() != worker {
		t.Errorf("%v, %v", resp, err)
	}
	// A manager hands on what comes on its own topic, so any manager may know of it.
	resp, err = p.client.CancelCommand(t.Context(), &planev1.CancelCommandRequest{CommandId: submit(manager)})
	if err != nil || resp.GetAgentId() != manager {
		t.Errorf("%v, %v", resp, err)
	}
}
