package stack

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

const (
	// defaultMonitor is how long tasks must run before docker calls a service converged, unless its update_config says otherwise
	// (docker/cli, cli/command/service/progress).
	defaultMonitor = 5 * time.Second
	// maxTaskErrors bounds the errors that are told of one service.
	maxTaskErrors = 20
	// noEligibleNode is told of a global service that the Swarm makes no task for.
	noEligibleNode = "no node is eligible for this service"
)

// cluster is one look at what the engine says.
type cluster struct {
	services map[string]swarm.Service // by name
	tasks    map[string][]swarm.Task  // by service id, old ones too
	upToDate map[string]bool          // ids of the tasks that need no replacement to match the service's spec
	nodes    map[string]swarm.Node    // by id
}

// watched is what must be remembered of one service between two looks.
type watched struct {
	name string
	// before holds the ids of the tasks that were there before the operation: their errors are old news.
	before map[string]bool
	// stable is since when all wanted tasks run; zero if they do not.
	stable time.Time
	// last is what was told last.
	last ServiceProgress
}

// assess says where the service stands now.
func (w *watched) assess(c *cluster, now time.Time) ServiceProgress {
	service, ok := c.services[w.name]
	if !ok {
		w.stable = time.Time{}
		return ServiceProgress{Service: w.name, State: ServiceFailed, Message: "the service is gone: somebody else removed it", Errors: w.last.Errors}
	}
	tally := count(service, c)
	p := ServiceProgress{Service: w.name, State: Pending, Running: tally.running + tally.completed, Desired: tally.desired, Errors: w.errors(c, service.ID)}
	updating := false
	if status := service.UpdateStatus; status != nil {
		p.Message = status.Message
		switch status.State {
		case swarm.UpdateStateUpdating:
			updating = true
		case swarm.UpdateStatePaused, swarm.UpdateStateRollbackPaused:
			p.State = Paused
			return p
		case swarm.UpdateStateRollbackStarted:
			p.State = RollingBack
			return p
		case swarm.UpdateStateRollbackCompleted:
			p.State = ServiceRolledBack
			return p
		case swarm.UpdateStateCompleted:
		}
	}
	w.settle(&p, service, tally, updating, now)
	return p
}

// settle decides the state of a service that Swarm neither rolls back nor has paused.
func (w *watched) settle(p *ServiceProgress, service swarm.Service, tally tally, updating bool, now time.Time) {
	stable := tally.running+tally.completed == tally.desired && !updating
	if !stable {
		w.stable = time.Time{}
	} else if w.stable.IsZero() {
		w.stable = now
	}
	switch {
	case tally.failed > 0 && !updating: // Swarm has yet to decide what a failure means for an update
		p.State = ServiceFailed
		if p.Message == "" {
			p.Message = fmt.Sprintf("%d of %d tasks failed and will not be started again", tally.failed, tally.desired)
		}
	case !stable:
	case isJob(service) && (tally.desired > 0 || tally.known):
		p.State = Completed
	case tally.desired > 0 && tally.completed == tally.desired:
		p.State = Completed
	case tally.desired == 0 && service.Spec.Mode.Replicated != nil:
		p.State = ServiceConverged
	case now.Sub(w.stable) >= monitor(service):
		p.State = ServiceConverged
		if tally.desired == 0 {
			p.Message = noEligibleNode
		}
	}
}

func monitor(service swarm.Service) time.Duration {
	if u := service.Spec.UpdateConfig; u != nil && u.Monitor != 0 {
		return u.Monitor
	}
	return defaultMonitor
}

func isJob(service swarm.Service) bool {
	return service.Spec.Mode.ReplicatedJob != nil || service.Spec.Mode.GlobalJob != nil
}

// tally counts the places that a service has: a slot of a replicated one, a node of a global one.
type tally struct {
	desired   uint64
	running   uint64 // the newest task runs
	completed uint64 // the newest task has exited with 0 and will not be started again
	failed    uint64 // the newest task failed and will not be started again
	known     bool   // Swarm has made tasks
}

// place is a slot or a node.
type place struct {
	slot int
	node string
}

func count(service swarm.Service, c *cluster) tally {
	newest := map[place]swarm.Task{}
	places := map[place]bool{} // of all tasks that are wanted, also those that an update has yet to replace
	for _, task := range c.tasks[service.ID] {
		if task.DesiredState == swarm.TaskStateRemove || !inIteration(service, task) {
			continue
		}
		at := placeOf(service, task)
		if isGlobal(service) && !available(c.nodes[task.NodeID]) {
			continue
		}
		current := c.upToDate[task.ID] || isJob(service)
		if wanted(task) || (current && (succeeded(task) || failed(task))) {
			places[at] = true
		}
		if !current {
			continue
		}
		if other, ok := newest[at]; !ok || supersedes(task, other) {
			newest[at] = task
		}
	}
	t := tally{desired: uint64(len(places)), known: len(places) > 0}
	switch mode := service.Spec.Mode; {
	case mode.Replicated != nil && mode.Replicated.Replicas != nil:
		t.desired = *mode.Replicated.Replicas
	case mode.ReplicatedJob != nil && mode.ReplicatedJob.TotalCompletions != nil:
		t.desired = *mode.ReplicatedJob.TotalCompletions
		t.known = true
	}
	for _, task := range newest {
		t.add(task, c)
	}
	return t
}

