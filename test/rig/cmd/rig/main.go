// Command rig brings up a Swarm of several nodes on this machine (package test/rig), breaks it on demand and takes it down again.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/axion/runner-agent/test/rig"
)

const defaultName = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "rig:", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	var name string
	root := &cobra.Command{
		Use:           "rig",
		Short:         "A real Swarm of several nodes on this machine, to be broken",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&name, "name", defaultName, "the rig's `name`")
	root.AddCommand(upCommand(&name), downCommand(&name), statusCommand(&name), slowCommand(&name), cutCommand(&name))
	for _, v := range verbs {
		root.AddCommand(v.command(&name))
	}
	return root
}

func upCommand(name *string) *cobra.Command {
	var managers, workers int
	var engines []string
	var bare, noBuild bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Build the images, bring up a rig, and say how to use it; what an earlier one of that name left is removed first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if err := rig.Requirements(ctx); err != nil {
				return err
			}
			cfg := rig.Config{Name: *name, Nodes: nodes(managers, workers, engines), Log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))}
			if !bare {
				cfg.AgentImage, cfg.PlaneImage = rig.AgentImage, rig.PlaneImage
				if !noBuild {
					cfg.Log.Info("building agent, plane and axionctl")
					if err := rig.Build(ctx, ""); err != nil {
						return err
					}
				}
			}
			r, err := rig.Up(ctx, cfg)
			if err != nil {
				return err
			}
			defer func() { _ = r.Close() }()
			return printStatus(cmd, r)
		},
	}
	cmd.Flags().IntVar(&managers, "managers", 3, "how many managers")
	cmd.Flags().IntVar(&workers, "workers", 1, "how many workers")
	cmd.Flags().StringSliceVar(&engines, "engines", []string{string(rig.Bookworm)},
		"the nodes' engines, used in turn: bookworm (20.10), trixie (26.1), forky (28.5), or an `image` such as docker:28-dind")
	cmd.Flags().BoolVar(&bare, "bare", false, "engines and Swarm only, without plane and agents")
	cmd.Flags().BoolVar(&noBuild, "no-build", false, "use the images of the last build")
	return cmd
}

func nodes(managers, workers int, engines []string) []rig.NodeConfig {
	all := append(slices.Repeat([]rig.NodeConfig{{Role: rig.Manager}}, max(managers, 0)), slices.Repeat([]rig.NodeConfig{{Role: rig.Worker}}, max(workers, 0))...)
	for i := range all {
		if len(engines) == 0 {
			break
		}
		engine := engines[i%len(engines)]
		if strings.ContainsAny(engine, ":/") {
			all[i].Image = engine
		} else {
			all[i].Release = rig.Release(engine)
		}
	}
	return all
}

func downCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove everything that the rig made",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return rig.Down(cmd.Context(), *name) },
	}
}

func statusCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the rig's nodes and how to reach them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withRig(cmd, *name, func(_ context.Context, r *rig.Rig) error { return printStatus(cmd, r) })
		},
	}
}

