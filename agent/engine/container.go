package engine

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/proto/failure"
)

const (
	// maxGrace is the longest time that a container may be given to stop by itself.
	maxGrace = 10 * time.Minute
	// maxContainerName is the longest id or name, in bytes.
	maxContainerName = 255
	// maxSignal is the longest signal name, in bytes ("SIGRTMAX-14").
	maxSignal = 16
)

// containerName is what docker takes as a name or id. Nothing else may become a part of a request's path.
var containerName = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// Stop does what `docker stop` does: a container that does not run is a success. A nil grace leaves the time before the kill to the container; 0 to 10 min,
// rounded up to seconds. Failures: invalid no_such_container, bad_container, bad_grace; unavailable engine_unreachable.
func (e *Engine) Stop(ctx context.Context, name string, grace *time.Duration) error {
	options, err := stopOptions(name, grace)
	if err != nil {
		return err
	}
	return containerFailure("stop", name, e.Client().ContainerStop(ctx, name, options))
}

// Start does what `docker start` does: a container that runs is a success. Failures: as Stop's.
func (e *Engine) Start(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return containerFailure("start", name, e.Client().ContainerStart(ctx, name, container.StartOptions{}))
}

// Restart does what `docker restart` does; grace and failures are those of Stop.
func (e *Engine) Restart(ctx context.Context, name string, grace *time.Duration) error {
	options, err := stopOptions(name, grace)
	if err != nil {
		return err
	}
	return containerFailure("restart", name, e.Client().ContainerRestart(ctx, name, options))
}

// Kill does what `docker kill` does; an empty signal is SIGKILL. Failures: as Stop's; conflict not_running if the container does not run;
// invalid bad_signal.
func (e *Engine) Kill(ctx context.Context, name, signal string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if len(signal) > maxSignal {
		return failure.New(failure.Invalid, "bad_signal", name, "signal for container %s has %d bytes, at most %d are allowed", name, len(signal), maxSignal)
	}
	if signal == "" {
		signal = "SIGKILL"
	}
	return containerFailure("kill", name, e.Client().ContainerKill(ctx, name, signal))
}

func stopOptions(name string, grace *time.Duration) (container.StopOptions, error) {
	if err := checkName(name); err != nil {
		return container.StopOptions{}, err
	}
	if grace == nil {
		return container.StopOptions{}, nil
	}
	if *grace < 0 || *grace > maxGrace {
		return container.StopOptions{}, failure.New(failure.Invalid, "bad_grace", name, "grace period of container %s is %v, it must be from 0 to %v", name, *grace, maxGrace)
	}
	seconds := int((*grace + time.Second - 1) / time.Second)
	return container.StopOptions{Timeout: &seconds}, nil
}

func checkName(name string) error {
	if len(name) > maxContainerName || !containerName.MatchString(name) {
		return failure.New(failure.Invalid, "bad_container", name, "%q is not a container's id or name", name)
	}
	return nil
}

// containerFailure turns what the engine answered to a call about one container into a failure; nil for nil.
func containerFailure(verb, name string, err error) error {
	text := fmt.Sprintf("%s container %s", verb, name)
	switch {
	case err == nil:
		return nil
	case client.IsErrConnectionFailed(err):
		return failure.New(failure.Unavailable, WarnUnreachable, name, "%s: %w", text, err)
	case errdefs.IsNotFound(err) && strings.Contains(strings.ToLower(err.Error()), "no such container"):
		return failure.New(failure.Invalid, "no_such_container", name, "%s: there is no such container on this node", text).
			WithHint("`docker ps -a` on the node lists its containers")
	case strings.Contains(err.Error(), "is not running"):
		return failure.New(failure.Conflict, "not_running", name, "%s: it is not running", text)
	case strings.Contains(strings.ToLower(err.Error()), "invalid signal"):
		return failure.New(failure.Invalid, "bad_signal", name, "%s: %w", text, err)
	case errdefs.IsInvalidArgument(err):
		return failure.New(failure.Invalid, "engine_refused", name, "%s: %w", text, err)
	case errdefs.IsNotFound(err), errdefs.IsConflict(err): // a network or volume that it needs is gone, or it is being removed
		return failure.New(failure.Conflict, "engine_refused", name, "%s: %w", text, err)
	case errdefs.IsPermissionDenied(err):
		return failure.New(failure.Denied, "engine_refused", name, "%s: %w", text, err)
	case errdefs.IsUnavailable(err):
		return failure.New(failure.Unavailable, "engine_unavailable", name, "%s: %w", text, err)
	default:
		return fmt.Errorf("%s: %w", text, err)
	}
}