// add counts the newest task of one place.
func (t *tally) add(task swarm.Task, c *cluster) {
	switch {
	case succeeded(task):
		t.completed++
	case failed(task):
		t.failed++
	case wanted(task) && task.Status.State == swarm.TaskStateRunning && task.JobIteration == nil && alive(c.nodes[task.NodeID]):
		t.running++
	}
}

// succeeded says whether the task has exited with 0 and nothing follows it.
func succeeded(task swarm.Task) bool {
	return task.Status.State == swarm.TaskStateComplete && (!wanted(task) || task.JobIteration != nil)
}

// failed says whether the task has failed and, if it is the newest of its place, no other will be tried. A task that was taken from a node because the
// node no longer meets the service's constraints has not failed.
func failed(task swarm.Task) bool {
	switch task.Status.State {
	case swarm.TaskStateFailed, swarm.TaskStateRejected:
		return !wanted(task) && !strings.Contains(task.Status.Err, "no longer meets constraints")
	default:
		return false
	}
}

func isGlobal(service swarm.Service) bool {
	return service.Spec.Mode.Global != nil || service.Spec.Mode.GlobalJob != nil
}

func placeOf(service swarm.Service, task swarm.Task) place {
	if isGlobal(service) {
		return place{node: task.NodeID}
	}
	return place{slot: task.Slot}
}

// inIteration says whether a task of a job belongs to its newest run.
func inIteration(service swarm.Service, task swarm.Task) bool {
	if service.JobStatus == nil {
		return true
	}
	return task.JobIteration != nil && task.JobIteration.Index == service.JobStatus.JobIteration.Index
}

// supersedes says whether task tells more about its place than other: one that Swarm wants does, then the newer one.
func supersedes(task, other swarm.Task) bool {
	if wanted(task) != wanted(other) {
		return wanted(task)
	}
	return task.CreatedAt.After(other.CreatedAt)
}

// wanted says whether Swarm wants the task to run or, of a job, to complete.
func wanted(task swarm.Task) bool {
	switch task.DesiredState {
	case swarm.TaskStateShutdown, swarm.TaskStateRemove, swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateOrphaned:
		return false
	default:
		return true
	}
}

func terminal(state swarm.TaskState) bool {
	switch state {
	case swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateRemove, swarm.TaskStateOrphaned:
		return true
	default:
		return false
	}
}

// alive says whether a node counts; a node that is unknown, because the list of nodes is older, does.
func alive(node swarm.Node) bool { return node.Status.State != swarm.NodeStateDown }

// available says whether a global service belongs on the node.
func available(node swarm.Node) bool {
	return alive(node) && node.Spec.Availability != swarm.NodeAvailabilityDrain
}

// errors returns the errors of the tasks that this operation is about: those that it brought about, and those that the Swarm still tries to start.
func (w *watched) errors(c *cluster, serviceID string) []TaskError {
	var found []TaskError
	for _, task := range c.tasks[serviceID] {
		if task.Status.Err == "" || (w.before[task.ID] && !(wanted(task) && c.upToDate[task.ID])) {
			continue
		}
		e := TaskError{
			TaskID: task.ID, Slot: task.Slot, NodeID: task.NodeID, Node: c.nodes[task.NodeID].Description.Hostname,
			State: string(task.Status.State), Error: task.Status.Err, At: task.Status.Timestamp,
		}
		if task.Status.ContainerStatus != nil {
			e.ExitCode = task.Status.ContainerStatus.ExitCode
		}
		found = append(found, e)
	}
	slices.SortFunc(found, func(a, b TaskError) int {
		return cmp.Or(b.At.Compare(a.At), cmp.Compare(a.TaskID, b.TaskID))
	})
	type same struct {
		slot       int
		node, text string
	}
	seen := map[same]bool{}
	found = slices.DeleteFunc(found, func(e TaskError) bool {
		key := same{slot: e.Slot, text: e.Error}
		if e.Slot == 0 {
			key.node = e.NodeID
		}
		defer func() { seen[key] = true }()
		return seen[key]
	})
	return found[:min(len(found), maxTaskErrors)]
}

// tells says whether p has something to tell after what was told last; the same failure of a newer task has not.
func tells(p, last ServiceProgress) bool {
	if p.State != last.State || p.Running != last.Running || p.Desired != last.Desired || p.Message != last.Message || len(p.Errors) != len(last.Errors) {
		return true
	}
	for i, e := range p.Errors {
		o := last.Errors[i]
		if e.Slot != o.Slot || e.NodeID != o.NodeID || e.State != o.State || e.Error != o.Error || e.ExitCode != o.ExitCode {
			return true
		}
	}
	return false
}
