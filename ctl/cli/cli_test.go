package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/ctl/command"
	"github.com/axion/runner-agent/ctl/goldentest"
	"github.com/axion/runner-agent/ctl/planetest"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

const (
	commandID = "7c1f0c9e-3e0b-4f7d-9d5b-0a54c4c5b1a2"
	agentID   = "a-0000000000000001"
)

// outcome of one run of the command line.
type ran struct {
	code           int
	stdout, stderr string
}

// golden puts what was printed together for a golden file; the test's own address and folders are replaced.
func (r ran) golden(replace ...string) string {
	text := "exit code " + string(rune('0'+r.code)) + "\n--- stdout\n" + r.stdout + "--- stderr\n" + r.stderr
	return strings.NewReplacer(replace...).Replace(text)
}

// axionctl runs the command line against a plane; nil means that there is no operator context.
func axionctl(t *testing.T, p *planetest.Plane, args ...string) ran {
	t.Helper()
	return run(t, Environment{Args: args}, p)
}

func run(t *testing.T, env Environment, p *planetest.Plane) ran {
	t.Helper()
	path := filepath.Join(t.TempDir(), "missing.toml")
	if p != nil {
		path = p.ContextPath
	}
	t.Setenv("AXION_CONTEXT", path)
	var stdout, stderr bytes.Buffer
	env.Stdout, env.Stderr = &stdout, &stderr
	if env.Stdin == nil {
		env.Stdin = strings.NewReader("")
	}
	if env.LookupEnv == nil {
		env.LookupEnv = func(string) (string, bool) { return "", false }
	}
	if env.WorkingDir == "" {
		env.WorkingDir = t.TempDir()
	}
	env.Now = func() time.Time { return planetest.Epoch }
	env.NewKey = func() string { return "key-1" }
	env.Patience = command.Config{SubmitPatience: 50 * time.Millisecond, ReconnectPatience: 10 * time.Second, Backoff: func(int) time.Duration { return 5 * time.Millisecond }}
	code := Run(t.Context(), env)
	return ran{code: code, stdout: stdout.String(), stderr: stderr.String()}
}

func at(offset time.Duration) *timestamppb.Timestamp {
	return timestamppb.New(planetest.Epoch.Add(offset))
}

// TestHelp prints the help of every command.
func TestHelp(t *testing.T) {
	var walk func(cmd *cobra.Command, path []string)
	walk = func(cmd *cobra.Command, path []string) {
		t.Run(strings.Join(append([]string{"axionctl"}, path...), " "), func(t *testing.T) {
			got := axionctl(t, nil, append(path, "--help")...)
			if got.code != 0 || got.stderr != "" {
				t.Errorf("exit code %d, stderr %q", got.code, got.stderr)
			}
			goldentest.Compare(t, "help/"+strings.Join(append([]string{"axionctl"}, path...), "-")+".golden", got.stdout)
		})
		for _, sub := range cmd.Commands() {
			walk(sub, append(path[:len(path):len(path)], sub.Name()))
		}
	}
	walk((&app{}).root(), nil)
}

