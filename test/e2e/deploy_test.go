package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// sleeper is a stack of one service that needs nothing but its image.
const sleeper = `version: "3.9"
services:
  web:
    image: axion/hello:e2e
    configs: [{source: greeting, target: /greeting}]
    deploy: {replicas: 1, endpoint_mode: dnsrr}
configs:
  greeting: {file: ./greeting.txt}
`

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// TestSample is the README's walk: deploy, look, scale, read the logs, remove.
func TestSample(t *testing.T) {
	w := installed(t)
	name := stackName(t, "hello")
	sample := filepath.Join(w.root, "deploy/samples/hello/compose.yml")
	out, err := w.ctl([]string{"HELLO_IMAGE=axion/hello:e2e", "GREETED=e2e"}, "deploy", "--resolve-image", "never", "-f", sample, name)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	service := name + "_web"
	if env, err := output("docker", "service", "inspect", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Env}}", service); err != nil || !strings.Contains(env, "GREETED=e2e") {
		t.Errorf("the caller's variable did not reach the service: %s %v", env, err)
	}
	w.replicas(t, name, "2/2")
	if out, err := w.ctl(nil, "scale", service+"=3"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.replicas(t, name, "3/3")

	// docker stack ps and axionctl ps name the same tasks.
	theirs, err := output("docker", "stack", "ps", "--no-trunc", "--format", "{{.ID}} {{.Name}} {{.DesiredState}}", name)
	if err != nil {
		t.Fatal(err)
	}
	status := w.ps(t, name)
	var ours strings.Builder
	for _, task := range status.Tasks {
		fmt.Fprintf(&ours, "%s %s %s\n", task.ID, task.Name, task.DesiredState)
	}
	if ours.String() != theirs {
		t.Errorf("docker stack ps:\n%s\naxionctl ps:\n%s", theirs, ours.String())
	}

	for _, options := range [][]string{{}, {"--timestamps"}, {"--tail", "1"}, {"--raw"}, {"--no-trunc", "--details"}} {
		ctl := w.ctlCommand(nil, append(append([]string{"logs"}, options...), service)...)
		out, err := ctl.CombinedOutput()
		ours := string(out)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := both("docker", append(append([]string{"service", "logs"}, options...), service)...)
		if err != nil {
			t.Fatal(err)
		}
		if sorted(ours) != sorted(theirs) {
			t.Errorf("logs %v\ndocker:\n%s\naxionctl:\n%s", options, theirs, ours)
		}
	}

	if out, err := w.ctl(nil, "rm", name); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if left := stackObjects(t, name); len(left) != 0 {
		t.Errorf("after rm there is still %v", left)
	}
}

// sorted makes the lines of several tasks comparable: docker promises their order only within a task.
func sorted(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " \r")
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

type status struct {
	Services []struct{ Name, Replicas string }
	Tasks    []struct {
		ID, Name     string
		DesiredState string `json:"desired_state"`
	}
}