func printStatus(cmd *cobra.Command, r *rig.Rig) error {
	ctx := cmd.Context()
	leader := ""
	if n, err := r.Leader(ctx); err == nil {
		leader = n.Name()
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NODE\tROLE\tADDRESS\tPOWER\tDOCKER_HOST")
	row := func(h *rig.Host, role, socket string) {
		power := "on"
		if running, err := h.Running(ctx); err != nil || !running {
			power = "off"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", h.Name(), role, h.Addr(), power, socket)
	}
	for _, n := range r.Nodes() {
		role := string(n.Role())
		if n.Name() == leader {
			role += " (leader)"
		}
		row(&n.Host, role, n.Client().DaemonHost())
	}
	if p := r.Plane(); p != nil {
		row(&p.Host, "plane", "-")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if p := r.Plane(); p != nil {
		fmt.Fprintf(cmd.OutOrStdout(), "\nexport AXION_CONTEXT=%s\n", p.ContextFile())
	}
	return nil
}

// verb is something that can be done to a host.
type verb struct {
	use, short string
	host       func(context.Context, *rig.Host) error
	node       func(context.Context, *rig.Node) error
	plane      func(context.Context, *rig.Plane) error
}

var verbs = []verb{
	{use: "kill", short: "Take the power away", host: func(ctx context.Context, h *rig.Host) error { return h.Kill(ctx) }},
	{use: "stop", short: "Shut down in an orderly way", host: func(ctx context.Context, h *rig.Host) error { return h.Stop(ctx) }},
	{
		use: "start", short: "Boot again", node: func(ctx context.Context, n *rig.Node) error { return n.Start(ctx) },
		plane: func(ctx context.Context, p *rig.Plane) error { return p.Start(ctx) },
	},
	{use: "pause", short: "Freeze every process", host: func(ctx context.Context, h *rig.Host) error { return h.Pause(ctx) }},
	{use: "unpause", short: "End pause", host: func(ctx context.Context, h *rig.Host) error { return h.Unpause(ctx) }},
	{use: "heal", short: "End every cut, half-open connection and slow link", host: func(ctx context.Context, h *rig.Host) error { return h.Heal(ctx) }},
	{use: "half-open", short: "Have the present TCP connections lose every packet from now on", host: func(ctx context.Context, h *rig.Host) error {
		_, err := h.HalfOpen(ctx)
		return err
	}},
	{use: "kill-engine", short: "Kill the engine and keep it down", node: func(ctx context.Context, n *rig.Node) error { return n.KillEngine(ctx) }},
	{use: "start-engine", short: "End kill-engine", node: func(ctx context.Context, n *rig.Node) error { return n.StartEngine(ctx) }},
	{use: "restart-engine", short: "Restart the engine in an orderly way", node: func(ctx context.Context, n *rig.Node) error { return n.RestartEngine(ctx) }},
	{use: "kill-agent", short: "Kill the agent; the Swarm starts another", node: func(ctx context.Context, n *rig.Node) error { return n.KillAgent(ctx) }},
	{use: "fill-disk", short: "Fill the disk of the agent's state volume", node: func(ctx context.Context, n *rig.Node) error { return n.FillDisk(ctx) }},
	{use: "free-disk", short: "End fill-disk", node: func(ctx context.Context, n *rig.Node) error { return n.FreeDisk(ctx) }},
	{use: "lose-state", short: "Empty the agent's state volume and kill the agent", node: func(ctx context.Context, n *rig.Node) error { return n.LoseState(ctx) }},
}

func (v verb) command(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   v.use + " HOST",
		Short: v.short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withRig(cmd, *name, func(ctx context.Context, r *rig.Rig) error { return v.do(ctx, r, args[0]) })
		},
	}
}

func (v verb) do(ctx context.Context, r *rig.Rig, name string) error {
	n, p := r.Node(name), r.Plane()
	isPlane := p != nil && p.Name() == name
	switch {
	case v.node != nil && n != nil:
		return v.node(ctx, n)
	case v.plane != nil && isPlane:
		return v.plane(ctx, p)
	case v.host == nil && isPlane:
		return fmt.Errorf("%s is for nodes, not for the plane", v.use)
	}
	h, err := hostOf(r, name)
	if err != nil {
		return err
	}
	return v.host(ctx, h)
}

func hostOf(r *rig.Rig, name string) (*rig.Host, error) {
	if n := r.Node(name); n != nil {
		return &n.Host, nil
	}
	if p := r.Plane(); p != nil && p.Name() == name {
		return &p.Host, nil
	}
	return nil, fmt.Errorf("rig %s has no host %s", r.Name(), name)
}

func cutCommand(name *string) *cobra.Command {
	var direction string
	cmd := &cobra.Command{
		Use:   "cut HOST [PEER...]",
		Short: "Lose every packet between a host and others, or everybody, until heal",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains([]string{string(rig.Both), string(rig.In), string(rig.Out)}, direction) {
				return errors.New("--direction is both, in or out")
			}
			return withRig(cmd, *name, func(ctx context.Context, r *rig.Rig) error {
				h, err := hostOf(r, args[0])
				if err != nil {
					return err
				}
				var peers []rig.Peer
				for _, other := range args[1:] {
					peer, err := hostOf(r, other)
					if err != nil {
						return err
					}
					peers = append(peers, peer)
				}
				return h.Cut(ctx, rig.Direction(direction), peers...)
			})
		},
	}
	cmd.Flags().StringVar(&direction, "direction", string(rig.Both), "both, in (the host is heard but hears nothing) or out")
	return cmd
}

func slowCommand(name *string) *cobra.Command {
	var link rig.Link
	cmd := &cobra.Command{
		Use:   "slow HOST",
		Short: "Make a host's connection slow, until heal",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withRig(cmd, *name, func(ctx context.Context, r *rig.Rig) error {
				h, err := hostOf(r, args[0])
				if err != nil {
					return err
				}
				return h.Slow(ctx, link)
			})
		},
	}
	cmd.Flags().Int64Var(&link.Rate, "rate", 0, "`bits` per second in each direction")
	cmd.Flags().DurationVar(&link.Delay, "delay", 0, "added to each packet in each direction; needs a kernel with netem")
	cmd.Flags().Float64Var(&link.Loss, "loss", 0, "`share` of packets lost, 0 to 1; needs a kernel with netem")
	return cmd
}

// openTimeout bounds finding the rig.
const openTimeout = 20 * time.Second

func withRig(cmd *cobra.Command, name string, do func(context.Context, *rig.Rig) error) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), openTimeout)
	r, err := rig.Open(ctx, name, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
	cancel()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return do(cmd.Context(), r)
}