func TestUsage(t *testing.T) {
	p := planetest.Start(t, &planetest.Script{})
	for name, tc := range map[string]struct {
		args []string
		says string
	}{
		"unknown command":   {[]string{"depoly"}, `unknown command "depoly" for "axionctl"`},
		"unknown flag":      {[]string{"deploy", "--frob"}, "unknown flag: --frob"},
		"no stack":          {[]string{"deploy", "-f", "x"}, "STACK is missing"},
		"empty stack":       {[]string{"rm", ""}, "STACK is empty"},
		"no file":           {[]string{"deploy", "shop"}, `required flag(s) "file" not set`},
		"two stacks":        {[]string{"deploy", "-f", "x", "a", "b"}, `unexpected argument "b"`},
		"bad resolve":       {[]string{"deploy", "-f", "x", "--resolve-image", "often", "a"}, "must be one of always, changed, never"},
		"bad output":        {[]string{"agents", "-o", "yaml"}, "must be one of table, json"},
		"bad duration":      {[]string{"deploy", "-f", "x", "--timeout", "10", "a"}, "must be a duration"},
		"short timeout":     {[]string{"rm", "--timeout", "1ms", "a"}, "must be between 1s and 24h"},
		"long ttl":          {[]string{"token", "create", "--cluster", "a", "--ttl", "721h"}, "must be between 1m and 720h"},
		"no cluster":        {[]string{"token", "create"}, `required flag(s) "cluster" not set`},
		"no command":        {[]string{"cancel"}, "COMMAND is missing"},
		"bad scale":         {[]string{"scale", "web"}, `"web" is not of the form SERVICE=N`},
		"restart of none":   {[]string{"restart"}, "SERVICE is missing"},
		"negative scale":    {[]string{"scale", "web=-1"}, "between 0 and 100000"},
		"too much":          {[]string{"scale", "web=100001"}, "between 0 and 100000"},
		"agent and cluster": {[]string{"ps", "--agent", "a", "--cluster", "b"}, "[agent cluster]"},
		"subcommand":        {[]string{"agents", "frob"}, `unexpected argument "frob"`},
		"no container":      {[]string{"container", "stop", "a"}, "CONTAINER is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			got := axionctl(t, p, tc.args...)
			if got.code != 2 || !strings.Contains(got.stderr, tc.says) || !strings.Contains(got.stderr, "--help") || got.stdout != "" {
				t.Errorf("exit code %d, stderr %q, stdout %q", got.code, got.stderr, got.stdout)
			}
		})
	}
}

// fleet is a plane with tokens, agents and a stack.
func fleet() *planetest.Script {
	token := &planev1.Token{Id: "t-1", ClusterId: "prod", CreatedAt: at(0), ExpiresAt: at(24 * time.Hour), Uses: 1}
	return &planetest.Script{
		OnCreateToken: func(_ context.Context, r *planev1.CreateTokenRequest) (*planev1.CreateTokenResponse, error) {
			token.ClusterId, token.Uses, token.ExpiresAt = r.GetClusterId(), r.GetUses(), at(r.GetTtl().AsDuration())
			return &planev1.CreateTokenResponse{Token: "axn1.secret.hash", Info: token}, nil
		},
		OnListTokens: func(_ context.Context, r *planev1.ListTokensRequest) (*planev1.ListTokensResponse, error) {
			return &planev1.ListTokensResponse{Tokens: []*planev1.Token{
				{Id: "t-1", ClusterId: "prod", CreatedAt: at(-time.Hour), ExpiresAt: at(23 * time.Hour), Uses: 3, Used: 1},
				{Id: "t-2", ClusterId: "prod", CreatedAt: at(-48 * time.Hour), ExpiresAt: at(-24 * time.Hour), Uses: 1},
				{Id: "t-3", ClusterId: "test", CreatedAt: at(-time.Minute), ExpiresAt: at(time.Hour), Uses: 1, Used: 1},
				{Id: "t-4", ClusterId: "test", CreatedAt: at(-time.Second), ExpiresAt: at(time.Hour), Uses: 1, Revoked: true},
			}}, nil
		},
		OnRevokeToken: func(_ context.Context, r *planev1.RevokeTokenRequest) (*planev1.RevokeTokenResponse, error) {
			if r.GetId() != "t-1" {
				return nil, failurepb.Status(failure.New(failure.Invalid, "no_such_token", r.GetId(), "there is no token %s", r.GetId()).WithHint("axionctl token ls"))
			}
			return &planev1.RevokeTokenResponse{}, nil
		},
		OnListAgents: func(context.Context, *planev1.ListAgentsRequest) (*planev1.ListAgentsResponse, error) {
			return &planev1.ListAgentsResponse{Agents: []*planev1.Agent{
				{
					Id: agentID, ClusterId: "prod", Version: "1.2.3", Connected: true, ManagerConfirmed: true, LastSeen: at(-2 * time.Second), EnrolledAt: at(-time.Hour),
					Node: &runnerv1.NodeFacts{NodeId: "node1id", Hostname: "node-1", Role: runnerv1.NodeRole_NODE_ROLE_MANAGER, Address: "10.0.0.1", EngineVersion: "28.5.2"},
				},
				{
					Id: "a-0000000000000002", ClusterId: "prod", Version: "1.2.3", LastSeen: at(-26 * time.Hour), EnrolledAt: at(-time.Hour),
					Node: &runnerv1.NodeFacts{NodeId: "node2id", Hostname: "node-2", Role: runnerv1.NodeRole_NODE_ROLE_MANAGER},
					Warnings: []*runnerv1.HealthWarning{{
						Code: "kafka_unreachable", Severity: runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, Title: "Kafka cannot be reached",
						Text: "broker kafka:9092: connection refused", Since: at(-time.Minute),
					}},
				},
				{Id: "a-0000000000000003", ClusterId: "test", Node: &runnerv1.NodeFacts{Hostname: "node-3", Role: runnerv1.NodeRole_NODE_ROLE_WORKER}},
			}}, nil
		},
		OnRemoveAgent: func(context.Context, *planev1.RemoveAgentRequest) (*planev1.RemoveAgentResponse, error) {
			return &planev1.RemoveAgentResponse{}, nil
		},
		OnCancelCommand: func(_ context.Context, r *planev1.CancelCommandRequest) (*planev1.CancelCommandResponse, error) {
			if r.GetCommandId() != commandID {
				return nil, failurepb.Status(failure.New(failure.Conflict, "already_ended", r.GetCommandId(), "command %s for shop has already ended: succeeded", r.GetCommandId()).
					WithHint("what it did stays"))
			}
			return &planev1.CancelCommandResponse{AgentId: agentID}, nil
		},
		OnSendRequest: answer,
	}
}