func (w *world) ps(t *testing.T, stack string) status {
	t.Helper()
	out, err := w.ctl(nil, "ps", stack, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var s status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return s
}

func (w *world) replicas(t *testing.T, stack, want string) {
	t.Helper()
	s := w.ps(t, stack)
	if len(s.Services) != 1 || s.Services[0].Replicas != want {
		t.Errorf("services are %+v, want %s replicas", s.Services, want)
	}
}

// TestRefused: what docker/cli refuses is refused in its own words, and nothing is created.
func TestRefused(t *testing.T) {
	w := installed(t)
	for name, tc := range map[string]struct{ text, says string }{
		"unknown key":    {"version: \"3.9\"\nservices:\n  web:\n    image: x\n    imagine: y\n", "Additional property imagine is not allowed"},
		"no image":       {"version: \"3.9\"\nservices:\n  web:\n    command: [x]\n", "invalid image reference for service web: no image specified"},
		"not yaml":       {"version: [", "yaml"},
		"no such config": {"version: \"3.9\"\nservices:\n  web:\n    image: x\n    configs: [nope]\n", "undefined config \"nope\""},
	} {
		t.Run(name, func(t *testing.T) {
			stack := stackName(t, "refused")
			out, err := w.ctl(nil, "deploy", "--resolve-image", "never", "-f", compose(t, tc.text, nil), stack)
			if exitCode(err) != 1 || !strings.Contains(err.Error()+out, tc.says) {
				t.Errorf("exit %d: %v %s", exitCode(err), err, out)
			}
			if left := stackObjects(t, stack); len(left) != 0 {
				t.Errorf("it created %v", left)
			}
		})
	}
}

// TestConfined: a manifest cannot reach what was not sent with it. axionctl would send the file or refuse; a plane may send anything.
func TestConfined(t *testing.T) {
	w := installed(t)
	op := w.operator(t)
	for name, tc := range map[string]struct{ text, path string }{
		"environment of the agent": {"version: \"3.9\"\nservices:\n  web:\n    image: axion/hello:e2e\n    env_file: /proc/self/environ\n", "/proc/self/environ"},
		"key of the agent":         {"version: \"3.9\"\nservices:\n  web:\n    image: axion/hello:e2e\nsecrets:\n  s: {file: /var/lib/axion/key.pem}\n", "/var/lib/axion/key.pem"},
		"out of the folder":        {"version: \"3.9\"\nservices:\n  web:\n    image: axion/hello:e2e\nconfigs:\n  c: {file: ../../../etc/passwd}\n", "/etc/passwd"},
	} {
		t.Run(name, func(t *testing.T) {
			stack := stackName(t, "confined")
			o := submit(t, op, &planev1.SubmitCommandRequest{Command: &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: plainDeploy(stack, tc.text)}})
			f := o.GetFailure()
			if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED || f.GetClass() != runnerv1.FailureClass_FAILURE_CLASS_DENIED ||
				f.GetCode() != "not_in_bundle" || !strings.Contains(f.GetMessage(), tc.path) {
				t.Errorf("got %v", o)
			}
			if left := stackObjects(t, stack); len(left) != 0 {
				t.Errorf("it created %v", left)
			}
		})
	}
}

// plainDeploy is a StackDeploy of one compose file, sent from the folder /w/x/y.
func plainDeploy(stack, text string) *runnerv1.StackDeploy {
	return &runnerv1.StackDeploy{
		Stack: stack,
		Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: &runnerv1.BundleContent{
			WorkingDir: "/w/x/y", ComposeFiles: []string{"/w/x/y/compose.yml"},
			Files: []*runnerv1.BundleFile{
				{Path: "/w/x/y/compose.yml", Content: []byte(text)},
				{Path: "/w/x/y/greeting.txt", Content: []byte("Hi")},
			},
		}}},
		Options: &runnerv1.DeployOptions{ResolveImage: runnerv1.ResolveImage_RESOLVE_IMAGE_NEVER},
	}
}

// TestTruth: a deployment whose tasks fail is told as failed, with the engine's full words, and axionctl's exit code says so.
func TestTruth(t *testing.T) {
	w := installed(t)
	t.Run("a task that exits", func(t *testing.T) {
		stack := stackName(t, "exits")
		file := compose(t, "version: \"3.9\"\nservices:\n  web:\n    image: axion/hello:e2e\n    deploy: {restart_policy: {condition: on-failure, max_attempts: 1, delay: 100ms}}\n", nil)
		out, err := w.ctl(nil, "deploy", "--resolve-image", "never", "--timeout", "60s", "-f", file, stack)
		if exitCode(err) != 1 || !strings.Contains(err.Error()+out, "task: non-zero exit (1)") {
			t.Errorf("exit %d: %v\n%s", exitCode(err), err, out)
		}
	})
	t.Run("no node fits", func(t *testing.T) {
		stack := stackName(t, "unfit")
		file := compose(t, strings.Replace(sleeper, "replicas: 1,", "replicas: 1, placement: {constraints: [\"node.labels.zone == nowhere\"]},", 1), map[string]string{"greeting.txt": "Hi"})
		out, err := w.ctl(nil, "deploy", "--resolve-image", "never", "--timeout", "5s", "-f", file, stack)
		if exitCode(err) != 3 || !strings.Contains(err.Error()+out, "no suitable node") {
			t.Errorf("exit %d: %v\n%s", exitCode(err), err, out)
		}
	})
}

