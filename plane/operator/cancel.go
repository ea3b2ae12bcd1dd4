package operator

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/plane/ledger"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// cancelTimeout bounds one agent's try at writing the cancellation to the Swarm; then the next manager is asked.
const cancelTimeout = 10 * time.Second

// CancelCommand has a command cancelled that has no outcome yet. A cancellation is written with a compare-and-swap, so that it does no harm to ask one agent
// after the other until one of them acknowledges.
func (s *Server) CancelCommand(ctx context.Context, req *planev1.CancelCommandRequest) (*planev1.CancelCommandResponse, error) {
	agentID, err := s.cancel(ctx, req.GetCommandId())
	if err != nil {
		return nil, s.answer(ctx, "CancelCommand", err)
	}
	return &planev1.CancelCommandResponse{AgentId: agentID}, nil
}

func (s *Server) cancel(ctx context.Context, id string) (agentID string, err error) {
	c, err := s.openCommand(ctx, id)
	if err != nil {
		return "", err
	}
	agents, err := s.cancellers(ctx, c)
	if err != nil {
		return "", err
	}
	for _, agentID = range agents {
		_, err = s.deps.Fleet.Request(ctx, agentID, &runnerv1.Request{
			Timeout: durationpb.New(cancelTimeout),
			Command: &runnerv1.Request_CancelCommand{CancelCommand: &runnerv1.CancelCommand{CommandId: c.ID, Stack: c.Stack}},
		})
		if err == nil {
			s.deps.Log.Info("command cancelled", "command_id", c.ID, "correlation_id", c.CorrelationID, "agent_id", agentID)
			return agentID, nil
		}
		if ctx.Err() != nil || !anotherMay(err) {
			break
		}
		s.deps.Log.Warn("an agent did not take a cancellation", "command_id", c.ID, "agent_id", agentID, "error", err)
	}
	if _, ended := s.openCommand(ctx, id); ended != nil {
		return "", ended // meanwhile
	}
	return "", err
}

// anotherMay tells failures of one agent after which another may well cancel the command: it is away, has no quorum, or is of a version that cancels only what
// it runs itself.
func anotherMay(err error) bool {
	f := failure.Of(err)
	return f.Class == failure.Unavailable || f.Class == failure.Deadline || f.Code == "no_such_command"
}

// openCommand returns a command that has no outcome. Failures: invalid no_such_command, conflict already_ended.
func (s *Server) openCommand(ctx context.Context, id string) (ledger.Command, error) {
	c, err := s.deps.Ledger.Command(ctx, id)
	if err != nil || c.Open() {
		return c, err
	}
	outcome := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(c.Outcome.String(), "OUTCOME_STATUS_")), "_", " ")
	return c, failure.New(failure.Conflict, "already_ended", c.ID, "command %s for %s has already ended: %s", c.ID, c.Subject, outcome).
		WithHint("what it did stays: see `axionctl events --command " + c.ID + "`")
}

// cancellers returns the connected agents that can cancel a command, the best first. What is for an agent on a worker only that agent can: a manager knows
// nothing of it. Failures: unavailable agent_not_connected and no_manager_connected.
func (s *Server) cancellers(ctx context.Context, c ledger.Command) ([]string, error) {
	if c.AgentID != "" {
		agent, err := s.deps.Registry.Agent(ctx, c.AgentID)
		if err != nil {
			return nil, err
		}
		if !agent.ManagerConfirmed {
			agentID, err := s.session(ctx, c.AgentID, "")
			return []string{agentID}, err
		}
	}
	agents := s.deps.Fleet.Managers(c.ClusterID, c.ID)
	if len(agents) == 0 {
		_, err := s.deps.Fleet.PickManager(c.ClusterID) // says what is missing
		return nil, err
	}
	return agents, nil
}