// answer is what an agent says to an immediate command.
func answer(_ context.Context, r *planev1.SendRequestRequest) (*runnerv1.Response, error) {
	switch {
	case r.GetRequest().GetStackStatus() != nil && r.GetRequest().GetStackStatus().GetStack() == "":
		return status(&runnerv1.StackStatusResult{Stacks: []*runnerv1.StackSummary{{Name: "hello", Services: 1}, {Name: "shop", Services: 2}}}), nil
	case r.GetRequest().GetStackStatus().GetStack() == "shop":
		return status(&runnerv1.StackStatusResult{
			Services: []*runnerv1.ServiceStatus{
				{Id: "svc1svc1svc1svc1svc1svc1s", Name: "shop_db", Mode: "replicated", Replicas: "1/1", Image: "postgres:17", Running: 1, Desired: 1},
				{Id: "svc2svc2svc2svc2svc2svc2s", Name: "shop_web", Mode: "replicated", Replicas: "0/1", Image: "shop/web:2", Ports: "*:80->80/tcp", Desired: 1},
			},
			Tasks: []*runnerv1.TaskStatus{
				{Id: "tsk1tsk1tsk1tsk1tsk1tsk1t", Name: "shop_db.1", Image: "postgres:17", Node: "node-1", DesiredState: "Running", CurrentState: "Running 3 minutes ago", Service: "shop_db", State: "running"},
				{Id: "tsk2tsk2tsk2tsk2tsk2tsk2t", Name: "shop_web.1", Image: "shop/web:2", Node: "node-2", DesiredState: "Ready", CurrentState: "Rejected 2 seconds ago", Error: "No such image: shop/web:2", Service: "shop_web", State: "rejected"},
				{Id: "tsk3tsk3tsk3tsk3tsk3tsk3t", Name: ` \_ shop_web.1`, Image: "shop/web:2", Node: "node-2", DesiredState: "Shutdown", CurrentState: "Rejected 7 seconds ago", Error: "No such image: shop/web:2", Service: "shop_web", State: "rejected"},
			},
		}), nil
	case r.GetRequest().GetContainerStop() != nil:
		if r.GetAgentId() != agentID || r.GetRequest().GetContainerStop().GetGrace().AsDuration() != 5*time.Second {
			return nil, failurepb.Status(failure.New(failure.Invalid, "test", "", "got %v", r))
		}
		return &runnerv1.Response{Warnings: []string{"the container has no health check"}}, nil
	case r.GetRequest().GetContainerKill() != nil:
		return &runnerv1.Response{Failure: failurepb.FromError(failure.New(failure.Invalid, "no_such_container", "db", "no such container: db"))}, nil
	default:
		return status(&runnerv1.StackStatusResult{}), nil
	}
}

