package stack

import (
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// look builds what the engine might say of one service named "web" on the nodes n1 and n2.
type look struct{ cluster }

func newLook(mode swarm.ServiceMode, update swarm.UpdateState) *look {
	service := swarm.Service{ID: "s", Spec: swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web"}, Mode: mode}}
	if update != "" {
		service.UpdateStatus = &swarm.UpdateStatus{State: update, Message: "says Swarm"}
	}
	if mode.ReplicatedJob != nil || mode.GlobalJob != nil {
		service.JobStatus = &swarm.JobStatus{JobIteration: swarm.Version{Index: 4}}
	}
	node := func(id string) swarm.Node {
		return swarm.Node{ID: id, Description: swarm.NodeDescription{Hostname: "host-" + id}, Status: swarm.NodeStatus{State: swarm.NodeStateReady}}
	}
	return &look{cluster{
		services: map[string]swarm.Service{"web": service}, tasks: map[string][]swarm.Task{}, upToDate: map[string]bool{},
		nodes: map[string]swarm.Node{"n1": node("n1"), "n2": node("n2")},
	}}
}

// task adds a task; later ones are newer.
func (l *look) task(slot int, node string, state, desired swarm.TaskState, err string, upToDate bool) *look {
	tasks := l.tasks["s"]
	id := string(rune('a' + len(tasks)))
	t := swarm.Task{
		ID: id, ServiceID: "s", Slot: slot, NodeID: node, DesiredState: desired,
		Meta:   swarm.Meta{CreatedAt: time.Unix(int64(len(tasks)), 0)},
		Status: swarm.TaskStatus{State: state, Err: err, Timestamp: time.Unix(int64(len(tasks)), 0)},
	}
	if l.services["web"].JobStatus != nil {
		t.JobIteration = &swarm.Version{Index: 4}
	}
	l.tasks["s"] = append(tasks, t)
	l.upToDate[id] = upToDate
	return l
}

func (l *look) node(id string, state swarm.NodeState, availability swarm.NodeAvailability) *look {
	node := l.nodes[id]
	node.Status.State, node.Spec.Availability = state, availability
	l.nodes[id] = node
	return l
}

func TestAssess(t *testing.T) {
	const (
		running, failed, complete, shutdown = swarm.TaskStateRunning, swarm.TaskStateFailed, swarm.TaskStateComplete, swarm.TaskStateShutdown
		rejected, pending, starting, remove = swarm.TaskStateRejected, swarm.TaskStatePending, swarm.TaskStateStarting, swarm.TaskStateRemove
	)
	replicas := func(n uint64) swarm.ServiceMode {
		return swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &n}}
	}
	job := func(n uint64) swarm.ServiceMode {
		return swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{TotalCompletions: &n}}
	}
	global, globalJob := swarm.ServiceMode{Global: &swarm.GlobalService{}}, swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}
	for name, tc := range map[string]struct {
		look             *look
		state            State
		running, desired uint64
	}{
		"no task yet":         {newLook(replicas(2), ""), Pending, 0, 2},
		"one of two":          {newLook(replicas(2), "").task(1, "n1", running, running, "", true).task(2, "n2", starting, running, "", true), Pending, 1, 2},
		"both":                {newLook(replicas(2), "").task(1, "n1", running, running, "", true).task(2, "n2", running, running, "", true), ServiceConverged, 2, 2},
		"old spec":            {newLook(replicas(1), "").task(1, "n1", running, running, "", false), Pending, 0, 1},
		"start-first":         {newLook(replicas(1), swarm.UpdateStateUpdating).task(1, "n1", running, running, "", false).task(1, "n1", running, running, "", true), Pending, 1, 1},
		"update completed":    {newLook(replicas(1), swarm.UpdateStateCompleted).task(1, "n1", running, shutdown, "", false).task(1, "n1", running, running, "", true), ServiceConverged, 1, 1},
		"paused":              {newLook(replicas(1), swarm.UpdateStatePaused).task(1, "n1", running, running, "", true), Paused, 1, 1},
		"rollback started":    {newLook(replicas(1), swarm.UpdateStateRollbackStarted).task(1, "n1", running, running, "", true), RollingBack, 1, 1},
		"rollback completed":  {newLook(replicas(1), swarm.UpdateStateRollbackCompleted).task(1, "n1", running, running, "", true), ServiceRolledBack, 1, 1},
		"rollback paused":     {newLook(replicas(1), swarm.UpdateStateRollbackPaused), Paused, 0, 1},
		"being restarted":     {newLook(replicas(1), "").task(1, "n1", failed, shutdown, "exit 1", true).task(1, "n1", pending, running, "", true), Pending, 0, 1},
		"about to restart":    {newLook(replicas(1), "").task(1, "n1", failed, running, "exit 1", true), Pending, 0, 1},
		"given up":            {newLook(replicas(1), "").task(1, "n1", failed, shutdown, "exit 1", true), ServiceFailed, 0, 1},
		"rejected for good":   {newLook(replicas(1), "").task(1, "n1", rejected, shutdown, "no such image", true), ServiceFailed, 0, 1},
		"given up in update":  {newLook(replicas(1), swarm.UpdateStateUpdating).task(1, "n1", failed, shutdown, "exit 1", true), Pending, 0, 1},
		"old spec gave up":    {newLook(replicas(1), "").task(1, "n1", failed, shutdown, "exit 1", false), Pending, 0, 1},
		"node is down":        {newLook(replicas(1), "").task(1, "n1", running, running, "", true).node("n1", swarm.NodeStateDown, ""), Pending, 0, 1},
		"one-shot":            {newLook(replicas(1), "").task(1, "n1", complete, shutdown, "", true), Completed, 1, 1},
		"one-shot, one fails": {newLook(replicas(2), "").task(1, "n1", complete, shutdown, "", true).task(2, "n1", failed, shutdown, "exit 1", true), ServiceFailed, 1, 2},
		"one-shot, one runs":  {newLook(replicas(2), "").task(1, "n1", complete, shutdown, "", true).task(2, "n1", running, running, "", true), ServiceConverged, 2, 2},
		"zero":                {newLook(replicas(0), "").task(1, "n1", running, remove, "", true), ServiceConverged, 0, 0},
		"global":              {newLook(global, "").task(0, "n1", running, running, "", true).task(0, "n2", running, running, "", true), ServiceConverged, 2, 2},
		"global, one pending": {newLook(global, "").task(0, "n1", running, running, "", true).task(0, "n2", pending, running, "", true), Pending, 1, 2},
		"global, one old":     {newLook(global, "").task(0, "n1", running, running, "", true).task(0, "n2", running, running, "", false), Pending, 1, 2},
		"global, node down":   {newLook(global, "").task(0, "n1", running, running, "", true).task(0, "n2", running, running, "", true).node("n2", swarm.NodeStateDown, ""), ServiceConverged, 1, 1},
		"global, drained":     {newLook(global, "").task(0, "n1", running, running, "", true).task(0, "n2", shutdown, shutdown, "", true).node("n2", swarm.NodeStateReady, swarm.NodeAvailabilityDrain), ServiceConverged, 1, 1},
		"global, label taken": {newLook(global, "").task(0, "n1", running, running, "", true).task(0, "n2", rejected, shutdown, "assigned node no longer meets constraints", true), ServiceConverged, 1, 1},
		"global, nowhere":     {newLook(global, ""), ServiceConverged, 0, 0},
		"job":                 {newLook(job(2), "").task(0, "n1", complete, complete, "", true).task(1, "n1", complete, complete, "", true), Completed, 2, 2},
		"job runs":            {newLook(job(2), "").task(0, "n1", complete, complete, "", true).task(1, "n1", running, complete, "", true), Pending, 1, 2},
		"job fails":           {newLook(job(1), "").task(0, "n1", failed, shutdown, "exit 1", true), ServiceFailed, 0, 1},
		"job of zero":         {newLook(job(0), ""), Completed, 0, 0},
		"global job":          {newLook(globalJob, "").task(0, "n1", complete, complete, "", true), Completed, 1, 1},
		"gone":                {&look{cluster{services: map[string]swarm.Service{}}}, ServiceFailed, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			w := &watched{name: "web"}
			first := w.assess(&tc.look.cluster, start)
			if first.State == ServiceConverged && tc.desired > 0 {
				t.Error("converged at the first look")
			}
			if p := w.assess(&tc.look.cluster, start.Add(defaultMonitor-1)); p.State == ServiceConverged && tc.desired > 0 {
				t.Error("converged too early")
			}
			p := w.assess(&tc.look.cluster, start.Add(defaultMonitor))
			if p.State != tc.state || p.Running != tc.running || p.Desired != tc.desired {
				t.Errorf("got %s %d/%d (%s), want %s %d/%d", p.State, p.Running, p.Desired, p.Message, tc.state, tc.running, tc.desired)
			}
		})
	}
}

