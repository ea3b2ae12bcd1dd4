package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/cli/cli/command/stack/options"
	clistack "github.com/docker/cli/cli/command/stack/swarm"
	"github.com/docker/cli/cli/compose/convert"
	"github.com/docker/cli/cli/streams"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/proto/failure"
)

func (e *Engine) remove(ctx context.Context, stack string, timeout time.Duration, observe func(Event)) (Result, error) {
	r := newRecorder(e.client, observe)
	if err := validateName(stack); err != nil {
		return r.result(Failed), err
	}
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := e.checkManager(ctx); err != nil {
		return r.result(ended(ctx)), err
	}
	// docker/cli removes each object once and tells on standard error what it could not remove; what is left is tried again below.
	var stderr bytes.Buffer
	cli := &commandLine{client: r, out: streams.NewOut(io.Discard), err: streams.NewOut(&stderr), config: registryLogins(nil)}
	//lint:ignore SA1019 the module is held at the last version that exports docker stack rm
	err := clistack.RunRemove(ctx, cli, options.Remove{Namespaces: []string{stack}, Detach: true})
	r.warnLines(strings.ReplaceAll(stderr.String(), "Failed to remove", "\nFailed to remove"))
	if err != nil && stderr.Len() == 0 {
		return r.result(ended(ctx)), engineFailure(err)
	}
	return e.waitUntilGone(ctx, r, stack)
}

// waitUntilGone removes what is left of a stack until nothing is: a network is in use until its tasks have ended.
func (e *Engine) waitUntilGone(ctx context.Context, r *recorder, stack string) (Result, error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var left leftovers
	var trouble error
	for {
		select {
		case <-ctx.Done():
			return notGone(ctx, r, stack, left, trouble)
		case <-timer.C:
		}
		now, err := r.leftovers(ctx, stack)
		switch {
		case err != nil:
			trouble = err
		case now.none():
			return r.result(Gone), nil
		default:
			left, trouble = now, r.removeLeftovers(ctx, now)
		}
		timer.Reset(e.poll)
	}
}

func notGone(ctx context.Context, r *recorder, stack string, left leftovers, trouble error) (Result, error) {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return r.result(Cancelled), failure.New(failure.Unavailable, "cancelled", stack, "the removal of stack %s is no longer watched: %w", stack, ctx.Err())
	}
	text := fmt.Sprintf("stack %s is not gone in time: %s left", stack, left)
	if trouble != nil && ctx.Err() == nil || trouble != nil && !errors.Is(trouble, context.DeadlineExceeded) {
		text += ": " + trouble.Error()
	}
	return r.result(TimedOut), failure.New(failure.Deadline, "not_gone", stack, "%s", text)
}

// leftovers are the objects of a stack that are still there.
type leftovers struct {
	services []swarm.Service
	tasks    []swarm.Task
	networks []network.Summary
	configs  []swarm.Config
	secrets  []swarm.Secret
}

func (l leftovers) none() bool {
	return len(l.services)+len(l.tasks)+len(l.networks)+len(l.configs)+len(l.secrets) == 0
}

// String counts them, for example "2 tasks, 1 networks".
func (l leftovers) String() string {
	var parts []string
	for _, part := range []struct {
		n    int
		kind string
	}{{len(l.services), "services"}, {len(l.tasks), "tasks"}, {len(l.networks), "networks"}, {len(l.configs), "configs"}, {len(l.secrets), "secrets"}} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.n, part.kind))
		}
	}
	if len(parts) == 0 {
		return "nothing known to be"
	}
	return strings.Join(parts, ", ")
}

func (r *recorder) leftovers(ctx context.Context, stack string) (leftovers, error) {
	var l leftovers
	label := filters.NewArgs(filters.Arg("label", convert.LabelNamespace+"="+stack))
	var errs [5]error
	l.services, errs[0] = r.ServiceList(ctx, swarm.ServiceListOptions{Filters: label})
	l.networks, errs[1] = r.NetworkList(ctx, network.ListOptions{Filters: label})
	l.configs, errs[2] = r.ConfigList(ctx, swarm.ConfigListOptions{Filters: label})
	l.secrets, errs[3] = r.SecretList(ctx, swarm.SecretListOptions{Filters: label})
	l.tasks, errs[4] = r.tasksLeft(ctx, label)
	return l, errors.Join(errs[:]...)
}

// tasksLeft returns the tasks that may still run on a node. The Swarm keeps tasks of jobs that have ended, or never found a node, for ever, and learns of
// those on a node that is down only when it comes back.
func (r *recorder) tasksLeft(ctx context.Context, label filters.Args) ([]swarm.Task, error) {
	tasks, err := r.TaskList(ctx, swarm.TaskListOptions{Filters: label})
	if err != nil || len(tasks) == 0 {
		return nil, err
	}
	nodes, err := r.NodeList(ctx, swarm.NodeListOptions{})
	if err != nil {
		return nil, err
	}
	down := map[string]bool{}
	for _, node := range nodes {
		down[node.ID] = !alive(node)
	}
	var left []swarm.Task
	for _, task := range tasks {
		if task.NodeID != "" && !terminal(task.Status.State) && !down[task.NodeID] {
			left = append(left, task)
		}
	}
	return left, nil
}

// removeLeftovers tries to remove what is left. What refuses because it is in use is tried again at the next look.
func (r *recorder) removeLeftovers(ctx context.Context, l leftovers) error {
	var errs []error
	for _, s := range l.services {
		errs = append(errs, r.ServiceRemove(ctx, s.ID))
	}
	for _, s := range l.secrets {
		errs = append(errs, r.SecretRemove(ctx, s.ID))
	}
	for _, c := range l.configs {
		errs = append(errs, r.ConfigRemove(ctx, c.ID))
	}
	for _, n := range l.networks {
		errs = append(errs, r.NetworkRemove(ctx, n.ID))
	}
	return errors.Join(errs...)
}
