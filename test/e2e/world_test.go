package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/operatorcontext"
)

// The installation of these tests.
const (
	tag           = "e2e"
	planeName     = "axt-e2e-plane"
	planeAddress  = "127.0.0.1:19443"
	kafkaAddress  = "127.0.0.1:19093"
	healthAddress = "127.0.0.1:19180"
	socketPath    = "/host/run/axt-e2e/agent.sock"
	agentStack    = "axt-e2e"
	agentService  = agentStack + "_agent"
	agentConfig   = "axt-e2e-agent"
	tokenSecret   = "axt-e2e-token"
	cluster       = "e2e"
)

// world is the installed plane and agent. TestMain makes it once; the tests share it.
type world struct {
	dir     string // private, for the operator context
	root    string // of the source tree
	context string // file of the operator context
	token   string // the join token: a secret that must appear in no log
}

var theWorld *world

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	state, err := output("docker", "info", "--format", "{{.Swarm.ControlAvailable}}")
	if err != nil || strings.TrimSpace(state) != "true" {
		fmt.Fprintf(os.Stderr, "skipped: the end-to-end tests need a Docker engine that is a Swarm manager (%s %v)\n", strings.TrimSpace(state), err)
		return 0
	}
	dir, err := os.MkdirTemp("", "axt-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	root, err := filepath.Abs("../..")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	w := &world{dir: dir, root: root, context: filepath.Join(dir, "context.toml")}
	w.uninstall() // what a killed run may have left
	defer w.uninstall()
	started := time.Now()
	if err := w.install(); err != nil {
		fmt.Fprintf(os.Stderr, "installation failed: %v\n%s", err, w.diagnosis())
		return 1
	}
	fmt.Printf("installed in %.1f s\n", time.Since(started).Seconds())
	theWorld = w
	code := m.Run()
	if code != 0 {
		fmt.Fprint(os.Stderr, w.diagnosis())
	}
	return code
}

// install does what the README tells an operator to do.
func (w *world) install() error {
	build := exec.Command("deploy/build-image", "axionctl", "agent", "plane", "hello")
	build.Dir, build.Env = w.root, append(os.Environ(), "TAG="+tag)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build images: %w\n%s", err, out)
	}
	if err := w.startPlane(); err != nil {
		return err
	}
	if _, err := output("docker", "cp", planeName+":/var/lib/axion-plane/operator.toml", w.context); err != nil {
		return err
	}
	token, err := w.ctl(nil, "token", "create", "--cluster", cluster)
	if err != nil {
		return err
	}
	w.token = strings.TrimSpace(token)
	secret := exec.Command("docker", "secret", "create", tokenSecret, "-")
	secret.Stdin = strings.NewReader(w.token)
	if out, err := secret.CombinedOutput(); err != nil {
		return fmt.Errorf("create secret: %w: %s", err, out)
	}
	deploy := exec.Command("docker", "stack", "deploy", "--resolve-image", "never", "-c", "deploy/axion-stack.yml", agentStack)
	deploy.Dir = w.root
	deploy.Env = append(os.Environ(),
		"AXION_IMAGE=axion/agent:"+tag, "AXION_PLANE_ADDRESS="+planeAddress, "AXION_HEALTH_LISTEN="+healthAddress, "AXION_LOCAL_SOCKET="+socketPath,
		"AXION_TOKEN_SECRET="+tokenSecret, "AXION_CONFIG_NAME="+agentConfig)
	if out, err := deploy.CombinedOutput(); err != nil {
		return fmt.Errorf("deploy the agent: %w: %s", err, out)
	}
	return until(90*time.Second, "the agent's connection", w.agentReady)
}

func (w *world) startPlane() error {
	if _, err := output("docker", "run", "-d", "--name", planeName, "--network", "host", "-v", planeName+":/var/lib/axion-plane", "axion/plane:"+tag,
		"serve", "--data", "/var/lib/axion-plane", "--listen", planeAddress, "--kafka-listen", kafkaAddress); err != nil {
		return err
	}
	return until(60*time.Second, "the plane's health", w.planeHealthy)
}

