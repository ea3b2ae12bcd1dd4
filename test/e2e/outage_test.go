package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// slow converges only after its health check has passed for the first time, some ten seconds after its start.
const slow = `version: "3.9"
services:
  web:
    image: axion/hello:e2e
    configs: [{source: greeting, target: /greeting}]
    healthcheck: {test: ["CMD", "/hello", "healthcheck"], interval: 10s, timeout: 2s}
    deploy: {replicas: 1, endpoint_mode: dnsrr}
configs:
  greeting: {file: ./greeting.txt}
`

// TestPlaneAndBrokerKilled: the plane, and with it the embedded broker, is killed in the middle of a deployment and stays away for 30 s. The deployment goes on,
// its outcome waits in the agent's outbox, axionctl waits for it, and nothing is done or told twice.
func TestPlaneAndBrokerKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	w := installed(t)
	op := w.operator(t)
	name := stackName(t, "outage")
	file := compose(t, slow, map[string]string{"greeting.txt": "Hi"})
	watch := w.ctlCommand(nil, "deploy", "--resolve-image", "never", "-f", file, name)
	var printed strings.Builder
	watch.Stdout, watch.Stderr = &printed, &printed
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- watch.Wait() }()
	t.Cleanup(func() { _ = watch.Process.Kill() })

	service := name + "_web"
	if err := until(20*time.Second, "the service", func() error {
		_, err := output("docker", "service", "inspect", service)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := output("docker", "kill", planeName); err != nil {
		t.Fatal(err)
	}
	away := time.Now()
	// It converges while the plane is away.
	if err := until(29*time.Second, "the tasks", func() error {
		out, err := output("docker", "service", "ls", "--filter", "name="+service, "--format", "{{.Replicas}}")
		if err == nil && !strings.HasPrefix(out, "1/1") {
			err = fmt.Errorf("%s run", strings.TrimSpace(out))
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	version := serviceVersion(t, service)
	time.Sleep(time.Until(away.Add(30 * time.Second))) // the length of the outage is what is tested
	if _, err := output("docker", "start", planeName); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("axionctl: %v\n%s", err, printed.String())
		}
	case <-time.After(90 * time.Second):
		t.Fatalf("axionctl still waits:\n%s", printed.String())
	}
	t.Logf("outcome %.1f s after the plane's return", time.Since(back).Seconds())
	if v := serviceVersion(t, service); v != version {
		t.Errorf("the service was written again: version %s, then %s", version, v)
	}
	commands := commandsOf(t, op, name)
	if len(commands) != 1 {
		t.Fatalf("commands of %s: %v", name, commands)
	}
	if o := single(t, op, commands[0]); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("outcome %v", o)
	}
	if err := until(60*time.Second, "the agent", w.agentReady); err != nil {
		t.Error(err)
	}
}

// TestAgentKilled: kill -9 of the only agent in the middle of a deployment. Swarm starts another task, which takes the command up again and ends it.
func TestAgentKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	w := installed(t)
	op := w.operator(t)
	name := stackName(t, "killed")
	resp, err := op.SubmitCommand(t.Context(), &planev1.SubmitCommandRequest{
		ClusterId: cluster, Command: &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: plainDeploy(name, slow)},
	})
	if err != nil {
		t.Fatal(err)
	}
	service := name + "_web"
	if err := until(20*time.Second, "the service", func() error {
		_, err := output("docker", "service", "inspect", service)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	id, err := agentContainer()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := output("docker", "kill", id); err != nil {
		t.Fatal(err)
	}
	if o := single(t, op, resp.GetCommandId()); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED || o.GetGeneration() != resp.GetGeneration() {
		t.Errorf("outcome %v", o)
	}
	if err := until(60*time.Second, "the agent", w.agentReady); err != nil {
		t.Error(err)
	}
	agents, err := w.agents()
	if err != nil || len(agents) != 1 {
		t.Errorf("after its restart there are agents %v %v: its identity is on the volume", agents, err)
	}
}

func serviceVersion(t *testing.T, service string) string {
	t.Helper()
	out, err := output("docker", "service", "inspect", "--format", "{{.Version.Index}}", service)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// commandsOf lists the ids of the commands that events about a stack name as their cause.
func commandsOf(t *testing.T, op planev1.OperatorClient, subject string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := op.WatchEvents(ctx, &planev1.WatchEventsRequest{ClusterId: cluster})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	seen := map[string]bool{}
	for {
		ev, err := stream.Recv()
		if err != nil {
			return ids
		}
		if id := ev.GetCausationId(); ev.GetSubject() == subject && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
}
