package stack

import (
	"context"
	"testing"
	"time"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/proto/failure"
)

// hostNetwork keeps a test that needs no network from making one.
const hostNetwork = "\nnetworks: {default: {external: true, name: host}}\n"

func TestDeployChangeAndPrune(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(t, "greeting.txt", "hello\n")
	r.write(t, "key.txt", "s3cret\n")
	var seen events
	result, err := r.Deploy(t.Context(), r.deployment(t, `
services:
  web:
    image: IMAGE
    command: [cat, /greeting]
    configs: [{source: greeting, target: /greeting}]
    secrets: [key]
    deploy: {replicas: 2, endpoint_mode: dnsrr}
  old: {image: IMAGE, deploy: {endpoint_mode: dnsrr}}
  none: {image: IMAGE, deploy: {replicas: 0, endpoint_mode: dnsrr}}
configs: {greeting: {file: ./greeting.txt}}
secrets: {key: {file: key.txt}}
`), seen.observe)
	wantConverged(t, result, err)
	for _, want := range []ObjectChange{
		{Kind: KindNetwork, Name: r.stack + "_default"},
		{Kind: KindConfig, Name: r.stack + "_greeting"},
		{Kind: KindSecret, Name: r.stack + "_key"},
		{Kind: KindService, Name: r.stack + "_web"},
		{Kind: KindService, Name: r.stack + "_old"},
	} {
		if !changed(seen.changes(), want.Kind, Created, want.Name) || !changed(result.Changes, want.Kind, Created, want.Name) {
			t.Errorf("%s %s was not told as created: %+v", want.Kind, want.Name, seen.changes())
		}
	}
	if len(result.Services) != 3 || result.Services[2].Running != 2 || result.Services[2].Desired != 2 {
		t.Errorf("services: %+v", result.Services)
	}
	if states := seen.states(r.stack + "_web"); len(states) < 2 || states[0] != Pending || states[len(states)-1] != ServiceConverged {
		t.Errorf("web went through %v", states)
	}

	d := r.deployment(t, `
services:
  web: {image: IMAGE, command: [lines, "1"], deploy: {replicas: 1, endpoint_mode: dnsrr}}
`)
	d.Prune = true
	result, err = r.Deploy(t.Context(), d, nil)
	wantConverged(t, result, err)
	if !changed(result.Changes, KindService, Updated, r.stack+"_web") || !changed(result.Changes, KindService, Removed, r.stack+"_old") {
		t.Errorf("changes: %+v", result.Changes)
	}
	if len(result.Services) != 1 || result.Services[0].Running != 1 {
		t.Errorf("services: %+v", result.Services)
	}
	service, _, err := r.api.ServiceInspectWithRaw(t.Context(), r.stack+"_web", swarm.ServiceInspectOptions{})
	if err != nil || service.Spec.TaskTemplate.ContainerSpec.Args[0] != "lines" {
		t.Errorf("the service was not changed: %v %+v", err, service.Spec.TaskTemplate.ContainerSpec)
	}
}

func TestDeployOfFailingTasks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	result, err := r.Deploy(t.Context(), r.deployment(t, `
services:
  bad:
    image: IMAGE
    command: [exit, "42"]
    deploy: {restart_policy: {condition: on-failure, max_attempts: 1, delay: 100ms}}
  good: {image: IMAGE}
`+hostNetwork), nil)
	wantFailure(t, err, failure.Invalid, "service_failed", "task: non-zero exit (42)")
	if result.Status != Failed || len(result.Services) != 2 {
		t.Fatalf("%+v", result)
	}
	bad, good := result.Services[0], result.Services[1]
	if bad.State != ServiceFailed || good.State != ServiceConverged {
		t.Errorf("bad is %s, good is %s", bad.State, good.State)
	}
	if len(bad.Errors) != 1 || bad.Errors[0].ExitCode != 42 || bad.Errors[0].Node == "" || bad.Errors[0].State != "failed" {
		t.Errorf("errors: %+v", bad.Errors)
	}
}

