package rig

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// stopGrace is how long a host that is stopped may take before it is killed.
const stopGrace = 30 * time.Second

// Host is a machine of the rig: a node, or where the plane runs. All that happens to it happens from outside, so it works also on one that hangs.
type Host struct {
	rig     *Rig
	name    string
	id      string // of its container
	address netip.Addr
}

// Name is the host's name in the rig.
func (h *Host) Name() string { return h.name }

// Addr is the host's address in the rig's network.
func (h *Host) Addr() netip.Addr { return h.address }

// ContainerID is the id of the host's container on this machine's engine.
func (h *Host) ContainerID() string { return h.id }

// Kill takes the power away: every process on the host is gone at once and nobody is told. Start brings it back with its disks.
func (h *Host) Kill(ctx context.Context) error {
	if err := h.Cut(ctx, Both); err != nil { // the kernel, which lives on, would say good-bye for the processes
		return err
	}
	return h.failed("kill", h.rig.docker.ContainerKill(ctx, h.id, "KILL"))
}

// Stop shuts the host down in an orderly way.
func (h *Host) Stop(ctx context.Context) error {
	grace := int(stopGrace.Seconds())
	return h.failed("stop", h.rig.docker.ContainerStop(ctx, h.id, container.StopOptions{Timeout: &grace}))
}

// Pause freezes every process on the host; its kernel still acknowledges packets. Unpause lets it go on.
func (h *Host) Pause(ctx context.Context) error {
	return h.failed("pause", h.rig.docker.ContainerPause(ctx, h.id))
}

// Unpause ends Pause.
func (h *Host) Unpause(ctx context.Context) error {
	return h.failed("unpause", h.rig.docker.ContainerUnpause(ctx, h.id))
}

// Running reports whether the host has power; it has while it is paused.
func (h *Host) Running(ctx context.Context) (bool, error) {
	c, err := h.rig.docker.ContainerInspect(ctx, h.id)
	if err != nil {
		return false, h.failed("inspect", err)
	}
	return c.State.Running, nil
}

// start boots the host; network faults do not outlive a boot.
func (h *Host) start(ctx context.Context) error {
	return h.failed("start", h.rig.docker.ContainerStart(ctx, h.id, container.StartOptions{}))
}

// Exec runs a command on the host and returns what it printed on standard output.
func (h *Host) Exec(ctx context.Context, args ...string) (string, error) {
	created, err := h.rig.docker.ContainerExecCreate(ctx, h.id, container.ExecOptions{Cmd: args, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return "", h.failed("exec", err)
	}
	attached, err := h.rig.docker.ContainerExecAttach(ctx, created.ID, container.ExecAttachOptions{})
	if err != nil {
		return "", h.failed("exec", err)
	}
	defer attached.Close()
	stop := context.AfterFunc(ctx, attached.Close)
	defer stop()
	var stdout, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, &stderr, attached.Reader); err != nil {
		return "", h.failed("exec", err)
	}
	state, err := h.rig.docker.ContainerExecInspect(ctx, created.ID)
	if err != nil {
		return "", h.failed("exec", err)
	}
	if state.ExitCode != 0 {
		return stdout.String(), h.failed("exec", fmt.Errorf("%s: exit code %d: %s", strings.Join(args, " "), state.ExitCode, tail(stdout.String()+stderr.String())))
	}
	return stdout.String(), nil
}

// Logs returns the last lines of what the host printed: a node's engine, or the plane.
func (h *Host) Logs(ctx context.Context, lines int) (string, error) {
	stream, err := h.rig.docker.ContainerLogs(ctx, h.id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: fmt.Sprint(lines)})
	if err != nil {
		return "", h.failed("logs", err)
	}
	defer func() { _ = stream.Close() }()
	return demultiplexed(stream)
}

// LogsSince returns what the host printed after that moment.
func (h *Host) LogsSince(ctx context.Context, moment time.Time) (string, error) {
	stream, err := h.rig.docker.ContainerLogs(ctx, h.id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Since: moment.Format(time.RFC3339Nano)})
	if err != nil {
		return "", h.failed("logs", err)
	}
	defer func() { _ = stream.Close() }()
	return demultiplexed(stream)
}

func demultiplexed(stream io.Reader) (string, error) {
	var text bytes.Buffer
	_, err := stdcopy.StdCopy(&text, &text, stream)
	return text.String(), err
}

func (h *Host) failed(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("rig %s: %s %s: %w", h.rig.name, verb, h.name, err)
}
