package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/docker/docker/client"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/axion/runner-agent/agent/config"
	"github.com/axion/runner-agent/agent/engine"
	"github.com/axion/runner-agent/agent/local"
	"github.com/axion/runner-agent/agent/telemetry"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// verdict is how a check ended.
type verdict string

// The verdicts.
const (
	ok   verdict = "ok"
	warn verdict = "warn"
	fail verdict = "fail"
)

// finding is what a check found.
type finding struct {
	verdict verdict
	text    string
	hint    string
}

// check is one thing that must be right for the agent to work.
type check struct {
	name string
	run  func(context.Context, config.Config) finding
}

// checks are done in this order: what others build on comes first.
var checks = []check{
	{"engine", checkEngine},
	{"state folder", checkStateFolder},
	{"work folder", checkWorkFolder},
	{"figures", checkTelemetry},
	{"join token", checkToken},
	{"control plane", checkPlane},
	{"local socket", checkLocalSocket},
}

// errUnwell ends the doctor's command when a check failed; the findings are printed already.
var errUnwell = errors.New("not everything is well")

func (l *commandLine) doctorCommand() *cobra.Command {
	var flags *config.Flags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what the agent needs; exit code 0 if nothing fails",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return l.examine(cmd.Context(), cmd.OutOrStdout(), flags)
		},
	}
	flags = config.AddFlags(cmd.Flags())
	return cmd
}

func (l *commandLine) examine(ctx context.Context, w io.Writer, flags *config.Flags) error {
	cfg, err := config.Load(l.sources(flags))
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			report(w, "configuration", finding{fail, strings.TrimSpace(line), ""})
		}
		return errUnwell
	}
	report(w, "configuration", finding{ok, "sound", ""})
	well := true
	for _, c := range checks {
		f := c.run(ctx, cfg)
		report(w, c.name, f)
		well = well && f.verdict != fail
	}
	if !well {
		return errUnwell
	}
	return nil
}

func report(w io.Writer, name string, f finding) {
	fmt.Fprintf(w, "%-5s %-14s %s\n", f.verdict, name, f.text)
	if f.hint != "" {
		fmt.Fprintf(w, "%-20s hint: %s\n", "", f.hint)
	}
}

// found turns an error into a finding.
func found(v verdict, err error) finding {
	f := failure.Of(err)
	return finding{v, f.Message, f.Hint}
}

// silent takes warnings and drops them: here the error itself is told.
type silent struct{}

func (silent) Set(string, runnerv1.HealthSeverity, string, string) {}
func (silent) Clear(string)                                        {}

func checkEngine(ctx context.Context, cfg config.Config) finding {
	e, err := engine.New(engine.Config{Host: cfg.Engine.Host}, engine.Deps{Log: slog.New(slog.DiscardHandler), Warn: silent{}})
	if err != nil {
		return found(fail, err)
	}
	facts, err := e.Node(ctx)
	if err != nil {
		return found(fail, err)
	}
	return finding{ok, nodeText(facts), ""}
}

func checkStateFolder(_ context.Context, cfg config.Config) finding {
	dir := cfg.Agent.StateDir
	if err := tryWriting(dir); err != nil {
		return finding{fail, err.Error(), "mount a volume there that the agent may write to"}
	}
	return finding{ok, dir + " can be written", ""}
}

func checkWorkFolder(_ context.Context, cfg config.Config) finding {
	dir := cfg.Agent.WorkDir
	if err := tryWriting(dir); err != nil {
		return finding{fail, err.Error(), "mount a tmpfs there"}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return finding{fail, fmt.Sprintf("%s: %v", dir, err), ""}
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return finding{warn, dir + " is not in memory: secrets of deployments would be written to a disk", "mount a tmpfs there"}
	}
	return finding{ok, dir + " is in memory", ""}
}

// tryWriting makes and removes a file in the folder.
func tryWriting(dir string) error {
	f, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func checkTelemetry(_ context.Context, cfg config.Config) finding {
	t := cfg.Telemetry
	if !t.Enabled {
		return finding{ok, "switched off", ""}
	}
	c, err := telemetry.New(
		telemetry.Config{CgroupRoot: t.CgroupRoot, ProcRoot: t.ProcRoot, Interval: t.Interval},
		telemetry.Deps{Engine: func() *client.Client { return nil }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return found(warn, err)
	}
	return finding{ok, c.Sources(), ""}
}

func checkLocalSocket(ctx context.Context, cfg config.Config) finding {
	c, err := local.Dial(ctx, cfg.Local.Socket)
	if err != nil {
		return found(warn, err)
	}
	defer c.Close()
	status, err := c.Status(ctx)
	if err != nil {
		return found(warn, err)
	}
	return finding{ok, fmt.Sprintf("agent %s answers, version %s, %d warnings", or(status.GetAgentId(), "(not enrolled yet)"), status.GetVersion(), len(status.GetWarnings())), ""}
}
