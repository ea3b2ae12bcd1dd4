package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/ctl/document"
	"github.com/axion/runner-agent/ctl/table"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
)

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, list and revoke the tokens with which agents join",
		Args:  named(),
		RunE:  a.group,
	}
	cmd.AddCommand(a.tokenCreateCommand(), a.tokenListCommand(), a.tokenRevokeCommand())
	return cmd
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var cluster string
	var uses uint32
	ttl := boundedDuration{value: 24 * time.Hour, min: time.Minute, max: 30 * 24 * time.Hour}
	cmd := &cobra.Command{
		Use:   "create --cluster ID",
		Short: "Make a join token; the cluster is made if it does not exist",
		Long: `Make a join token for the agents of a cluster and print it, and nothing else, on standard output. It is shown only once.

Time and uses limit the first nodes; nodes that join the Swarm later enrol with the same token until it is revoked.`,
		Example: `  axionctl token create --cluster prod | docker secret create axion_token -
  axionctl token create --cluster prod --ttl 1h --uses 3`,
		Args: named(),
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return a.call(ctx, callTimeout, func(ctx context.Context, plane *client.Client) error {
				request := &planev1.CreateTokenRequest{ClusterId: cluster, Ttl: durationpb.New(ttl.value), Uses: uses}
				response, err := plane.CreateToken(ctx, request)
				if err != nil {
					return err
				}
				if a.json() {
					return document.Write(a.env.Stdout, document.OfToken(response.GetToken(), response.GetInfo()))
				}
				_, err = fmt.Fprintln(a.env.Stdout, response.GetToken())
				return err
			})
		}),
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "cluster `ID` that the agents belong to: a-z, 0-9 and -, at most 40 characters")
	cmd.Flags().Var(&ttl, "ttl", "until when a first node may enrol")
	cmd.Flags().Uint32Var(&uses, "uses", 1, "how many first nodes may enrol")
	mustRequire(cmd, "cluster")
	return cmd
}

func (a *app) tokenListCommand() *cobra.Command {
	var cluster string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the join tokens, without their secrets",
		Args:    named(),
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return a.call(ctx, callTimeout, func(ctx context.Context, plane *client.Client) error {
				response, err := plane.ListTokens(ctx, &planev1.ListTokensRequest{ClusterId: cluster})
				if err != nil {
					return err
				}
				return a.printTokens(response.GetTokens())
			})
		}),
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "only those of the cluster with this `ID`")
	return cmd
}

func (a *app) printTokens(tokens []*planev1.Token) error {
	if a.json() {
		documents := make([]document.Token, 0, len(tokens))
		for _, t := range tokens {
			documents = append(documents, document.OfToken("", t))
		}
		return document.Write(a.env.Stdout, documents)
	}
	rows := table.New("ID", "CLUSTER", "CREATED", "EXPIRES", "USED", "STATE")
	for _, t := range tokens {
		rows.Add(t.GetId(), t.GetClusterId(), a.when(t.GetCreatedAt()), a.when(t.GetExpiresAt()), fmt.Sprintf("%d/%d", t.GetUsed(), t.GetUses()), a.tokenState(t))
	}
	return rows.Write(a.env.Stdout)
}

// tokenState says whether a first node may enrol with the token.
func (a *app) tokenState(t *planev1.Token) string {
	switch {
	case t.GetRevoked():
		return "revoked"
	case t.GetExpiresAt() != nil && !a.env.Now().Before(t.GetExpiresAt().AsTime()):
		return "expired"
	case t.GetUsed() >= t.GetUses():
		return "used up"
	default:
		return "active"
	}
}

func (a *app) tokenRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Aliases: []string{"rm"},
		Short:   "Make a join token useless from now on",
		Long:    "Make a join token useless from now on. Agents that have enrolled with it stay enrolled.",
		Example: "  axionctl token revoke $(axionctl token ls -o json | jq -r '.[0].id')",
		Args:    named("ID"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			return a.call(ctx, callTimeout, func(ctx context.Context, plane *client.Client) error {
				if _, err := plane.RevokeToken(ctx, &planev1.RevokeTokenRequest{Id: args[0]}); err != nil {
					return err
				}
				return a.done("revoked", args[0])
			})
		}),
	}
}