func TestDeployRolledBackAndPaused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		action string
		status Status
		state  State
		code   string
	}{
		"rolled back": {"rollback", RolledBack, ServiceRolledBack, "rolled_back"},
		"paused":      {"pause", Failed, Paused, "update_paused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			compose := func(command string) string {
				return `
services:
  web:
    image: IMAGE
    command: ` + command + `
    deploy:
      update_config: {failure_action: ` + tc.action + `, monitor: 2s}
      rollback_config: {monitor: 1s}
      restart_policy: {delay: 200ms}
` + hostNetwork
			}
			result, err := r.Deploy(t.Context(), r.deployment(t, compose("[sleep]")), nil)
			wantConverged(t, result, err)
			var seen events
			result, err = r.Deploy(t.Context(), r.deployment(t, compose(`[exit, "3"]`)), seen.observe)
			wantFailure(t, err, failure.Invalid, tc.code, "task: non-zero exit (3)")
			if result.Status != tc.status || result.Services[0].State != tc.state {
				t.Errorf("%s, %+v; states %v", result.Status, result.Services, seen.states(r.stack+"_web"))
			}
			if e := result.Services[0].Errors; len(e) == 0 || e[0].ExitCode != 3 {
				t.Errorf("errors: %+v", e)
			}
		})
	}
}

func TestDeployOfJobsAndOneShots(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	compose := `
services:
  migrate: {image: IMAGE, command: [exit, "0"], deploy: {replicas: 2, restart_policy: {condition: none}}}
  job: {image: IMAGE, command: [exit, "0", 300ms], deploy: {mode: replicated-job, replicas: 2}}
  everywhere: {image: IMAGE, command: [exit, "0"], deploy: {mode: global-job}}
  agent: {image: IMAGE, deploy: {mode: global}}
  nowhere: {image: IMAGE, deploy: {mode: global, placement: {constraints: [node.labels.axion.test == nowhere]}}}
` + hostNetwork
	for _, run := range []string{"first", "again"} {
		result, err := r.Deploy(t.Context(), r.deployment(t, compose), nil)
		wantConverged(t, result, err)
		states := map[string]State{}
		for _, p := range result.Services {
			states[p.Service] = p.State
		}
		for service, want := range map[string]State{
			"migrate": Completed, "job": Completed, "everywhere": Completed, "agent": ServiceConverged, "nowhere": ServiceConverged,
		} {
			if got := states[r.stack+"_"+service]; got != want {
				t.Errorf("%s: %s is %s, want %s", run, service, got, want)
			}
		}
	}
	result, err := r.Deploy(t.Context(), r.deployment(t, `
services:
  failing: {image: IMAGE, command: [exit, "9"], deploy: {mode: replicated-job, restart_policy: {condition: none}}}
`+hostNetwork), nil)
	wantFailure(t, err, failure.Invalid, "service_failed", "task: non-zero exit (9)")
	if result.Services[0].State != ServiceFailed {
		t.Errorf("%+v", result.Services)
	}
}

func TestDeployTimesOut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	d := r.deployment(t, `
services:
  web: {image: IMAGE, deploy: {replicas: 2, placement: {constraints: [node.labels.axion.test == nowhere]}}}
  sick: {image: IMAGE, command: [unhealthy], healthcheck: {test: [CMD, /testimage, health], interval: 300ms, retries: 100}}
`+hostNetwork)
	d.Timeout = 8 * time.Second
	result, err := r.Deploy(t.Context(), d, nil)
	wantFailure(t, err, failure.Deadline, "not_converged", "no suitable node (scheduling constraints not satisfied on")
	if result.Status != TimedOut || result.Services[0].State != Pending || result.Services[1].State != Pending {
		t.Errorf("%+v", result)
	}
	if web := result.Services[1]; web.Running != 0 || web.Desired != 2 || len(web.Errors) == 0 {
		t.Errorf("%+v", web)
	}
}

