package command

import (
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/stack/bundle"
)

// deploymentOf reads a StackDeploy. Whether names and files are right is the stack engine's to say.
func deploymentOf(m *runnerv1.StackDeploy, otherwise time.Duration) (stack.Deployment, error) {
	timeout, err := timeoutOf(m.GetOptions().GetTimeout(), otherwise)
	if err != nil {
		return stack.Deployment{}, err
	}
	plain := m.GetBundle().GetPlain()
	switch {
	case m.GetBundle().GetSealed() != nil:
		return stack.Deployment{}, failure.New(failure.Invalid, "sealed_bundle", m.GetStack(), "the bundle of stack %s is sealed, which this agent cannot open", m.GetStack()).
			WithHint("send it unsealed, or update the agent")
	case plain == nil:
		return stack.Deployment{}, failure.New(failure.Invalid, "no_bundle", m.GetStack(), "the deployment of stack %s has no bundle", m.GetStack())
	}
	content := bundle.Content{
		WorkingDir:   plain.GetWorkingDir(),
		Home:         plain.GetHome(),
		ComposeFiles: plain.GetComposeFiles(),
		Variables:    plain.GetVariables(),
	}
	for _, f := range plain.GetFiles() {
		content.Files = append(content.Files, bundle.File{Path: f.GetPath(), Content: f.GetContent()})
	}
	for _, cr := range plain.GetRegistryCredentials() {
		content.Credentials = append(content.Credentials, bundle.Credential{
			Server: cr.GetServer(), Username: cr.GetUsername(), Password: cr.GetPassword(), IdentityToken: cr.GetIdentityToken(),
		})
	}
	return stack.Deployment{
		Stack:            m.GetStack(),
		Bundle:           content,
		Prune:            m.GetOptions().GetPrune(),
		WithRegistryAuth: m.GetOptions().GetWithRegistryAuth(),
		ResolveImage:     resolveImage(m.GetOptions().GetResolveImage()),
		Timeout:          timeout,
	}, nil
}

func resolveImage(r runnerv1.ResolveImage) stack.ResolveImage {
	switch r {
	case runnerv1.ResolveImage_RESOLVE_IMAGE_CHANGED:
		return stack.ResolveChanged
	case runnerv1.ResolveImage_RESOLVE_IMAGE_NEVER:
		return stack.ResolveNever
	default:
		return stack.ResolveAlways
	}
}

// outcomeOf says how a command ended. What the stack engine has seen of the services goes along in any case.
func outcomeOf(result stack.Result, err error) *runnerv1.CommandOutcome {
	outcome := &runnerv1.CommandOutcome{Status: outcomeStatus(result, err), Failure: failureOf(err), Warnings: result.Warnings}
	for _, change := range result.Changes {
		outcome.Changes = append(outcome.Changes, objectChange(change))
	}
	for _, service := range result.Services {
		outcome.Services = append(outcome.Services, serviceProgress(service))
	}
	return outcome
}

func outcomeStatus(result stack.Result, err error) runnerv1.OutcomeStatus {
	f := failure.Of(err)
	switch {
	case f == nil:
		return runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED
	case f.Code == errCancelled.Code:
		return runnerv1.OutcomeStatus_OUTCOME_STATUS_CANCELLED
	case result.Status == stack.RolledBack:
		return runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK
	case result.Status == stack.TimedOut || f.Class == failure.Deadline:
		return runnerv1.OutcomeStatus_OUTCOME_STATUS_TIMED_OUT
	case len(result.Changes) == 0 && (f.Class == failure.Invalid || f.Class == failure.Denied):
		return runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED
	default:
		return runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED
	}
}

func objectChange(e stack.ObjectChange) *runnerv1.ObjectChange {
	return &runnerv1.ObjectChange{Kind: objectKinds[e.Kind], Action: objectActions[e.Action], Name: e.Name, Id: e.ID}
}

var objectKinds = map[stack.Kind]runnerv1.ObjectKind{
	stack.KindService: runnerv1.ObjectKind_OBJECT_KIND_SERVICE,
	stack.KindNetwork: runnerv1.ObjectKind_OBJECT_KIND_NETWORK,
	stack.KindConfig:  runnerv1.ObjectKind_OBJECT_KIND_CONFIG,
	stack.KindSecret:  runnerv1.ObjectKind_OBJECT_KIND_SECRET,
}

var objectActions = map[stack.Action]runnerv1.ObjectAction{
	stack.Created: runnerv1.ObjectAction_OBJECT_ACTION_CREATED,
	stack.Updated: runnerv1.ObjectAction_OBJECT_ACTION_UPDATED,
	stack.Removed: runnerv1.ObjectAction_OBJECT_ACTION_REMOVED,
}

var serviceStates = map[stack.State]runnerv1.ServiceState{
	stack.Pending:           runnerv1.ServiceState_SERVICE_STATE_PENDING,
	stack.ServiceConverged:  runnerv1.ServiceState_SERVICE_STATE_CONVERGED,
	stack.RollingBack:       runnerv1.ServiceState_SERVICE_STATE_ROLLING_BACK,
	stack.ServiceRolledBack: runnerv1.ServiceState_SERVICE_STATE_ROLLED_BACK,
	stack.Paused:            runnerv1.ServiceState_SERVICE_STATE_PAUSED,
	stack.Completed:         runnerv1.ServiceState_SERVICE_STATE_COMPLETED,
	stack.ServiceFailed:     runnerv1.ServiceState_SERVICE_STATE_FAILED,
}

func serviceProgress(e stack.ServiceProgress) *runnerv1.ServiceProgress {
	p := &runnerv1.ServiceProgress{Service: e.Service, State: serviceStates[e.State], Running: e.Running, Desired: e.Desired, Message: e.Message}
	for _, t := range e.Errors {
		p.Errors = append(p.Errors, &runnerv1.TaskError{
			TaskId: t.TaskID, Slot: uint64(t.Slot), NodeId: t.NodeID, Node: t.Node, State: t.State, Error: t.Error, ExitCode: int32(t.ExitCode), At: timestamp(t.At),
		})
	}
	return p
}

func notice(e stack.Notice) *runnerv1.Notice {
	level := runnerv1.NoticeLevel_NOTICE_LEVEL_INFO
	if e.Warning {
		level = runnerv1.NoticeLevel_NOTICE_LEVEL_WARNING
	}
	return &runnerv1.Notice{Level: level, Text: e.Text}
}

// stackStatusResult answers a StackStatus: the stacks of the Swarm if none is named, else the services and tasks of that one.
func stackStatusResult(stacks []stack.Summary, status stack.StackStatus) *runnerv1.StackStatusResult {
	result := &runnerv1.StackStatusResult{}
	for _, s := range stacks {
		result.Stacks = append(result.Stacks, &runnerv1.StackSummary{Name: s.Name, Services: uint32(s.Services)})
	}
	for _, s := range status.Services {
		result.Services = append(result.Services, &runnerv1.ServiceStatus{
			Id: s.ID, Name: s.Name, Mode: s.Mode, Replicas: s.Replicas, Image: s.Image, Ports: s.Ports, Running: s.Running, Desired: s.Desired,
		})
	}
	for _, t := range status.Tasks {
		result.Tasks = append(result.Tasks, &runnerv1.TaskStatus{
			Id: t.ID, Name: t.Name, Image: t.Image, Node: t.Node, DesiredState: t.DesiredState, CurrentState: t.CurrentState,
			Error: t.Error, Ports: t.Ports, Service: t.Service, State: t.State,
		})
	}
	return result
}