func status(r *runnerv1.StackStatusResult) *runnerv1.Response {
	return &runnerv1.Response{Result: &runnerv1.Response_StackStatus{StackStatus: r}}
}

func TestOutput(t *testing.T) {
	p := planetest.Start(t, fleet())
	for name, args := range map[string][]string{
		"token-create":      {"token", "create", "--cluster", "prod", "--uses", "3", "--ttl", "1h"},
		"token-ls":          {"token", "ls"},
		"token-revoke":      {"token", "revoke", "t-1"},
		"token-revoke-none": {"token", "revoke", "t-9"},
		"agents":            {"agents"},
		"agents-rm":         {"agents", "rm", agentID},
		"cancel":            {"cancel", commandID},
		"cancel-ended":      {"cancel", "c-0"},
		"ps":                {"ps"},
		"ps-stack":          {"ps", "shop"},
		"ps-none":           {"ps", "nothing"},
		"container-stop":    {"container", "stop", "--grace", "5s", agentID, "db"},
		"container-kill":    {"container", "kill", agentID, "db"},
		"container-start":   {"container", "start", agentID, "db"},
	} {
		for _, format := range []string{"table", "json"} {
			t.Run(name+"-"+format, func(t *testing.T) {
				got := axionctl(t, p, append(args, "-o", format)...)
				if format == "json" && got.stdout != "" && !json.Valid([]byte(got.stdout)) {
					t.Errorf("stdout is not one document: %q", got.stdout)
				}
				goldentest.Compare(t, name+"-"+format+".golden", got.golden(p.Context.Address, "ADDRESS"))
			})
		}
	}
}

func TestTokenCreatePrintsOnlyTheToken(t *testing.T) {
	got := axionctl(t, planetest.Start(t, fleet()), "token", "create", "--cluster", "prod")
	if got != (ran{stdout: "axn1.secret.hash\n"}) {
		t.Errorf("got %+v", got)
	}
}

func TestNoContext(t *testing.T) {
	got := axionctl(t, nil, "agents")
	path := os.Getenv("AXION_CONTEXT")
	if got.code != 1 || !strings.Contains(got.stderr, "no operator context in "+path) || !strings.Contains(got.stderr, "operator.toml") {
		t.Errorf("got %+v", got)
	}
	p := planetest.Start(t, fleet())
	if got := axionctl(t, nil, "--context", p.ContextPath, "agents"); got.code != 0 {
		t.Errorf("--context does not win over AXION_CONTEXT: %+v", got)
	}
}

func TestPlaneAway(t *testing.T) {
	p := planetest.Start(t, fleet())
	p.Stop()
	for _, format := range []string{"table", "json"} {
		got := axionctl(t, p, "agents", "-o", format)
		goldentest.Compare(t, "plane-away-"+format+".golden", got.golden(p.Context.Address, "ADDRESS"))
	}
}

