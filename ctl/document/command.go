package document

import (
	"time"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Submitted is a command that the control plane has.
type Submitted struct {
	// Kind is "submitted".
	Kind       string `json:"kind"`
	CommandID  string `json:"command_id"`
	ClusterID  string `json:"cluster_id"`
	Generation uint64 `json:"generation"`
	// Existing says that the plane had taken this very command before.
	Existing bool `json:"existing"`
}

// OfSubmitted returns the plane's answer as a document.
func OfSubmitted(s *planev1.SubmitCommandResponse) Submitted {
	return Submitted{Kind: "submitted", CommandID: s.GetCommandId(), ClusterID: s.GetClusterId(), Generation: s.GetGeneration(), Existing: s.GetExisting()}
}

// Received says that an agent has taken a command.
type Received struct {
	// Kind is "received".
	Kind    string     `json:"kind"`
	Time    *time.Time `json:"time,omitempty"`
	AgentID string     `json:"agent_id"`
	Type    string     `json:"type"`
	// Attempt is 1 for the first time that this agent saw it.
	Attempt uint32 `json:"attempt"`
}

// Object is one write of a command.
type Object struct {
	// Kind is "object".
	Kind string     `json:"kind"`
	Time *time.Time `json:"time,omitempty"`
	Change
}

// Change tells of one object that was written.
type Change struct {
	// ObjectKind is "service", "network", "config" or "secret".
	ObjectKind string `json:"object_kind"`
	// Action is "created", "updated" or "removed".
	Action string `json:"action"`
	Name   string `json:"name"`
	ID     string `json:"id,omitempty"`
}

// ServiceEvent is a service's state while a command runs.
type ServiceEvent struct {
	// Kind is "service".
	Kind string     `json:"kind"`
	Time *time.Time `json:"time,omitempty"`
	Service
}

// Service is the state of a service.
type Service struct {
	Service string `json:"service"`
	// State is "pending", "converged", "rolling_back", "rolled_back", "paused", "completed" or "failed".
	State   string `json:"state"`
	Running uint64 `json:"running"`
	Desired uint64 `json:"desired"`
	Message string `json:"message,omitempty"`
	// Seconds is how long it took to reach its last state; only in an outcome.
	Seconds *float64    `json:"seconds,omitempty"`
	Errors  []TaskError `json:"errors,omitempty"`
}

// TaskError is why one task failed.
type TaskError struct {
	TaskID   string     `json:"task_id"`
	Slot     uint64     `json:"slot,omitempty"`
	NodeID   string     `json:"node_id,omitempty"`
	Node     string     `json:"node,omitempty"`
	State    string     `json:"state"`
	Error    string     `json:"error"`
	ExitCode int32      `json:"exit_code,omitempty"`
	At       *time.Time `json:"at,omitempty"`
}

// Notice is a sentence for the person who watches.
type Notice struct {
	// Kind is "notice".
	Kind string     `json:"kind"`
	Time *time.Time `json:"time,omitempty"`
	// Level is "info" or "warning".
	Level string `json:"level"`
	Text  string `json:"text"`
}

// Connection tells of the connection to the control plane.
type Connection struct {
	// Kind is "connection".
	Kind string `json:"kind"`
	// State is "retrying" (the command was not taken yet), "lost" (while watching) or "restored".
	State string `json:"state"`
	// RetrySeconds is the pause before the next attempt.
	RetrySeconds float64  `json:"retry_seconds,omitempty"`
	Error        *Failure `json:"error,omitempty"`
}

// Outcome is how a command ended.
type Outcome struct {
	// Kind is "outcome".
	Kind      string `json:"kind"`
	CommandID string `json:"command_id"`
	Type      string `json:"type"`
	// Status is "succeeded", "failed", "rolled_back", "timed_out", "superseded", "cancelled", "rejected" or "expired".
	Status            string     `json:"status"`
	Stack             string     `json:"stack,omitempty"`
	Generation        uint64     `json:"generation"`
	CurrentGeneration uint64     `json:"current_generation,omitempty"`
	Failure           *Failure   `json:"failure,omitempty"`
	Services          []Service  `json:"services"`
	Changes           []Change   `json:"changes"`
	Warnings          []string   `json:"warnings"`
	StartedAt         *time.Time `json:"started_at,omitempty"`
	EndedAt           *time.Time `json:"ended_at,omitempty"`
	// Seconds is the time between the two.
	Seconds float64 `json:"seconds"`
}

// OfReceived returns the event as a document.
func OfReceived(record *planev1.EventRecord, r *runnerv1.CommandReceived) Received {
	return Received{Kind: "received", Time: at(record.GetTime()), AgentID: record.GetAgentId(), Type: r.GetType(), Attempt: r.GetAttempt()}
}

// OfObject returns the event as a document.
func OfObject(record *planev1.EventRecord, c *runnerv1.ObjectChange) Object {
	return Object{Kind: "object", Time: at(record.GetTime()), Change: ofChange(c)}
}

// OfServiceProgress returns the event as a document.
func OfServiceProgress(record *planev1.EventRecord, s *runnerv1.ServiceProgress) ServiceEvent {
	return ServiceEvent{Kind: "service", Time: at(record.GetTime()), Service: ofService(s)}
}

// OfNotice returns the event as a document.
func OfNotice(record *planev1.EventRecord, n *runnerv1.Notice) Notice {
	return Notice{Kind: "notice", Time: at(record.GetTime()), Level: Level(n.GetLevel()), Text: n.GetText()}
}

// OfConnection returns a change of the connection as a document.
func OfConnection(state string, wait time.Duration, err error) Connection {
	c := Connection{Kind: "connection", State: state, RetrySeconds: wait.Seconds()}
	if err != nil {
		f := OfError(err)
		c.Error = &f
	}
	return c
}

// OfOutcome returns an outcome as a document. took gives how long a service took; nil if that is not known.
func OfOutcome(commandID string, o *runnerv1.CommandOutcome, took func(service string) (time.Duration, bool)) Outcome {
	d := Outcome{
		Kind: "outcome", CommandID: commandID, Type: o.GetType(), Status: Status(o.GetStatus()), Stack: o.GetStack(),
		Generation: o.GetGeneration(), CurrentGeneration: o.GetCurrentGeneration(), Failure: ofFailure(o.GetFailure()),
		Services: []Service{}, Changes: []Change{}, Warnings: append([]string{}, o.GetWarnings()...),
		StartedAt: at(o.GetStartedAt()), EndedAt: at(o.GetEndedAt()),
	}
	if d.StartedAt != nil && d.EndedAt != nil {
		d.Seconds = d.EndedAt.Sub(*d.StartedAt).Seconds()
	}
	for _, s := range o.GetServices() {
		service := ofService(s)
		if took != nil {
			if t, ok := took(s.GetService()); ok {
				seconds := t.Seconds()
				service.Seconds = &seconds
			}
		}
		d.Services = append(d.Services, service)
	}
	for _, c := range o.GetChanges() {
		d.Changes = append(d.Changes, ofChange(c))
	}
	return d
}

func ofChange(c *runnerv1.ObjectChange) Change {
	return Change{ObjectKind: Kind(c.GetKind()), Action: Action(c.GetAction()), Name: c.GetName(), ID: c.GetId()}
}

func ofService(s *runnerv1.ServiceProgress) Service {
	d := Service{Service: s.GetService(), State: State(s.GetState()), Running: s.GetRunning(), Desired: s.GetDesired(), Message: s.GetMessage()}
	for _, e := range s.GetErrors() {
		d.Errors = append(d.Errors, TaskError{
			TaskID: e.GetTaskId(), Slot: e.GetSlot(), NodeID: e.GetNodeId(), Node: e.GetNode(), State: e.GetState(),
			Error: e.GetError(), ExitCode: e.GetExitCode(), At: at(e.GetAt()),
		})
	}
	return d
}
