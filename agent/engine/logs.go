package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/container"
	timetypes "github.com/docker/docker/api/types/time"
	"github.com/docker/docker/pkg/stdcopy"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// Bounds of the contract's LogOptions, in bytes.
const (
	maxSince = 64
	maxTail  = 16
)

// ContainerLogs does what `docker logs` does: it gives each line to out, in the order in which they come from the engine, until the log ends or, with follow,
// until the container stops, out returns an error, or ctx ends. A line longer than 64 KiB comes in pieces; the text belongs to out.
// Of the options those about service logs (no_resolve, no_trunc, no_task_ids, raw) have no meaning here.
// Failures: invalid no_such_container, bad_container, bad_log_options; unavailable engine_unreachable.
func (e *Engine) ContainerLogs(ctx context.Context, name string, options *runnerv1.LogOptions, out func(*runnerv1.LogLine) error) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := checkLogOptions(name, options); err != nil {
		return err
	}
	c := e.Client()
	inspected, err := c.ContainerInspect(ctx, name)
	if err != nil {
		return containerFailure("read the logs of", name, err)
	}
	logs, err := c.ContainerLogs(ctx, inspected.ID, container.LogsOptions{
		ShowStdout: true,
		ShowStderr: true,
		Follow:     options.GetFollow(),
		Since:      options.GetSince(),
		Tail:       options.GetTail(),
		Timestamps: options.GetTimestamps(),
		Details:    options.GetDetails(),
	})
	if err != nil {
		return containerFailure("read the logs of", name, err)
	}
	defer logs.Close()
	tty := inspected.Config != nil && inspected.Config.Tty
	if err := copyLogs(logs, tty, out); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("logs of container %s: %w", name, err)
	}
	return nil
}

// copyLogs splits the engine's stream into lines: a terminal's is as it is, any other one holds frames of both outputs.
func copyLogs(logs io.Reader, tty bool, out func(*runnerv1.LogLine) error) error {
	stdout := &lineWriter{source: runnerv1.LogSource_LOG_SOURCE_STDOUT, out: out}
	stderr := &lineWriter{source: runnerv1.LogSource_LOG_SOURCE_STDERR, out: out}
	var err error
	if tty {
		_, err = io.Copy(stdout, logs)
	} else {
		_, err = stdcopy.StdCopy(stdout, stderr, logs)
	}
	if err != nil {
		return err
	}
	return errors.Join(stdout.Flush(), stderr.Flush())
}

func checkLogOptions(name string, options *runnerv1.LogOptions) error {
	if n := len(options.GetSince()); n > maxSince {
		return failure.New(failure.Invalid, "bad_log_options", name, "logs of container %s: since has %d bytes, at most %d are allowed", name, n, maxSince)
	}
	if err := checkSince(options.GetSince()); err != nil {
		return failure.New(failure.Invalid, "bad_log_options", name, "logs of container %s: since: %w", name, err)
	}
	tail := options.GetTail()
	if tail == "" || tail == "all" {
		return nil
	}
	if _, err := strconv.ParseUint(tail, 10, 32); err != nil || len(tail) > maxTail {
		return failure.New(failure.Invalid, "bad_log_options", name, "logs of container %s: tail %.40q is neither a number of lines nor \"all\"", name, tail)
	}
	return nil
}

func checkSince(since string) error {
	if since == "" {
		return nil
	}
	_, err := timetypes.GetTimestamp(since, time.Now())
	return err
}