// deployment scripts a plane on which a deployment ends with this outcome.
func deployment(t *testing.T, outcome *runnerv1.CommandOutcome, submitted func(*planev1.SubmitCommandRequest)) *planetest.Plane {
	return planetest.Start(t, &planetest.Script{
		OnSubmitCommand: func(_ context.Context, r *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			if submitted != nil {
				submitted(r)
			}
			return &planev1.SubmitCommandResponse{CommandId: commandID, Generation: 7, ClusterId: "prod"}, nil
		},
		OnWatchEvents: func(r *planev1.WatchEventsRequest, stream grpc.ServerStreamingServer[planev1.EventRecord]) error {
			web := &runnerv1.ServiceProgress{Service: "shop_web", State: runnerv1.ServiceState_SERVICE_STATE_PENDING, Desired: 1}
			for _, event := range []*planev1.EventRecord{
				planetest.Event(t, 1, commandID, 0, &runnerv1.CommandReceived{Type: "axion.runner.v1.StackDeploy", Attempt: 1}),
				planetest.Event(t, 2, commandID, time.Second, &runnerv1.CommandProgress{Sequence: 1, Step: &runnerv1.CommandProgress_Service{Service: web}}),
				planetest.Event(t, 3, commandID, 3*time.Second, outcome),
			} {
				if err := stream.Send(event); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

func ended(status runnerv1.OutcomeStatus, f *runnerv1.Failure) *runnerv1.CommandOutcome {
	web := &runnerv1.ServiceProgress{Service: "shop_web", State: runnerv1.ServiceState_SERVICE_STATE_CONVERGED, Running: 1, Desired: 1}
	if f != nil {
		web.State, web.Running = runnerv1.ServiceState_SERVICE_STATE_FAILED, 0
		web.Errors = []*runnerv1.TaskError{{TaskId: "x1", Slot: 1, Node: "node-1", State: "rejected", Error: "No such image: shop/web:2"}}
	}
	return &runnerv1.CommandOutcome{
		Type: "axion.runner.v1.StackDeploy", Status: status, Failure: f, Stack: "shop", Generation: 7, Services: []*runnerv1.ServiceProgress{web},
		StartedAt: at(0), EndedAt: at(3 * time.Second),
	}
}

func notConverged(class runnerv1.FailureClass) *runnerv1.Failure {
	return &runnerv1.Failure{Class: class, Code: "not_converged", Message: "stack shop did not converge", Object: "shop", Hint: "axionctl ps shop"}
}

const composeFile = "version: \"3.8\"\nservices:\n  web:\n    image: shop/web:${TAG:-1}\n"

func inFolder(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "compose.yml"), []byte(composeFile), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestDeploy(t *testing.T) {
	for name, tc := range map[string]struct {
		outcome *runnerv1.CommandOutcome
		code    int
	}{
		"succeeded":   {ended(runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, nil), 0},
		"failed":      {ended(runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED, notConverged(runnerv1.FailureClass_FAILURE_CLASS_INVALID)), 1},
		"rolled_back": {ended(runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK, notConverged(runnerv1.FailureClass_FAILURE_CLASS_CONFLICT)), 1},
		"rejected":    {ended(runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED, notConverged(runnerv1.FailureClass_FAILURE_CLASS_DENIED)), 1},
		"timed_out":   {ended(runnerv1.OutcomeStatus_OUTCOME_STATUS_TIMED_OUT, notConverged(runnerv1.FailureClass_FAILURE_CLASS_DEADLINE)), 3},
		"superseded":  {ended(runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED, notConverged(runnerv1.FailureClass_FAILURE_CLASS_CONFLICT)), 4},
		"cancelled":   {ended(runnerv1.OutcomeStatus_OUTCOME_STATUS_CANCELLED, notConverged(runnerv1.FailureClass_FAILURE_CLASS_CONFLICT)), 4},
		"expired":     {ended(runnerv1.OutcomeStatus_OUTCOME_STATUS_EXPIRED, notConverged(runnerv1.FailureClass_FAILURE_CLASS_DEADLINE)), 4},
		"no reason":   {&runnerv1.CommandOutcome{Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED}, 1},
		"newer":       {&runnerv1.CommandOutcome{Status: 99}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			for _, format := range []string{"table", "json"} {
				p := deployment(t, tc.outcome, nil)
				got := run(t, Environment{Args: []string{"deploy", "-f", "compose.yml", "-o", format, "shop"}, WorkingDir: inFolder(t)}, p)
				if got.code != tc.code {
					t.Errorf("exit code %d, want %d", got.code, tc.code)
				}
				if strings.HasPrefix(name, "succeeded") || strings.HasPrefix(name, "timed_out") {
					goldentest.Compare(t, "deploy-"+name+"-"+format+".golden", got.golden(p.Context.Address, "ADDRESS"))
				}
			}
		})
	}
}

func TestDeployRequest(t *testing.T) {
	var got *planev1.SubmitCommandRequest
	p := deployment(t, ended(runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, nil), func(r *planev1.SubmitCommandRequest) { got = r })
	result := run(t, Environment{
		Args:       []string{"deploy", "-f", "compose.yml", "-f", "-", "--prune", "--resolve-image", "never", "--timeout", "90s", "--cluster", "prod", "shop"},
		WorkingDir: inFolder(t), Stdin: strings.NewReader("version: \"3.8\"\nservices:\n  web:\n    hostname: ${NAME}\n"),
		LookupEnv: func(name string) (string, bool) {
			values := map[string]string{"TAG": "2", "NAME": "n", "SECRET": "no"}
			value, ok := values[name]
			return value, ok
		},
	}, p)
	if result.code != 0 {
		t.Fatalf("got %+v", result)
	}
	if got.GetIdempotencyKey() != "key-1" || got.GetClusterId() != "prod" || got.GetAgentId() != "" || got.GetTimeToLive().AsDuration() != 90*time.Second {
		t.Errorf("got %v", got)
	}
	d := got.GetStackDeploy()
	if d.GetStack() != "shop" || !d.GetOptions().GetPrune() || d.GetOptions().GetResolveImage() != runnerv1.ResolveImage_RESOLVE_IMAGE_NEVER ||
		d.GetOptions().GetTimeout().AsDuration() != 90*time.Second || d.GetOptions().GetWithRegistryAuth() {
		t.Errorf("got %v", d.GetOptions())
	}
	if v := d.GetBundle().GetPlain().GetVariables(); len(v) != 2 || v["TAG"] != "2" || v["NAME"] != "n" {
		t.Errorf("variables %v", v)
	}
	if n := len(d.GetBundle().GetPlain().GetComposeFiles()); n != 2 {
		t.Errorf("%d compose files", n)
	}
}

func TestDetach(t *testing.T) {
	p := deployment(t, nil, nil)
	for _, format := range []string{"table", "json"} {
		got := run(t, Environment{Args: []string{"deploy", "-f", "compose.yml", "-d", "-o", format, "shop"}, WorkingDir: inFolder(t)}, p)
		if got.code != 0 || !strings.Contains(got.stdout, commandID) || got.stderr != "" || strings.Count(got.stdout, "\n") != 1 {
			t.Errorf("got %+v", got)
		}
	}
}

func TestScaleRemoveAndRestart(t *testing.T) {
	for name, tc := range map[string]struct {
		args  []string
		check func(*planev1.SubmitCommandRequest) bool
	}{
		"scale": {[]string{"scale", "--agent", agentID, "shop_web=5"}, func(r *planev1.SubmitCommandRequest) bool {
			return r.GetServiceScale().GetService() == "shop_web" && r.GetServiceScale().GetReplicas() == 5 && r.GetAgentId() == agentID &&
				r.GetServiceScale().GetTimeout().AsDuration() == 5*time.Minute
		}},
		"remove": {[]string{"rm", "--timeout", "2s", "shop"}, func(r *planev1.SubmitCommandRequest) bool {
			return r.GetStackRemove().GetStack() == "shop" && r.GetStackRemove().GetTimeout().AsDuration() == 2*time.Second && r.GetTimeToLive().AsDuration() == time.Minute
		}},
		"restart": {[]string{"restart", "--timeout", "2s", "--cluster", "prod", "shop_web"}, func(r *planev1.SubmitCommandRequest) bool {
			return r.GetServiceRestart().GetService() == "shop_web" && r.GetClusterId() == "prod" && r.GetTimeToLive().AsDuration() == 2*time.Second
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var request *planev1.SubmitCommandRequest
			p := deployment(t, ended(runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, nil), func(r *planev1.SubmitCommandRequest) { request = r })
			if got := axionctl(t, p, tc.args...); got.code != 0 || !tc.check(request) {
				t.Errorf("got %+v, sent %v", got, request)
			}
		})
	}
}

func TestRestartShowsItsProgress(t *testing.T) {
	web := func(state runnerv1.ServiceState, running uint64) *runnerv1.ServiceProgress {
		return &runnerv1.ServiceProgress{Service: "shop_web", State: state, Running: running, Desired: 2}
	}
	p := planetest.Start(t, &planetest.Script{
		OnSubmitCommand: func(context.Context, *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			return &planev1.SubmitCommandResponse{CommandId: commandID, ClusterId: "prod"}, nil
		},
		OnWatchEvents: func(_ *planev1.WatchEventsRequest, stream grpc.ServerStreamingServer[planev1.EventRecord]) error {
			const typ = "axion.runner.v1.ServiceRestart"
			pending := &runnerv1.CommandProgress_Service{Service: web(runnerv1.ServiceState_SERVICE_STATE_PENDING, 1)}
			for _, event := range []*planev1.EventRecord{
				planetest.Event(t, 1, commandID, 0, &runnerv1.CommandReceived{Type: typ, Attempt: 1}),
				planetest.Event(t, 2, commandID, time.Second, &runnerv1.CommandProgress{Sequence: 1, Step: pending}),
				planetest.Event(t, 3, commandID, 3*time.Second, &runnerv1.CommandOutcome{
					Type: typ, Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED, Stack: "shop", StartedAt: at(0), EndedAt: at(3 * time.Second),
					Services: []*runnerv1.ServiceProgress{web(runnerv1.ServiceState_SERVICE_STATE_CONVERGED, 2)},
				}),
			} {
				if err := stream.Send(event); err != nil {
					return err
				}
			}
			return nil
		},
	})
	for _, format := range []string{"table", "json"} {
		got := axionctl(t, p, "restart", "-o", format, "shop_web")
		goldentest.Compare(t, "restart-"+format+".golden", got.golden(p.Context.Address, "ADDRESS"))
	}
}

func TestLogs(t *testing.T) {
	var request *planev1.StreamLogsRequest
	var failed *runnerv1.Failure
	p := planetest.Start(t, &planetest.Script{OnStreamLogs: func(r *planev1.StreamLogsRequest, s grpc.ServerStreamingServer[runnerv1.LogBatch]) error {
		request = r
		for _, batch := range []*runnerv1.LogBatch{
			{Lines: []*runnerv1.LogLine{
				{Source: runnerv1.LogSource_LOG_SOURCE_STDOUT, Text: []byte("web.1.x@node-1    | \x1b[31mred\x1b[0m\n")},
				{Source: runnerv1.LogSource_LOG_SOURCE_STDERR, Text: []byte("web.1.x@node-1    | oops\n")},
			}},
			{Lines: []*runnerv1.LogLine{{Source: runnerv1.LogSource_LOG_SOURCE_STDOUT, Text: []byte("no line end \xff")}}, End: true, Failure: failed},
		} {
			if err := s.Send(batch); err != nil {
				return err
			}
		}
		return nil
	}})
	got := axionctl(t, p, "logs", "-f", "--since", "10m", "-n", "7", "-t", "--details", "--raw", "--no-trunc", "--no-resolve", "--no-task-ids", "--cluster", "prod", "shop_web")
	want := ran{stdout: "web.1.x@node-1    | \x1b[31mred\x1b[0m\nno line end \xff", stderr: "web.1.x@node-1    | oops\n"}
	if got != want {
		t.Errorf("got %+v", got)
	}
	options := request.GetOpen().GetOptions()
	if request.GetClusterId() != "prod" || request.GetOpen().GetService() != "shop_web" || !options.GetFollow() || options.GetSince() != "10m" || options.GetTail() != "7" ||
		!options.GetTimestamps() || !options.GetDetails() || !options.GetRaw() || !options.GetNoTrunc() || !options.GetNoResolve() || !options.GetNoTaskIds() {
		t.Errorf("sent %v", request)
	}

	failed = failurepb.FromError(failure.New(failure.Invalid, "no_such_service", "shop_web", "no such service: shop_web"))
	got = axionctl(t, p, "logs", "-o", "json", "shop_web")
	if got.code != 1 || strings.Count(got.stdout, "\n") != 3 || !strings.Contains(got.stderr, `"code":"no_such_service"`) {
		t.Errorf("got %+v", got)
	}
	if got = axionctl(t, p, "container", "logs", agentID, "db"); request.GetAgentId() != agentID || request.GetOpen().GetContainer() != "db" {
		t.Errorf("sent %v", request)
	}
}

func TestEvents(t *testing.T) {
	outcome := ended(runnerv1.OutcomeStatus_OUTCOME_STATUS_FAILED, notConverged(runnerv1.FailureClass_FAILURE_CLASS_INVALID))
	p := deployment(t, outcome, nil)
	for _, format := range []string{"table", "json"} {
		got := axionctl(t, p, "events", "-o", format)
		goldentest.Compare(t, "events-"+format+".golden", got.golden())
		if followed := axionctl(t, p, "events", "--command", commandID, "--follow", "-o", format); followed != got {
			t.Errorf("followed: %+v", followed)
		}
	}
}

func TestVersion(t *testing.T) {
	if got := axionctl(t, nil, "version"); got.code != 0 || !regexp.MustCompile(`^axionctl \S+ \(revision .*\)\n$`).MatchString(got.stdout) {
		t.Errorf("got %+v", got)
	}
	var v struct{ Version, Revision, Go, OS, Architecture string }
	if err := json.Unmarshal([]byte(axionctl(t, nil, "version", "-o", "json").stdout), &v); err != nil || v.Version == "" || v.Go == "" {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestCompletion(t *testing.T) {
	if got := axionctl(t, nil, "completion", "bash"); got.code != 0 || !strings.Contains(got.stdout, "__start_axionctl") {
		t.Errorf("exit code %d, stderr %q", got.code, got.stderr)
	}
	if got := axionctl(t, nil, "__complete", "deploy", "--resolve-image", ""); !strings.Contains(got.stdout, "changed") {
		t.Errorf("got %+v", got)
	}
}

func TestUnicode(t *testing.T) {
	for name, tc := range map[string]struct {
		variables map[string]string
		want      bool
	}{
		"none":      {nil, false},
		"lang":      {map[string]string{"LANG": "de_DE.UTF-8"}, true},
		"all wins":  {map[string]string{"LC_ALL": "C", "LANG": "de_DE.UTF-8"}, false},
		"lowercase": {map[string]string{"LC_CTYPE": "C.utf8"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := &app{env: Environment{LookupEnv: func(name string) (string, bool) { v, ok := tc.variables[name]; return v, ok }}}
			if got := a.unicode(); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestGraceIsLeftToTheContainer(t *testing.T) {
	var d boundedDuration
	if d.message() != nil {
		t.Error("a grace that nobody asked for")
	}
	d.max = time.Minute
	if err := d.Set("0s"); err != nil || !d.message().IsValid() || d.message().AsDuration() != durationpb.New(0).AsDuration() {
		t.Errorf("%v, %v", d.message(), err)
	}
}