// TestImmediate: containers are stopped, started, restarted and killed over the session.
func TestImmediate(t *testing.T) {
	w := installed(t)
	name := "axt-e2e-container"
	_, _ = output("docker", "rm", "-f", name)
	greeting := compose(t, "", map[string]string{"greeting": "Hi"})
	if _, err := output("docker", "run", "-d", "--name", name, "-v", filepath.Join(filepath.Dir(greeting), "greeting")+":/greeting:ro", "axion/hello:e2e"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = output("docker", "rm", "-f", name) })
	agents, err := w.agents()
	if err != nil {
		t.Fatal(err)
	}
	state := func() string {
		out, err := output("docker", "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.State.StartedAt}}", name)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	before := state()
	for _, step := range []struct{ verb, want string }{{"restart", "running 0"}, {"stop", "exited 0"}, {"start", "running 0"}, {"kill", "exited 137"}} {
		if out, err := w.ctl(nil, "container", step.verb, agents[0].ID, name); err != nil {
			t.Fatalf("%s: %v %s", step.verb, err, out)
		}
		if err := until(5*time.Second, step.verb, func() error {
			if got := state(); !strings.HasPrefix(got, step.want) || got == before {
				return fmt.Errorf("the container is %s", got)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.ctl(nil, "container", "stop", agents[0].ID, "axt-no-such"); exitCode(err) != 1 || !strings.Contains(err.Error(), "axt-no-such") {
		t.Errorf("got %v", err)
	}
}

// TestLocal: the agent answers on its own node.
func TestLocal(t *testing.T) {
	w := installed(t)
	out, err := w.inAgent("status", "-o", "json")
	agents, listErr := w.agents()
	if err != nil || listErr != nil || !strings.Contains(out, agents[0].ID) {
		t.Errorf("status: %v %v %s", err, listErr, out)
	}
	if out, err := w.inAgent("stacks"); err != nil || !strings.Contains(out, agentStack) {
		t.Errorf("stacks: %v %s", err, out)
	}
	if out, err := w.inAgent("config", "print"); err != nil || !strings.Contains(out, planeAddress) {
		t.Errorf("config print: %v %s", err, out)
	}
	for path, word := range map[string]string{"/health": `"status"`, "/livez": "", "/readyz": "", "/metrics": "go_goroutines"} {
		if out, err := output("curl", "-fsS", "http://"+healthAddress+path); err != nil || !strings.Contains(out, word) {
			t.Errorf("%s: %v %s", path, err, out)
		}
	}
}

// TestMetrics: the figures of the host and of this very agent's container reach the plane, read through the mounts of the shipped stack file.
func TestMetrics(t *testing.T) {
	w := installed(t)
	op := w.operator(t)
	if err := until(45*time.Second, "a sample", func() error {
		resp, err := op.GetMetrics(t.Context(), &planev1.GetMetricsRequest{})
		if err != nil {
			return err
		}
		for _, batch := range resp.GetBatches() {
			for _, c := range batch.GetContainers() {
				if c.GetService() == agentService && c.GetCpuUsageNanoseconds() > 0 && c.GetMemoryUsageBytes() > 1<<20 && batch.GetHost().GetMemoryTotalBytes() > 0 {
					return nil
				}
			}
		}
		return fmt.Errorf("batches are %v", resp.GetBatches())
	}); err != nil {
		t.Error(err)
	}
}
