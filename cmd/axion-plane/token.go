package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/plane"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/proto/operatorcontext"
)

// callTimeout bounds a call to the plane on this machine.
const callTimeout = 15 * time.Second

func tokenCommand(data *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, list and revoke join tokens, through the plane that runs on this machine",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(tokenCreateCommand(data), tokenListCommand(data), tokenRevokeCommand(data))
	return cmd
}

func tokenCreateCommand(data *string) *cobra.Command {
	var cluster string
	var ttl time.Duration
	var uses uint32
	cmd := &cobra.Command{
		Use:     "create --cluster NAME",
		Short:   "Make a join token and print it, and nothing else, on standard output",
		Example: "  axion-plane token create --cluster prod >join-token",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return call(cmd, *data, func(ctx context.Context, c *client.Client) error {
				resp, err := c.CreateToken(ctx, &planev1.CreateTokenRequest{ClusterId: cluster, Ttl: durationpb.New(ttl), Uses: uses})
				if err != nil {
					return err
				}
				info := resp.GetInfo()
				fmt.Fprintf(cmd.ErrOrStderr(), "join token %s for cluster %s: first nodes may use it %d times until %s\n",
					info.GetId(), info.GetClusterId(), info.GetUses(), info.GetExpiresAt().AsTime().Format(time.RFC3339))
				_, err = fmt.Fprintln(cmd.OutOrStdout(), resp.GetToken())
				return err
			})
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "cluster `id`, made if it does not exist: [a-z0-9-]{1,40}")
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "until when first nodes may use it: 1m to 720h")
	cmd.Flags().Uint32Var(&uses, "uses", 1, "how many first nodes may use it; nodes that a manager vouches for are not counted")
	if err := cmd.MarkFlagRequired("cluster"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func tokenListCommand(data *string) *cobra.Command {
	var cluster string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the join tokens, without their secrets",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return call(cmd, *data, func(ctx context.Context, c *client.Client) error {
				resp, err := c.ListTokens(ctx, &planev1.ListTokensRequest{ClusterId: cluster})
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 3, ' ', 0)
				fmt.Fprintln(w, "ID\tCLUSTER\tEXPIRES\tUSED\tREVOKED")
				for _, t := range resp.GetTokens() {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d/%d\t%v\n", t.GetId(), t.GetClusterId(), t.GetExpiresAt().AsTime().Format(time.RFC3339), t.GetUsed(), t.GetUses(), t.GetRevoked())
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "only of this cluster")
	return cmd
}

func tokenRevokeCommand(data *string) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Make a join token useless from now on",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.ExactArgs(1)(cmd, args); err != nil {
				return usageError{err}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(cmd, *data, func(ctx context.Context, c *client.Client) error {
				_, err := c.RevokeToken(ctx, &planev1.RevokeTokenRequest{Id: args[0]})
				return err
			})
		},
	}
}

// call makes a call to the plane on this machine, whatever address it advertises.
func call(cmd *cobra.Command, data string, do func(context.Context, *client.Client) error) error {
	operator, err := operatorcontext.Load(plane.ContextPath(data))
	if err != nil {
		return err
	}
	address, err := plane.LocalAddress(data)
	if err != nil {
		return err
	}
	config, err := plane.LocalTLS(data)
	if err != nil {
		return err
	}
	c, err := client.New(client.Config{Address: address, TLS: config, Credentials: operator.Credentials()})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
	defer cancel()
	return do(ctx, c)
}
