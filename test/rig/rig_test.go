package rig

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/volume"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/test/engine"
)

const (
	// takeOverLimit is within what another manager must end a deployment: the Kafka session timeout of 10 s, a rebalance, and the deployment's own 25 s.
	takeOverLimit = 90 * time.Second
	// noticeLimit is within what the plane must see that an agent has gone or come.
	noticeLimit = 60 * time.Second
)

// TestTheShippedAgentOnAWholeSwarm is the rig's own proof: the agents belong, a deployment outlives the manager that runs it, a node that was cut off comes
// back, and nothing is left in the end.
func TestTheShippedAgentOnAWholeSwarm(t *testing.T) {
	Need(t)
	if err := Build(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	image := engine.Image(t)
	started := time.Now()
	t.Cleanup(func() { nothingIsLeft(t, "rig-whole") }) // runs after the cleanup of Start
	r := Start(t, Config{Name: "rig-whole", AgentImage: AgentImage, PlaneImage: PlaneImage, Images: []string{image}, Log: logOf(t)})
	t.Logf("%d nodes with plane and agents were up after %.1f s", len(r.Nodes()), time.Since(started).Seconds())

	for _, step := range []struct {
		name string
		test func(*testing.T, *Rig, string)
	}{
		{"agents belong in the nodes' roles", agentsBelong},
		{"deploys a stack", deploys},
		{"a deployment outlives the manager that runs it", takenOver},
		{"a node that is cut off comes back", cutAndBack},
		{"the plane comes back", planeAndBack},
		{"an agent is killed and its state lost", agentAndBack},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, r, image) }) {
			return // what follows would only tell the same again
		}
	}
}

