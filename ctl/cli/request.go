package cli

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/ctl/client"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failurepb"
)

// answerGrace is how much later than the agent's own limit the plane's answer may come.
const answerGrace = 10 * time.Second

// ask sends an immediate command over an agent's session and returns the answer. docker's warnings go to stderr.
func (a *app) ask(ctx context.Context, to target, timeout time.Duration, request *runnerv1.Request) (*runnerv1.Response, error) {
	request.Timeout = durationpb.New(timeout)
	var response *runnerv1.Response
	err := a.call(ctx, timeout+answerGrace, func(ctx context.Context, plane *client.Client) (err error) {
		response, err = plane.SendRequest(ctx, &planev1.SendRequestRequest{AgentId: to.agent, ClusterId: to.cluster, Request: request})
		return err
	})
	if err != nil {
		return nil, err
	}
	a.warn(response.GetWarnings())
	return response, failurepb.ToError(response.GetFailure())
}
