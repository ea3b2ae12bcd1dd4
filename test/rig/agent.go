package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/agent/health"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

const (
	// ClusterID is the cluster that the rig's agents belong to.
	ClusterID = "rig"
	// AgentService is the agents' global service.
	AgentService = agentStack + "_agent"
	agentStack   = "axion"
	tokenSecret  = "axion_token"
	// agentsTimeout bounds the time until all agents have enrolled, one after the other on two cores.
	agentsTimeout = 3 * time.Minute
)

// errNoAgent: the node's agent does not run at the moment.
var errNoAgent = errors.New("its agent does not run")

// AgentContainer is the id of the agent's running container on the node. It fails if there is none, as between a crash and the next start.
func (n *Node) AgentContainer(ctx context.Context) (string, error) {
	found, err := n.client.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", "com.docker.swarm.service.name="+AgentService))})
	if err == nil && len(found) == 0 {
		err = errNoAgent
	}
	if err != nil {
		return "", n.failed("find the agent of", err)
	}
	return found[0].ID, nil
}

// KillAgent kills the node's agent with SIGKILL; the Swarm starts another one after two seconds.
func (n *Node) KillAgent(ctx context.Context) error {
	id, err := n.AgentContainer(ctx)
	if err != nil {
		return err
	}
	return n.failed("kill the agent of", n.client.ContainerKill(ctx, id, "KILL"))
}

// AgentLogs returns the last lines of what the node's agent printed, the running one or the last that ran.
func (n *Node) AgentLogs(ctx context.Context, lines int) (string, error) {
	found, err := n.client.ContainerList(ctx, container.ListOptions{
		All: true, Limit: 1, Filters: filters.NewArgs(filters.Arg("label", "com.docker.swarm.service.name="+AgentService)),
	})
	if err == nil && len(found) == 0 {
		err = errNoAgent
	}
	if err != nil {
		return "", n.failed("read the agent's logs of", err)
	}
	stream, err := n.client.ContainerLogs(ctx, found[0].ID, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: fmt.Sprint(lines)})
	if err != nil {
		return "", n.failed("read the agent's logs of", err)
	}
	defer func() { _ = stream.Close() }()
	return demultiplexed(stream)
}

// agentHealth is where the stack file has the agent answer on its node.
const agentHealth = "127.0.0.1/9180"

// Health is what the node's agent says of itself on /health. It is asked on the node, so also one that is cut off answers.
func (n *Node) Health(ctx context.Context) (health.Answer, error) {
	var answer health.Answer
	body, err := n.askAgent(ctx, "/health")
	if err == nil {
		err = json.Unmarshal([]byte(body), &answer)
	}
	return answer, n.failed("ask the agent of", err)
}

// AgentMetric is the value of one of the figures without labels that the node's agent tells on /metrics.
func (n *Node) AgentMetric(ctx context.Context, name string) (float64, error) {
	body, err := n.askAgent(ctx, "/metrics")
	if err != nil {
		return 0, n.failed("ask the agent of", err)
	}
	for line := range strings.Lines(body) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(text), 64)
		}
	}
	return 0, n.failed("ask the agent of", fmt.Errorf("it tells no %s", name))
}

// askAgent gets a path from the agent's health server. A node has no program for HTTP, but it has bash.
func (n *Node) askAgent(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := n.Exec(ctx, "bash", "-c", "exec 3<>/dev/tcp/"+agentHealth+" && printf 'GET "+path+" HTTP/1.0\r\n\r\n' >&3 && cat <&3")
	if err != nil {
		return "", err
	}
	_, body, _ := strings.Cut(answer, "\r\n\r\n")
	return body, nil
}

// Agents are the agents that the plane knows.
func (r *Rig) Agents(ctx context.Context) ([]*planev1.Agent, error) {
	c, err := r.plane.Operator()
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	resp, err := c.ListAgents(ctx, &planev1.ListAgentsRequest{ClusterId: ClusterID})
	return resp.GetAgents(), err
}

// AgentNode is the node that an agent runs on.
func (r *Rig) AgentNode(ctx context.Context, agentID string) (*Node, error) {
	agents, err := r.Agents(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range agents {
		if a.GetId() == agentID {
			if n := r.Node(a.GetNode().GetHostname()); n != nil {
				return n, nil
			}
		}
	}
	return nil, fmt.Errorf("rig %s: agent %s runs on no node of it", r.name, agentID)
}

// WaitAgents waits until the agents of those nodes (none: of all) are connected to the plane in the roles that the nodes have, managers confirmed.
func (r *Rig) WaitAgents(ctx context.Context, limit time.Duration, nodes ...*Node) error {
	if len(nodes) == 0 {
		nodes = r.nodes
	}
	return Wait(ctx, limit, "the agents of rig "+r.name, func(ctx context.Context) error {
		agents, err := r.Agents(ctx)
		if err != nil {
			return err
		}
		return asExpected(agents, nodes)
	})
}

func asExpected(agents []*planev1.Agent, nodes []*Node) error {
	by := map[string][]*planev1.Agent{}
	for _, a := range agents {
		by[a.GetNode().GetHostname()] = append(by[a.GetNode().GetHostname()], a)
	}
	var failures []error
	for _, n := range nodes {
		role := runnerv1.NodeRole_NODE_ROLE_WORKER
		if n.role == Manager {
			role = runnerv1.NodeRole_NODE_ROLE_MANAGER
		}
		switch of := by[n.name]; {
		case len(of) != 1:
			failures = append(failures, fmt.Errorf("%s has %d agents", n.name, len(of)))
		case !of[0].GetConnected():
			failures = append(failures, fmt.Errorf("the agent of %s is not connected", n.name))
		case of[0].GetNode().GetRole() != role || of[0].GetManagerConfirmed() != (n.role == Manager):
			failures = append(failures, fmt.Errorf("the agent of %s is %s (manager confirmed: %t)", n.name, of[0].GetNode().GetRole(), of[0].GetManagerConfirmed()))
		}
	}
	return errors.Join(failures...)
}

// installAgents does what the README tells an operator to do: a join token as a secret, and the stack file.
func (r *Rig) installAgents(ctx context.Context, image string, env []string) error {
	c, err := r.plane.Operator()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	token, err := c.CreateToken(ctx, &planev1.CreateTokenRequest{ClusterId: ClusterID})
	if err != nil {
		return err
	}
	first := r.nodes[0]
	if _, err := first.client.SecretCreate(ctx, swarm.SecretSpec{Annotations: swarm.Annotations{Name: tokenSecret}, Data: []byte(token.GetToken())}); err != nil {
		return first.failed("make the join token on", err)
	}
	deploy := exec.CommandContext(ctx, "docker", "stack", "deploy", "--resolve-image", "never", "-c", "deploy/axion-stack.yml", agentStack)
	deploy.Dir = r.source
	deploy.Env = append(append(withoutDocker(os.Environ()), "DOCKER_HOST=unix://"+first.socket(), "AXION_IMAGE="+image, "AXION_PLANE_ADDRESS="+r.plane.Address()), env...)
	_, err = runCommand(deploy, nil)
	return err
}

// withoutDocker leaves out what points the docker command elsewhere.
func withoutDocker(environ []string) []string {
	var kept []string
	for _, entry := range environ {
		if !strings.HasPrefix(entry, "DOCKER_") {
			kept = append(kept, entry)
		}
	}
	return kept
}