func agentsBelong(t *testing.T, r *Rig, _ string) {
	agents, err := r.Agents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := asExpected(agents, r.Nodes()); err != nil {
		t.Error(err)
	}
	leader, err := r.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := leader.Client().NodeList(t.Context(), swarm.NodeListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{}
	for _, n := range list {
		ids[n.Description.Hostname] = n.ID
	}
	for _, a := range agents {
		if want := ids[a.GetNode().GetHostname()]; a.GetNode().GetNodeId() != want {
			t.Errorf("the agent of %s says that its node is %s, the Swarm says %s", a.GetNode().GetHostname(), a.GetNode().GetNodeId(), want)
		}
		if n, err := r.AgentNode(t.Context(), a.GetId()); err != nil || n.Addr().String() != a.GetNode().GetAddress() {
			t.Errorf("agent %s at %s: %v, %v", a.GetId(), a.GetNode().GetAddress(), n, err)
		}
	}
}

// slowStack converges after 25 s, on the worker only, so that the loss of a manager touches none of its tasks.
const slowStack = `
version: "3.9"
services:
  web:
    image: %s
    command: [healthy]
    healthcheck: {test: [CMD, /testimage, health], interval: 25s, timeout: 5s, retries: 3}
    deploy:
      replicas: 2
      endpoint_mode: dnsrr
      placement: {constraints: [node.role == worker]}
`

func compose(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "compose.yml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func deploys(t *testing.T, r *Rig, image string) {
	file := compose(t, fmt.Sprintf("version: '3.9'\nservices:\n  web:\n    image: %s\n    deploy: {replicas: 4, endpoint_mode: dnsrr}\n", image))
	if _, err := r.Axionctl(t.Context(), "deploy", "--resolve-image", "never", "--timeout", "1m", "-f", file, "plain"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Axionctl(t.Context(), "rm", "plain"); err != nil {
		t.Error(err)
	}
}

func takenOver(t *testing.T, r *Rig, image string) {
	file := compose(t, fmt.Sprintf(slowStack, image))
	submitted, err := r.Axionctl(t.Context(), "deploy", "--resolve-image", "never", "--detach", "-o", "json", "-f", file, "slow")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(submitted, `"command_id":"`)
	command, _, ok := strings.Cut(rest, `"`)
	if !ok {
		t.Fatalf("no command id in %q", submitted)
	}
	owner, err := waitTaken(t, r, command, "")
	if err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	if err := owner.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	successor, err := waitTaken(t, r, command, owner.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s was killed; %s took the deployment over after %.1f s", owner.Name(), successor.Name(), time.Since(killed).Seconds())
	outcome, err := waitOutcome(t, r, command)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the deployment ended after %.1f s: %s", time.Since(killed).Seconds(), outcome.GetStatus())
	if outcome.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("the outcome is %v", outcome)
	}
	if err := owner.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.WaitNodes(t.Context(), noticeLimit), r.WaitAgents(t.Context(), noticeLimit)); err != nil {
		t.Error(err)
	}
}

// records returns the events of a command that the plane has.
func records(ctx context.Context, r *Rig, command string) ([]*planev1.EventRecord, error) {
	c, err := r.Plane().Operator()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	stream, err := c.WatchEvents(ctx, &planev1.WatchEventsRequest{CommandId: command})
	if err != nil {
		return nil, err
	}
	var all []*planev1.EventRecord
	for {
		record, err := stream.Recv()
		if err != nil {
			return all, nil // its end
		}
		all = append(all, record)
	}
}

// waitTaken waits until an agent on another node than that says that it has applied something of the command: it is in the middle.
func waitTaken(t *testing.T, r *Rig, command, otherThan string) (owner *Node, err error) {
	err = Wait(t.Context(), takeOverLimit, "an agent to take command "+command, func(ctx context.Context) error {
		all, err := records(ctx, r, command)
		if err != nil {
			return err
		}
		for _, record := range all {
			if record.GetType() != "axion.runner.v1.CommandProgress" {
				continue
			}
			n, err := r.AgentNode(ctx, record.GetAgentId())
			if err != nil {
				return err
			}
			if n.Name() != otherThan {
				owner = n
				return nil
			}
		}
		return fmt.Errorf("%d events of it, none of another", len(all))
	})
	return owner, err
}

func waitOutcome(t *testing.T, r *Rig, command string) (outcome *runnerv1.CommandOutcome, err error) {
	err = Wait(t.Context(), takeOverLimit, "the outcome of command "+command, func(ctx context.Context) error {
		all, err := records(ctx, r, command)
		if err != nil {
			return err
		}
		for _, record := range all {
			message, err := envelope.Envelope{ID: record.GetId(), Type: record.GetType(), ContentType: envelope.Protobuf, Data: record.GetData()}.Message()
			if err != nil {
				return err
			}
			if o, ok := message.(*runnerv1.CommandOutcome); ok {
				outcome = o
				return nil
			}
		}
		return errors.New("there is none")
	})
	return outcome, err
}

func cutAndBack(t *testing.T, r *Rig, _ string) {
	leader, err := r.WaitLeader(t.Context(), noticeLimit)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*Node{leader, r.Workers()[0]} {
		cut := time.Now()
		if err := n.Cut(t.Context(), Both); err != nil {
			t.Fatal(err)
		}
		if err := waitConnected(t, r, n, false); err != nil {
			t.Error(err)
		}
		gone := time.Since(cut)
		if n.Role() == Manager {
			other, err := r.WaitLeader(t.Context(), noticeLimit)
			if err != nil || other == n {
				t.Errorf("the leader is %v, %v", other, err)
			}
		}
		if err := n.Heal(t.Context()); err != nil {
			t.Fatal(err)
		}
		healed := time.Now()
		if err := r.WaitAgents(t.Context(), noticeLimit); err != nil {
			t.Error(err)
		}
		t.Logf("%s (%s) was cut off: the plane knew after %.1f s; healed, its agent was back after %.1f s", n.Name(), n.Role(), gone.Seconds(), time.Since(healed).Seconds())
		if err := r.WaitNodes(t.Context(), noticeLimit); err != nil {
			t.Error(err)
		}
	}
}

func waitConnected(t *testing.T, r *Rig, n *Node, connected bool) error {
	return Wait(t.Context(), noticeLimit, fmt.Sprintf("the agent of %s to be connected: %t", n.Name(), connected), func(ctx context.Context) error {
		agents, err := r.Agents(ctx)
		if err != nil {
			return err
		}
		for _, a := range agents {
			if a.GetNode().GetHostname() == n.Name() && a.GetConnected() == connected {
				return nil
			}
		}
		return errors.New("it is not so")
	})
}

func planeAndBack(t *testing.T, r *Rig, _ string) {
	for name, end := range map[string]func(context.Context) error{"killed": r.Plane().Kill, "stopped": r.Plane().Stop} {
		if err := end(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.Plane().Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		started := time.Now()
		if err := r.WaitAgents(t.Context(), noticeLimit); err != nil {
			t.Error(err)
		}
		t.Logf("the plane was %s and started: all agents were back after %.1f s", name, time.Since(started).Seconds())
	}
	// Every connection with the plane is dead without a word; the agents must find out and make new ones.
	before := time.Now()
	count, err := r.Plane().HalfOpen(t.Context())
	if err != nil || count < len(r.Nodes()) {
		t.Fatalf("%d connections were there, %v", count, err)
	}
	for _, n := range r.Nodes() {
		if err := Wait(t.Context(), noticeLimit, "a new session of "+n.Name(), func(ctx context.Context) error {
			connections, err := n.connections(ctx)
			if err != nil {
				return err
			}
			return newerThan(ctx, r, n, len(connections), before)
		}); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d connections were half open: every agent had been heard of again after %.1f s", count, time.Since(before).Seconds())
	if err := r.Plane().Heal(t.Context()); err != nil {
		t.Error(err)
	}
	if err := r.WaitAgents(t.Context(), noticeLimit); err != nil {
		t.Error(err)
	}
}

// newerThan: the plane has heard of the node's agent after that moment.
func newerThan(ctx context.Context, r *Rig, n *Node, connections int, moment time.Time) error {
	agents, err := r.Agents(ctx)
	if err != nil {
		return err
	}
	for _, a := range agents {
		if a.GetNode().GetHostname() == n.Name() && a.GetConnected() && a.GetLastSeen().AsTime().After(moment) {
			return nil
		}
	}
	return fmt.Errorf("not heard of it, which has %d connections", connections)
}

func agentAndBack(t *testing.T, r *Rig, _ string) {
	n := r.Workers()[0]
	before, err := r.Agents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(context.Context) error{"killed": n.KillAgent, "without its state": n.LoseState} {
		id, err := n.AgentContainer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ended := time.Now()
		if err := end(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := Wait(t.Context(), noticeLimit, "another agent on "+n.Name(), func(ctx context.Context) error {
			now, err := n.AgentContainer(ctx)
			if err == nil && now == id {
				err = errors.New("it is the same container")
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if err := r.WaitAgents(t.Context(), noticeLimit); err != nil {
			t.Error(err)
		}
		t.Logf("the agent of %s was %s: it was back after %.1f s", n.Name(), name, time.Since(ended).Seconds())
	}
	after, err := r.Agents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != len(after) {
		t.Errorf("there were %d agents and are %d", len(before), len(after))
	}
}

// TestVerbs tries every verb on engines and Swarm alone.
func TestVerbs(t *testing.T) {
	Need(t)
	t.Cleanup(func() { nothingIsLeft(t, "rig-verbs") })
	r := Start(t, Config{Name: "rig-verbs", Nodes: []NodeConfig{{}, {}, {}}, Log: logOf(t)})
	a, b, c := r.nodes[0], r.nodes[1], r.nodes[2]
	ctx := t.Context()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	reaches := func(from, to *Node, want bool) {
		t.Helper()
		_, err := from.Exec(ctx, "timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/"+to.Addr().String()+"/"+swarmPort)
		if (err == nil) != want {
			t.Errorf("%s reaches %s: %t, %v", from.Name(), to.Name(), err == nil, err)
		}
	}
	reaches(a, b, true)

	ok(a.Cut(ctx, Both, b))
	reaches(a, b, false)
	reaches(b, a, false)
	reaches(a, c, true)
	ok(a.Heal(ctx))
	reaches(a, b, true)
	ok(a.Cut(ctx, Both))
	reaches(a, c, false)
	ok(a.Heal(ctx))
	for _, direction := range []Direction{In, Out} {
		ok(a.Cut(ctx, direction, b))
		reaches(a, b, false) // neither question without answer nor answer without question
		if got, want := heard(ctx, t, a, b), direction == Out; got != want {
			t.Errorf("cut %s: a datagram of %s is heard by %s: %t", direction, b.Name(), a.Name(), got)
		}
		if got, want := heard(ctx, t, b, a), direction == In; got != want {
			t.Errorf("cut %s: a datagram of %s is heard by %s: %t", direction, a.Name(), b.Name(), got)
		}
		ok(a.Heal(ctx))
	}

	count, err := b.HalfOpen(ctx, a)
	ok(err)
	if count == 0 {
		t.Errorf("managers without connections")
	}
	reaches(b, a, true) // new ones work
	ok(b.Heal(ctx))

	ok(c.Slow(ctx, Link{Rate: 1_000_000}))
	if err := c.Slow(ctx, Link{Delay: 50 * time.Millisecond}); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	ok(c.Heal(ctx))

	ok(c.Pause(ctx))
	ok(c.Cut(ctx, Both)) // a frozen host can be cut off too
	ok(c.Heal(ctx))
	ok(c.Unpause(ctx))

	ok(b.FillDisk(ctx))
	if _, err := b.Exec(ctx, "sh", "-c", "echo x >"+StateMount+"/_data/probe"); err == nil {
		t.Error("a full disk takes more")
	}
	ok(b.FreeDisk(ctx))
	_, err = b.Exec(ctx, "sh", "-c", "echo x >"+StateMount+"/_data/probe")
	ok(err)
	ok(b.Kill(ctx))
	if running, err := b.Running(ctx); err != nil || running {
		t.Errorf("killed and running: %t, %v", running, err)
	}
	ok(b.Start(ctx))
	if got, err := b.Exec(ctx, "cat", StateMount+"/_data/probe"); err != nil || got != "x\n" {
		t.Errorf("the disk did not outlive the power: %q, %v", got, err)
	}
	ok(b.Stop(ctx))
	ok(b.Start(ctx))
	ok(b.RestartEngine(ctx))
	ok(b.KillEngine(ctx))
	if _, err := b.Client().Ping(ctx); err == nil {
		t.Error("a killed engine answers")
	}
	ok(b.StartEngine(ctx))
	ok(r.WaitNodes(ctx, noticeLimit))

	leader, err := r.Leader(ctx)
	ok(err)
	ok(leader.Kill(ctx))
	other, err := r.WaitLeader(ctx, noticeLimit)
	ok(err)
	if other == leader {
		t.Errorf("%s is dead and leads", leader.Name())
	}
	ok(leader.Start(ctx))
	ok(r.WaitNodes(ctx, noticeLimit))

	if err := a.SkewClock(ctx, time.Hour); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}

	again, err := Open(ctx, "rig-verbs", nil)
	ok(err)
	defer func() { ok(again.Close()) }()
	if len(again.nodes) != 3 || again.nodes[2].name != c.name || again.nodes[2].address != c.address || again.nodes[2].role != Manager || again.plane != nil {
		t.Errorf("opened again: %+v", again.nodes)
	}
}

// heard: a datagram that one node sends reaches the other. What arrives is counted by the kernel in front of any socket, so nobody need listen.
func heard(ctx context.Context, t *testing.T, to, from *Node) bool {
	t.Helper()
	const port = "19999"
	count := func() string {
		out, err := to.inNetwork(ctx, "", "iptables", "-w", "-t", "filter", "-L", "INPUT", "-v", "-n", "-x")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "dpt:"+port) {
				return strings.Fields(line)[0]
			}
		}
		return ""
	}
	if count() == "" {
		if _, err := to.inNetwork(ctx, "", "iptables", "-w", "-I", "INPUT", "-p", "udp", "--dport", port); err != nil {
			t.Fatal(err)
		}
	}
	before := count()
	_, _ = from.Exec(ctx, "bash", "-c", "echo x >/dev/udp/"+to.Addr().String()+"/"+port) // fails into a cut, as it should
	return Wait(ctx, time.Second, "a datagram", func(context.Context) error {
		if count() == before {
			return errors.New("nothing came")
		}
		return nil
	}) == nil
}

// TestUpRemovesWhatAKilledTestLeft: the first rig is never taken down.
func TestUpRemovesWhatAKilledTestLeft(t *testing.T) {
	Need(t)
	cfg := Config{Name: "rig-left", Nodes: []NodeConfig{{}}, Log: logOf(t)}
	left, err := Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nothingIsLeft(t, cfg.Name) })
	r := Start(t, cfg)
	if _, err := r.docker.ContainerInspect(t.Context(), left.nodes[0].id); err == nil {
		t.Error("the node that was left is there")
	}
	if _, err := r.Leader(t.Context()); err != nil {
		t.Error(err)
	}
	if err := left.Close(); err != nil {
		t.Error(err)
	}
}

// TestThreeEnginesInOneSwarm: each node can have another engine, and the agent is at home on all of them.
func TestThreeEnginesInOneSwarm(t *testing.T) {
	Need(t)
	if err := Build(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nothingIsLeft(t, "rig-three") })
	r := Start(t, Config{
		Name: "rig-three", Nodes: []NodeConfig{{Release: Bookworm}, {Release: Trixie}, {Release: Forky}}, AgentImage: AgentImage, PlaneImage: PlaneImage, Log: logOf(t),
	})
	for i, want := range []string{"20.10.", "26.1.", "28.5."} {
		n := r.nodes[i]
		v, err := n.Client().ServerVersion(t.Context())
		if err != nil || !strings.HasPrefix(v.Version, want) {
			t.Errorf("%s has engine %s, not %s: %v", n.name, v.Version, want, err)
		}
		if err := errors.Join(n.FillDisk(t.Context()), n.FreeDisk(t.Context())); err != nil {
			t.Error(err)
		}
		if _, err := n.Exec(t.Context(), "test", "-s", StateMount+"/_data/journal.db"); err != nil {
			t.Errorf("the agent's journal is not on the disk that can be filled: %v", err)
		}
	}
}

func nothingIsLeft(t *testing.T, name string) {
	t.Helper()
	r, err := newRig(Config{Name: name, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	ctx := context.Background() // the test's own has ended
	containers, err1 := r.docker.ContainerList(ctx, container.ListOptions{All: true, Filters: r.filter()})
	networks, err2 := r.docker.NetworkList(ctx, network.ListOptions{Filters: r.filter()})
	volumes, err3 := r.docker.VolumeList(ctx, volume.ListOptions{Filters: r.filter()})
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if len(containers)+len(networks)+len(volumes.Volumes) > 0 {
		t.Errorf("left are containers %v, networks %v, volumes %v", containers, networks, volumes.Volumes)
	}
	if _, err := os.Stat(r.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", r.dir, err)
	}
}

// logOf sends the rig's log to the test's.
func logOf(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }
