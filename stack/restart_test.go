package stack

import (
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/proto/failure"
)

// TestRestart replaces every task, by the one change that `docker service update --force` makes.
func TestRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	result, err := r.Deploy(t.Context(), r.deployment(t, "services: {web: {image: IMAGE, deploy: {replicas: 2, update_config: {parallelism: 0}}}}"+hostNetwork), nil)
	wantConverged(t, result, err)
	web := r.stack + "_web"
	inspect := func() swarm.Service {
		t.Helper()
		s, _, err := r.api.ServiceInspectWithRaw(t.Context(), web, swarm.ServiceInspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	was := inspect()
	before, err := r.taskIDs(t.Context(), serviceTarget(was.ID, web))
	if err != nil || len(before) != 2 {
		t.Fatal(before, err)
	}

	var seen events
	result, err = r.Restart(t.Context(), web, patience, seen.observe)
	wantConverged(t, result, err)
	if result.Services[0].Running != 2 || !changed(result.Changes, KindService, Updated, web) || !changed(seen.changes(), KindService, Updated, web) {
		t.Errorf("%+v", result)
	}
	tasks, err := r.api.TaskList(t.Context(), swarm.TaskListOptions{Filters: serviceTarget(was.ID, web).tasks})
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if before[task.ID] && wanted(task) {
			t.Errorf("task %s was not replaced", task.ID)
		}
	}
	now := inspect()
	if now.Spec.TaskTemplate.ForceUpdate != was.Spec.TaskTemplate.ForceUpdate+1 {
		t.Errorf("ForceUpdate was %d and is %d", was.Spec.TaskTemplate.ForceUpdate, now.Spec.TaskTemplate.ForceUpdate)
	}
	if len(now.Spec.Labels) != len(was.Spec.Labels) {
		t.Errorf("labels were %v and are %v", was.Spec.Labels, now.Spec.Labels)
	}

	if result, err = r.Restart(t.Context(), web, 0, nil); err != nil || result.Status != Accepted {
		t.Errorf("%v %+v", err, result)
	}
	_, err = r.Restart(t.Context(), "axt-no-such-service", patience, nil)
	wantFailure(t, err, failure.Invalid, "no_such_service", "axt-no-such-service")
}

// TestRestartThatFails: a service whose next tasks do not come up is told as Swarm leaves it.
func TestRestartThatFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	compose := `
services:
  web:
    image: IMAGE
    command: [exit, "3"]
    deploy: {replicas: 0, update_config: {failure_action: pause, monitor: 2s}, restart_policy: {delay: 200ms}}
` + hostNetwork
	result, err := r.Deploy(t.Context(), r.deployment(t, compose), nil)
	wantConverged(t, result, err)
	if _, err := r.Scale(t.Context(), r.stack+"_web", 1, 0, nil); err != nil {
		t.Fatal(err)
	}
	result, err = r.Restart(t.Context(), r.stack+"_web", patience, nil)
	wantFailure(t, err, failure.Invalid, "update_paused", "task: non-zero exit (3)")
	if result.Status != Failed || result.Services[0].State != Paused {
		t.Errorf("%s, %+v", result.Status, result.Services)
	}
}