func (w *world) planeHealthy() error {
	health, err := output("docker", "inspect", "--format", "{{.State.Health.Status}}", planeName)
	if err == nil && strings.TrimSpace(health) != "healthy" {
		err = errors.New("it is " + strings.TrimSpace(health))
	}
	return err
}

// agentReady: connected, its manager role confirmed, its own health good.
func (w *world) agentReady() error {
	agents, err := w.agents()
	if err != nil {
		return err
	}
	if len(agents) != 1 || !agents[0].Connected || !agents[0].ManagerConfirmed {
		return fmt.Errorf("agents are %+v", agents)
	}
	if out, err := w.inAgent("healthcheck"); err != nil {
		return fmt.Errorf("healthcheck: %w %s", err, out)
	}
	return nil
}

type agent struct {
	ID               string `json:"id"`
	Connected        bool   `json:"connected"`
	ManagerConfirmed bool   `json:"manager_confirmed"`
}

func (w *world) agents() ([]agent, error) {
	out, err := w.ctl(nil, "agents", "-o", "json")
	if err != nil {
		return nil, err
	}
	var agents []agent
	return agents, json.Unmarshal([]byte(out), &agents)
}

func (w *world) uninstall() {
	_, _ = output("docker", "stack", "rm", agentStack)
	_ = until(60*time.Second, "the agent's end", func() error {
		left, err := output("docker", "ps", "-aq", "--filter", "label=com.docker.stack.namespace="+agentStack)
		if err == nil && strings.TrimSpace(left) != "" {
			err = errors.New("its tasks are there")
		}
		return err
	})
	for _, args := range [][]string{
		{"rm", "-f", planeName},
		{"volume", "rm", planeName},
		{"volume", "rm", agentStack + "_state"},
		{"secret", "rm", tokenSecret},
		{"config", "rm", agentConfig},
	} {
		_, _ = output("docker", args...)
	}
	_ = os.RemoveAll("/run/axt-e2e")
	forgetHeads()
}

// forgetHeads removes what the agent kept in the Swarm about these tests' stacks, so that the next plane, which knows nothing of them, begins anew.
func forgetHeads() {
	out, err := output("docker", "config", "ls", "--format", "{{.ID}} {{.Name}}")
	if err != nil {
		return
	}
	for line := range strings.Lines(out) {
		id, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(name, "axion-h-") && !strings.HasPrefix(name, "axion-m-") {
			continue
		}
		if labels, err := output("docker", "config", "inspect", "--format", "{{.Spec.Labels}}", id); err == nil && strings.Contains(labels, ":axt-e2e-") {
			_, _ = output("docker", "config", "rm", id)
		}
	}
}

func (w *world) diagnosis() string {
	var b strings.Builder
	for _, args := range [][]string{
		{"service", "ps", "--no-trunc", agentService},
		{"service", "logs", "--raw", "--tail", "60", agentService},
		{"logs", "--tail", "40", planeName},
	} {
		out, err := exec.Command("docker", args...).CombinedOutput()
		fmt.Fprintf(&b, "--- docker %s (%v)\n%s\n", strings.Join(args, " "), err, out)
	}
	return b.String()
}

// output runs a command and returns what it printed on standard output.
func output(name string, args ...string) (string, error) {
	return outputOf(exec.Command(name, args...))
}

func outputOf(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// ctl runs axionctl against the tests' plane.
func (w *world) ctl(env []string, args ...string) (string, error) {
	return outputOf(w.ctlCommand(env, args...))
}

func (w *world) ctlCommand(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(w.root, "dist/axionctl"), args...)
	cmd.Env = append(append(os.Environ(), "AXION_CONTEXT="+w.context), env...)
	return cmd
}

// agentContainer is the id of the agent's running container.
func agentContainer() (string, error) {
	out, err := output("docker", "ps", "-q", "--filter", "label=com.docker.swarm.service.name="+agentService)
	id, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if err == nil && id == "" {
		err = errors.New("the agent does not run")
	}
	return id, err
}

// inAgent runs the agent's own command line in its container.
func (w *world) inAgent(args ...string) (string, error) {
	id, err := agentContainer()
	if err != nil {
		return "", err
	}
	return output("docker", append([]string{"exec", id, "/axion-agent"}, args...)...)
}

