package stack

import "time"

// Event is one step of a running operation: an ObjectChange, a ServiceProgress or a Notice. Events are told in order, one at a time.
type Event interface{ isEvent() }

// Kind is a kind of Swarm object.
type Kind string

// The kinds of objects that a stack is made of.
const (
	KindService Kind = "service"
	KindNetwork Kind = "network"
	KindConfig  Kind = "config"
	KindSecret  Kind = "secret"
)

// Action is what happened to an object.
type Action string

// The actions.
const (
	Created Action = "created"
	Updated Action = "updated"
	Removed Action = "removed"
)

// ObjectChange tells of one write that the engine accepted.
type ObjectChange struct {
	Kind   Kind
	Action Action
	// Name is the full name, for example "shop_web"; the id where the name is not known.
	Name string
	// ID is the object's id in the Swarm.
	ID string
}

// State is where a service stands on its way to its target.
type State string

// The states of a service.
const (
	// Pending: not all wanted tasks run yet, or not for long enough.
	Pending State = "pending"
	// ServiceConverged: all wanted tasks of the newest spec run, and have done so for the time that docker monitors.
	ServiceConverged State = "converged"
	// RollingBack: Swarm is putting the previous spec back.
	RollingBack State = "rolling_back"
	// ServiceRolledBack: Swarm has put the previous spec back.
	ServiceRolledBack State = "rolled_back"
	// Paused: Swarm paused the update, or the rollback, after a failure.
	Paused State = "paused"
	// Completed: a job or one-shot service has run to its end.
	Completed State = "completed"
	// ServiceFailed: its tasks failed and no more will be tried, or the service is gone.
	ServiceFailed State = "failed"
)

// Final says whether Swarm will not move a service on from this state by itself.
func (s State) Final() bool { return s != Pending && s != RollingBack }

// Good says whether this is how a service should end.
func (s State) Good() bool { return s == ServiceConverged || s == Completed }

// TaskError is why one task failed, in the engine's own, untruncated words.
type TaskError struct {
	TaskID string
	// Slot is the slot of a replicated service, 0 of a global one.
	Slot int
	// NodeID is empty if no node was found for the task.
	NodeID string
	// Node is the node's host name, empty if unknown.
	Node string
	// State is the task's state as docker names it, for example "failed" or "rejected".
	State string
	// Error is the engine's text.
	Error string
	// ExitCode is the container's, 0 if it did not run.
	ExitCode int
	// At is when the task entered this state.
	At time.Time
}

// ServiceProgress is the state of one service. It is told when something in it changes.
type ServiceProgress struct {
	// Service is the full name, for example "shop_web".
	Service string
	State   State
	// Running is the number of tasks that run or, of a job or one-shot service, have completed.
	Running uint64
	// Desired is the number of tasks that are wanted.
	Desired uint64
	// Errors holds the newest task errors first, the same text of the same task slot once, at most 20.
	Errors []TaskError
	// Message is a sentence on the state, for example what Swarm's update status says; may be empty.
	Message string
}

// Notice is a sentence for the person who watches.
type Notice struct {
	Warning bool
	Text    string
}

func (ObjectChange) isEvent()    {}
func (ServiceProgress) isEvent() {}
func (Notice) isEvent()          {}

// Status is how an operation ended.
type Status string

// The ends of an operation.
const (
	// Converged: every service runs as wanted, or has run to its end.
	Converged Status = "converged"
	// Gone: the stack was removed and nothing of it is left.
	Gone Status = "gone"
	// Accepted: the engine took the change; nobody waited for its effect.
	Accepted Status = "accepted"
	// RolledBack: Swarm put at least one service back to its previous spec.
	RolledBack Status = "rolled_back"
	// Failed: it was refused or failed; the error says why.
	Failed Status = "failed"
	// TimedOut: it was not done within the timeout, and goes on in the Swarm.
	TimedOut Status = "timed_out"
	// Cancelled: the context ended; what was written stays.
	Cancelled Status = "cancelled"
)

// Result is what an operation did, filled as far as it went.
type Result struct {
	Status Status
	// Changes holds the writes in their order, at most 10,000.
	Changes []ObjectChange
	// Services holds the last state of each service, sorted by name.
	Services []ServiceProgress
	// Warnings holds the warnings of docker/cli and of the engine, each one sentence or more, at most 100.
	Warnings []string
}
