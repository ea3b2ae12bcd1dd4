package command

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// containers notes what was asked of it.
type containers struct{ asked string }

func (c *containers) Stop(_ context.Context, name string, grace *time.Duration) error {
	c.asked = fmt.Sprintf("stop %s %v", name, grace)
	if grace != nil {
		c.asked = fmt.Sprintf("stop %s %v", name, *grace)
	}
	return nil
}

func (c *containers) Start(_ context.Context, name string) error {
	c.asked = "start " + name
	return nil
}

func (c *containers) Restart(_ context.Context, name string, _ *time.Duration) error {
	c.asked = "restart " + name
	return nil
}

func (c *containers) Kill(_ context.Context, name, signal string) error {
	c.asked = "kill " + name + " " + signal
	return nil
}

func TestImmediate(t *testing.T) {
	c, s := &containers{}, &stacks{}
	role := runnerv1.NodeRole_NODE_ROLE_MANAGER
	i := &Immediate{
		Containers: c,
		Stacks:     func() (Stacks, error) { return s, nil },
		Role:       func() runnerv1.NodeRole { return role },
		Cancel: func(_ context.Context, id, stack string) error {
			if id == "m1" && stack == "shop" {
				return nil
			}
			return failure.New(failure.Invalid, "no_such_command", id, "no command %s", id)
		},
	}
	for name, tc := range map[string]struct {
		req   *runnerv1.Request
		asked string // of the containers
		code  string // of the failure
	}{
		"ping":              {&runnerv1.Request{Command: &runnerv1.Request_Ping{Ping: &runnerv1.Ping{}}}, "", ""},
		"stop":              {&runnerv1.Request{Command: &runnerv1.Request_ContainerStop{ContainerStop: &runnerv1.ContainerStop{Container: "web", Grace: durationpb.New(time.Second)}}}, "stop web 1s", ""},
		"stop, no grace":    {&runnerv1.Request{Command: &runnerv1.Request_ContainerStop{ContainerStop: &runnerv1.ContainerStop{Container: "web"}}}, "stop web <nil>", ""},
		"start":             {&runnerv1.Request{Command: &runnerv1.Request_ContainerStart{ContainerStart: &runnerv1.ContainerStart{Container: "web"}}}, "start web", ""},
		"restart":           {&runnerv1.Request{Command: &runnerv1.Request_ContainerRestart{ContainerRestart: &runnerv1.ContainerRestart{Container: "web"}}}, "restart web", ""},
		"kill":              {&runnerv1.Request{Command: &runnerv1.Request_ContainerKill{ContainerKill: &runnerv1.ContainerKill{Container: "web", Signal: "HUP"}}}, "kill web HUP", ""},
		"cancel":            {&runnerv1.Request{Command: &runnerv1.Request_CancelCommand{CancelCommand: &runnerv1.CancelCommand{CommandId: "m1", Stack: "shop"}}}, "", ""},
		"cancel of nothing": {&runnerv1.Request{Command: &runnerv1.Request_CancelCommand{CancelCommand: &runnerv1.CancelCommand{CommandId: "m2"}}}, "", "no_such_command"},
		"nothing":           {&runnerv1.Request{}, "", "unsupported_request"},
	} {
		t.Run(name, func(t *testing.T) {
			c.asked = ""
			tc.req.Id = "r1"
			resp := i.Handle(t.Context(), tc.req)
			if resp.GetId() != "r1" || c.asked != tc.asked || resp.GetFailure().GetCode() != tc.code {
				t.Errorf("asked %q, answer %v", c.asked, resp)
			}
		})
	}

	scale := &runnerv1.Request{Command: &runnerv1.Request_ServiceScale{ServiceScale: &runnerv1.ServiceScale{Service: "shop_web", Replicas: 3}}}
	list := &runnerv1.Request{Command: &runnerv1.Request_StackStatus{StackStatus: &runnerv1.StackStatus{}}}
	one := &runnerv1.Request{Command: &runnerv1.Request_StackStatus{StackStatus: &runnerv1.StackStatus{Stack: "shop"}}}
	if resp := i.Handle(t.Context(), scale); resp.GetFailure() != nil || s.all()[0] != "scale shop_web=3" {
		t.Errorf("%v, done %v", resp, s.all())
	}
	if got := i.Handle(t.Context(), list).GetStackStatus().GetStacks(); len(got) != 1 || got[0].GetServices() != 2 {
		t.Errorf("stacks: %v", got)
	}
	if got := i.Handle(t.Context(), one).GetStackStatus().GetServices(); len(got) != 1 || got[0].GetName() != "shop_web" {
		t.Errorf("services: %v", got)
	}
	role = runnerv1.NodeRole_NODE_ROLE_WORKER
	for _, req := range []*runnerv1.Request{scale, list, one} {
		if code := i.Handle(t.Context(), req).GetFailure().GetCode(); code != "wrong_node" {
			t.Errorf("a worker answers %q", code)
		}
	}
}
