package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/ctl/document"
	"github.com/axion/runner-agent/ctl/table"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

func (a *app) agentsCommand() *cobra.Command {
	var cluster string
	cmd := &cobra.Command{
		Use:     "agents",
		Aliases: []string{"agent"},
		Short:   "List the agents",
		Long:    "List the enrolled agents, and below them each agent's warnings.",
		Example: `  axionctl agents --cluster prod
  axionctl agents -o json | jq -r '.[] | select(.connected | not) | .node'
  axionctl agents rm a-3k9vbd1xw2p0c7mz`,
		Args: named(),
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return a.call(ctx, callTimeout, func(ctx context.Context, plane *client.Client) error {
				response, err := plane.ListAgents(ctx, &planev1.ListAgentsRequest{ClusterId: cluster})
				if err != nil {
					return err
				}
				return a.printAgents(response.GetAgents())
			})
		}),
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "only those of the cluster with this `ID`")
	cmd.AddCommand(a.agentRemoveCommand())
	return cmd
}

func (a *app) printAgents(agents []*planev1.Agent) error {
	if a.json() {
		documents := make([]document.Agent, 0, len(agents))
		for _, agent := range agents {
			documents = append(documents, document.OfAgent(agent))
		}
		return document.Write(a.env.Stdout, documents)
	}
	rows := table.New("AGENT", "CLUSTER", "NODE", "ROLE", "VERSION", "STATE", "LAST SEEN", "WARNINGS")
	for _, agent := range agents {
		warnings := ""
		if n := len(agent.GetWarnings()); n > 0 {
			warnings = strconv.Itoa(n)
		}
		rows.Add(agent.GetId(), agent.GetClusterId(), agent.GetNode().GetHostname(), agentRole(agent), agent.GetVersion(), agentState(agent),
			a.when(agent.GetLastSeen()), warnings)
	}
	if err := rows.Write(a.env.Stdout); err != nil {
		return err
	}
	return a.printWarnings(agents)
}

// printWarnings prints each warning as one line below the table.
func (a *app) printWarnings(agents []*planev1.Agent) error {
	separator := "\n"
	for _, agent := range agents {
		for _, w := range agent.GetWarnings() {
			line := fmt.Sprintf("%s %s: %s (%s, %s): %s", agent.GetId(), agent.GetNode().GetHostname(), w.GetTitle(), document.Severity(w.GetSeverity()), w.GetCode(), w.GetText())
			if _, err := fmt.Fprintf(a.env.Stdout, "%s%s\n", separator, table.Clean(line)); err != nil {
				return err
			}
			separator = ""
		}
	}
	return nil
}

// agentRole adds to a manager's role that nobody has confirmed it, because it then gets no commands of its cluster.
func agentRole(agent *planev1.Agent) string {
	role := document.Role(agent.GetNode().GetRole())
	if agent.GetNode().GetRole() == runnerv1.NodeRole_NODE_ROLE_MANAGER && !agent.GetManagerConfirmed() {
		return role + " (unconfirmed)"
	}
	return role
}

func agentState(agent *planev1.Agent) string {
	if agent.GetConnected() {
		return "connected"
	}
	return "disconnected"
}

// stillWelcome is what an operator who removes an agent must know.
const stillWelcome = "if its agent goes on running, the node enrols again with its join token: revoke the token (axionctl token revoke) or take the node out of the Swarm"

func (a *app) agentRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "rm AGENT",
		Aliases: []string{"remove"},
		Short:   "Revoke an agent's certificate and remove what belongs to it",
		Long: `Revoke an agent's certificate, end its session, and remove its access to Kafka and its command topic. It cannot be undone.

A node whose agent goes on running enrols again by itself, and gets the same id back, as long as its join token is not revoked. To keep it out, revoke
the token (axionctl token revoke) or take the node out of the Swarm (docker node rm) first.`,
		Example: "  axionctl agents rm a-3k9vbd1xw2p0c7mz",
		Args:    named("AGENT"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			return a.call(ctx, callTimeout, func(ctx context.Context, plane *client.Client) error {
				if _, err := plane.RemoveAgent(ctx, &planev1.RemoveAgentRequest{Id: args[0]}); err != nil {
					return err
				}
				a.warn([]string{stillWelcome})
				return a.done("removed", args[0])
			})
		}),
	}
}