// workDir lists the agent's work folder, a tmpfs that only its mount namespace shows.
func (w *world) workDir() (string, error) {
	id, err := agentContainer()
	if err != nil {
		return "", err
	}
	pid, err := output("docker", "inspect", "--format", "{{.State.Pid}}", id)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(filepath.Join("/proc", strings.TrimSpace(pid), "root/run/axion-work"))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " "), err
}

// both runs a command and returns what it printed on standard output and error.
func both(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

// until polls f until it returns nil.
func until(limit time.Duration, what string, f func() error) error {
	var err error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if err = f(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("waited %s for %s: %w", limit, what, err)
}

func installed(t *testing.T) *world {
	t.Helper()
	if theWorld == nil {
		t.Skip("nothing is installed")
	}
	return theWorld
}

// operator is the plane's operator API.
func (w *world) operator(t *testing.T) planev1.OperatorClient {
	t.Helper()
	oc, err := operatorcontext.Load(w.context)
	if err != nil {
		t.Fatal(err)
	}
	tls, err := oc.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(oc.Address, grpc.WithTransportCredentials(credentials.NewTLS(tls)), grpc.WithPerRPCCredentials(oc.Credentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return planev1.NewOperatorClient(conn)
}

// stackName is a name that no other test has; the stack is removed when the test ends.
func stackName(t *testing.T, name string) string {
	t.Helper()
	full := "axt-e2e-" + name
	remove := func() {
		_, _ = output("docker", "stack", "rm", full)
		_ = until(60*time.Second, "the end of "+full, func() error {
			left, err := output("docker", "ps", "-aq", "--filter", "label=com.docker.stack.namespace="+full)
			if err == nil && strings.TrimSpace(left) != "" {
				err = errors.New("its tasks are there")
			}
			return err
		})
	}
	remove()
	t.Cleanup(remove)
	return full
}

// compose writes a compose file into a folder of its own, with the files beside it.
func compose(t *testing.T, text string, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files = mergeMaps(map[string]string{"compose.yml": text}, files)
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "compose.yml")
}

func mergeMaps(a, b map[string]string) map[string]string {
	for k, v := range b {
		a[k] = v
	}
	return a
}

// outcomes returns the outcome events of a command that the plane has.
func outcomes(t *testing.T, op planev1.OperatorClient, commandID string, follow bool) []*runnerv1.CommandOutcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	stream, err := op.WatchEvents(ctx, &planev1.WatchEventsRequest{CommandId: commandID, Follow: follow})
	if err != nil {
		t.Fatal(err)
	}
	var found []*runnerv1.CommandOutcome
	for {
		ev, err := stream.Recv()
		if err != nil {
			return found
		}
		msg, err := envelope.Envelope{ID: ev.GetId(), Type: ev.GetType(), ContentType: envelope.Protobuf, Data: ev.GetData()}.Message()
		if err != nil {
			t.Fatal(err)
		}
		if o, ok := msg.(*runnerv1.CommandOutcome); ok {
			found = append(found, o)
		}
	}
}

// submit sends a command and returns its one outcome.
func submit(t *testing.T, op planev1.OperatorClient, req *planev1.SubmitCommandRequest) *runnerv1.CommandOutcome {
	t.Helper()
	req.ClusterId = cluster
	resp, err := op.SubmitCommand(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return single(t, op, resp.GetCommandId())
}

func single(t *testing.T, op planev1.OperatorClient, commandID string) *runnerv1.CommandOutcome {
	t.Helper()
	all := outcomes(t, op, commandID, true)
	if len(all) != 1 {
		t.Fatalf("command %s has %d outcomes: %v", commandID, len(all), all)
	}
	return all[0]
}

// stackObjects names what the Swarm has of a stack.
func stackObjects(t *testing.T, name string) []string {
	t.Helper()
	var all []string
	for _, kind := range []string{"service", "network", "config", "secret"} {
		out, err := output("docker", kind, "ls", "-q", "--filter", "label=com.docker.stack.namespace="+name)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range strings.Fields(out) {
			all = append(all, kind+" "+id)
		}
	}
	slices.Sort(all)
	return all
}
