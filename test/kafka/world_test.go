package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/plane"
	"github.com/axion/runner-agent/plane/ca"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/operatorcontext"
	"github.com/axion/runner-agent/test/logbuffer"
	"github.com/axion/runner-agent/test/loopback"
)

// patience is how long a test waits for what must happen, on a busy machine. It is less than the minute after which the plane sends a command again: one that
// was lost must not go unnoticed.
const patience = 50 * time.Second

// site is a reference plane that uses a real Kafka.
type site struct {
	t        *testing.T
	cfg      plane.Config
	ca       *ca.CA
	log      *logbuffer.Buffer
	operator planev1.OperatorClient
	stop     func() // stops the plane before the test's end
	swarmID  string // of all clusters' Swarms; "" means one for each
}

// newSite makes a plane's data directory with its CA, which the brokers must know before they start. The plane itself is started by start.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, log: &logbuffer.Buffer{}, cfg: plane.Config{DataDir: filepath.Join(t.TempDir(), "data"), Listen: loopback.FreeAddress(t), HeartbeatInterval: time.Second}}
	var err error
	if s.ca, err = ca.Open(filepath.Join(s.cfg.DataDir, "ca"), time.Now); err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs the plane until the test ends and returns it.
func (s *site) run() *plane.Plane {
	s.t.Helper()
	p, err := plane.New(s.cfg, slog.New(slog.NewTextHandler(s.log, nil)), time.Now)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("plane: %v", err)
		}
	})
	s.t.Cleanup(func() {
		s.stop()
		if s.t.Failed() {
			s.t.Logf("the plane's log:\n%s", s.log)
		}
	})
	return p
}

// start runs the plane until the test ends and waits until it is ready.
func (s *site) start() {
	s.t.Helper()
	select {
	case <-s.run().Ready():
	case <-time.After(patience):
		s.t.Fatal("the plane is not ready")
	}
	c, err := operatorcontext.Load(plane.ContextPath(s.cfg.DataDir))
	if err != nil {
		s.t.Fatal(err)
	}
	config, err := c.ClientTLS()
	if err != nil {
		s.t.Fatal(err)
	}
	conn, err := grpc.NewClient(c.Address, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithPerRPCCredentials(c.Credentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	s.operator = planev1.NewOperatorClient(conn)
}

// token makes a join token.
func (s *site) token(cluster string) string {
	s.t.Helper()
	resp, err := s.operator.CreateToken(s.t.Context(), &planev1.CreateTokenRequest{ClusterId: cluster})
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.GetToken()
}

// deployment is a command to deploy a stack with one file of that content.
func deployment(stack string, content []byte) *runnerv1.StackDeploy {
	return &runnerv1.StackDeploy{Stack: stack, Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: &runnerv1.BundleContent{
		WorkingDir: "/app", ComposeFiles: []string{"/app/compose.yml"}, Files: []*runnerv1.BundleFile{{Path: "/app/compose.yml", Content: content}},
	}}}}
}

// deploy submits the deployment of a stack to a cluster, or to one of its agents, and returns the command's id.
func (s *site) deploy(ctx context.Context, cluster, agentID, stack string) (string, error) {
	req := &planev1.SubmitCommandRequest{Command: &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: deployment(stack, []byte("services: {}"))}}
	if agentID != "" {
		req.AgentId = agentID
	} else {
		req.ClusterId = cluster
	}
	resp, err := s.operator.SubmitCommand(ctx, req)
	return resp.GetCommandId(), err
}

func (s *site) mustDeploy(cluster, agentID, stack string) string {
	s.t.Helper()
	id, err := s.deploy(s.t.Context(), cluster, agentID, stack)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// outcome waits for a command's outcome and returns it with the agent that signed it.
func (s *site) outcome(commandID string) (*runnerv1.CommandOutcome, string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	stream, err := s.operator.WatchEvents(ctx, &planev1.WatchEventsRequest{CommandId: commandID, Follow: true})
	if err != nil {
		s.t.Fatal(err)
	}
	var last *planev1.EventRecord
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			s.t.Fatalf("command %s has no outcome: %v", commandID, err)
		}
		last = e
	}
	outcome := &runnerv1.CommandOutcome{}
	if last.GetType() != "axion.runner.v1.CommandOutcome" {
		s.t.Fatalf("the last event of command %s is %v", commandID, last)
	}
	if err := proto.Unmarshal(last.GetData(), outcome); err != nil {
		s.t.Fatal(err)
	}
	return outcome, last.GetAgentId()
}

// succeeds waits until a command has succeeded on that agent.
func (s *site) succeeds(commandID, agentID string) {
	s.t.Helper()
	outcome, signer := s.outcome(commandID)
	if outcome.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED || signer != agentID {
		s.t.Errorf("command %s: %v, signed by %q; want success, signed by %s", commandID, outcome, signer, agentID)
	}
}

// eventually waits until f is true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// figure prints what was measured; it is nothing that a test insists on.
func figure(t *testing.T, what string, d time.Duration) {
	t.Helper()
	fmt.Printf("figure: %s: %s: %.2f s\n", t.Name(), what, d.Seconds())
}