func TestAFailureBeginsTheWaitAgain(t *testing.T) {
	one := uint64(1)
	mode := swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &one}}
	good := newLook(mode, "").task(1, "n1", swarm.TaskStateRunning, swarm.TaskStateRunning, "", true)
	bad := newLook(mode, "").task(1, "n1", swarm.TaskStateFailed, swarm.TaskStateRunning, "exit 1", true)
	w, at := &watched{name: "web"}, time.Unix(1000, 0)
	for i, step := range []struct {
		look  *look
		after time.Duration
		want  State
	}{
		{good, 0, Pending},
		{good, 4 * time.Second, Pending},
		{bad, time.Second, Pending},
		{good, time.Second, Pending},
		{good, 4 * time.Second, Pending},
		{good, time.Second, ServiceConverged},
		{bad, time.Second, Pending},
	} {
		at = at.Add(step.after)
		if p := w.assess(&step.look.cluster, at); p.State != step.want {
			t.Errorf("step %d: %s, want %s", i, p.State, step.want)
		}
	}
}

func TestErrorsAreNewAndToldOnce(t *testing.T) {
	one := uint64(1)
	l := newLook(swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &one}}, "")
	for range 3 {
		l.task(1, "n1", swarm.TaskStateFailed, swarm.TaskStateShutdown, "old news", true)
	}
	for i := range 30 {
		l.task(1, "n1", swarm.TaskStateFailed, swarm.TaskStateShutdown, "exit 1", true)
		l.task(i+2, "n2", swarm.TaskStateFailed, swarm.TaskStateShutdown, "exit 2", true)
	}
	w := &watched{name: "web", before: map[string]bool{"a": true, "b": true, "c": true}}
	p := w.assess(&l.cluster, time.Unix(1000, 0))
	if len(p.Errors) != maxTaskErrors {
		t.Fatalf("%d errors", len(p.Errors))
	}
	if p.Errors[0].Slot != 31 || p.Errors[0].Error != "exit 2" || p.Errors[0].Node != "host-n2" || p.Errors[1].Error != "exit 1" {
		t.Errorf("not the newest first: %+v", p.Errors[:2])
	}
	for i, e := range p.Errors {
		if e.Error == "old news" || (i > 1 && e.Slot == 1) {
			t.Errorf("error %d: %+v", i, e)
		}
	}
	again := p
	again.Errors = append([]TaskError(nil), p.Errors...)
	again.Errors[0].TaskID, again.Errors[0].At = "another", time.Unix(2000, 0)
	if tells(again, p) {
		t.Error("the same failure of a newer task is told again")
	}
	again.Running++
	if !tells(again, p) {
		t.Error("a change is not told")
	}
}
