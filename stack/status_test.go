package stack

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/axion/runner-agent/proto/failure"
)

func TestStatusIsDockers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	d := r.deployment(t, `
services:
  web: {image: IMAGE, deploy: {replicas: 2, endpoint_mode: dnsrr}, ports: [{target: 80, published: 38917, mode: host}], networks: [a]}
  all: {image: IMAGE, deploy: {mode: global}, networks: [host]}
  job: {image: IMAGE, command: [exit, "0"], deploy: {mode: replicated-job, replicas: 2}, networks: [host]}
  bad: {image: IMAGE, command: [exit, "7"], deploy: {restart_policy: {max_attempts: 2, delay: 100ms}}, networks: [host]}
  few: {image: "IMAGE", deploy: {replicas: 1, placement: {max_replicas_per_node: 1}}, networks: [host]}
networks: {a: {}, host: {external: true, name: host}}
`)
	d.Timeout = 15 * time.Second // one task of web waits for the port
	if result, err := r.Deploy(t.Context(), d, nil); err == nil {
		t.Fatalf("%+v", result)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) { // a busy machine may need longer than the deployment had
		if status, err := r.Status(t.Context(), r.stack); err != nil || time.Now().After(deadline) {
			t.Fatalf("%v %+v", err, status.Services)
		} else if status.Services[4].Running == 1 {
			break
		}
	}
	var got, want string
	// Ages move on between the two looks.
	for range 10 {
		status, err := r.Status(t.Context(), r.stack)
		if err != nil {
			t.Fatal(err)
		}
		got, want = rows(status), r.dockerRows(t)
		if got == want {
			wantStatus(t, r, status)
			break
		}
	}
	if got != want {
		t.Errorf("docker prints\n%s\nwe print\n%s", want, got)
	}

	stacks, err := r.Stacks(t.Context())
	if err != nil || !slices.Contains(stacks, Summary{Name: r.stack, Services: 5}) {
		t.Errorf("%v %+v", err, stacks)
	}
	_, err = r.Status(t.Context(), "axt-no-such-stack")
	wantFailure(t, err, failure.Invalid, "no_such_stack", "nothing found in stack: axt-no-such-stack")
	if _, stderr, _ := r.docker(t, "stack", "ps", "axt-no-such-stack"); stderr != err.Error()+"\n" {
		t.Errorf("docker says %q", stderr)
	}
}

func rows(s StackStatus) string {
	var b strings.Builder
	for _, v := range s.Services {
		fmt.Fprintf(&b, "%s|%s|%s|%s|%s|%s\n", v.ID, v.Name, v.Mode, v.Replicas, v.Image, v.Ports)
	}
	for _, v := range s.Tasks {
		fmt.Fprintf(&b, "%s|%s|%s|%s|%s|%s|%s|%s\n", v.ID, v.Name, v.Image, v.Node, v.DesiredState, v.CurrentState, v.Error, v.Ports)
	}
	return b.String()
}

func (r *rig) dockerRows(t *testing.T) string {
	t.Helper()
	services, _, err1 := r.docker(t, "stack", "services", "--format", "{{.ID}}|{{.Name}}|{{.Mode}}|{{.Replicas}}|{{.Image}}|{{.Ports}}", r.stack)
	tasks, _, err2 := r.docker(t, "stack", "ps", "--no-trunc", "--format",
		"table {{.ID}}|{{.Name}}|{{.Image}}|{{.Node}}|{{.DesiredState}}|{{.CurrentState}}|{{.Error}}|{{.Ports}}", r.stack)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	_, tasks, _ = strings.Cut(tasks, "\n") // the heading
	return services + tasks
}

func wantStatus(t *testing.T, r *rig, status StackStatus) {
	t.Helper()
	older := 0
	for _, v := range status.Tasks {
		if strings.HasPrefix(v.Name, ` \_ `) {
			older++
		}
		if v.Service == "" || v.State == "" || strings.ToLower(strings.Fields(v.CurrentState)[0]) != v.State {
			t.Errorf("task %+v", v)
		}
	}
	if older == 0 {
		t.Errorf("no older task is indented: %+v", status.Tasks)
	}
	if web := status.Services[4]; web.Name != r.stack+"_web" || web.Running != 1 || web.Desired != 2 {
		t.Errorf("web: %+v", web)
	}
}