func TestDeployIsCancelled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d := r.deployment(t, "services: {web: {image: IMAGE}}"+hostNetwork)
	result, err := r.Deploy(ctx, d, func(e Event) {
		if _, ok := e.(ServiceProgress); ok {
			cancel()
		}
	})
	wantFailure(t, err, failure.Unavailable, "cancelled", "stack "+r.stack)
	if result.Status != Cancelled {
		t.Errorf("%+v", result)
	}
	if _, err := r.Status(t.Context(), r.stack); err != nil {
		t.Errorf("what was written must stay: %v", err)
	}
}

func TestRemoveThenDeployAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	compose := "services: {web: {image: IMAGE, deploy: {replicas: 2, endpoint_mode: dnsrr}, networks: [a, b]}}\nnetworks: {a: {}, b: {attachable: true}}\n"
	result, err := r.Deploy(t.Context(), r.deployment(t, compose), nil)
	wantConverged(t, result, err)
	var seen events
	result, err = r.Remove(t.Context(), r.stack, patience, seen.observe)
	if err != nil || result.Status != Gone {
		t.Fatalf("%v %+v", err, result)
	}
	for kind, name := range map[Kind]string{KindService: "_web", KindNetwork: "_a"} {
		if !changed(seen.changes(), kind, Removed, r.stack+name) {
			t.Errorf("%s %s was not told as removed: %+v", kind, name, seen.changes())
		}
	}
	if networks, err := r.api.NetworkList(t.Context(), network.ListOptions{Filters: stackTarget(r.stack).services}); err != nil || len(networks) > 0 {
		t.Errorf("%v: left: %+v", err, networks)
	}
	result, err = r.Deploy(t.Context(), r.deployment(t, compose), nil)
	wantConverged(t, result, err)
}

func TestRemoveOfNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	result, err := r.Remove(t.Context(), r.stack, patience, nil)
	if err != nil || result.Status != Gone || len(result.Warnings) != 1 || result.Warnings[0] != "Nothing found in stack: "+r.stack {
		t.Errorf("%v %+v", err, result)
	}
	_, stderr, err := r.docker(t, "stack", "rm", r.stack)
	if err != nil || stderr != result.Warnings[0]+"\n" {
		t.Errorf("docker says %q, %v", stderr, err)
	}
}

func TestScale(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	result, err := r.Deploy(t.Context(), r.deployment(t, "services: {web: {image: IMAGE}, all: {image: IMAGE, deploy: {mode: global}}}"+hostNetwork), nil)
	wantConverged(t, result, err)
	web, all := r.stack+"_web", r.stack+"_all"

	result, err = r.Scale(t.Context(), web, 3, patience, nil)
	wantConverged(t, result, err)
	if result.Services[0].Running != 3 || !changed(result.Changes, KindService, Updated, web) {
		t.Errorf("%+v", result)
	}
	result, err = r.Scale(t.Context(), web, 0, patience, nil)
	wantConverged(t, result, err)
	if result, err = r.Scale(t.Context(), web, 2, 0, nil); err != nil || result.Status != Accepted {
		t.Errorf("%v %+v", err, result)
	}

	_, err = r.Scale(t.Context(), all, 3, patience, nil)
	wantFailure(t, err, failure.Invalid, "not_scalable", all+": scale can only be used with replicated or replicated-job mode")
	if _, stderr, _ := r.docker(t, "service", "scale", all+"=3"); stderr != err.Error()+"\n" {
		t.Errorf("docker says %q, we say %q", stderr, err)
	}
	_, err = r.Scale(t.Context(), "axt-no-such-service", 1, patience, nil)
	wantFailure(t, err, failure.Invalid, "no_such_service", "axt-no-such-service")
	if _, stderr, _ := r.docker(t, "service", "scale", "axt-no-such-service=1"); stderr != err.Error()+"\n" {
		t.Errorf("docker says %q, we say %q", stderr, err)
	}

	if stack, err := r.StackOf(t.Context(), web); err != nil || stack != r.stack {
		t.Errorf("stack of %s: %q, %v", web, stack, err)
	}
	_, err = r.StackOf(t.Context(), "axt-no-such-service")
	wantFailure(t, err, failure.Invalid, "no_such_service", "axt-no-such-service")
}
