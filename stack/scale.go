package stack

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli/compose/convert"
	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/proto/failure"
)

func (e *Engine) scale(ctx context.Context, name string, replicas uint64, timeout time.Duration, observe func(Event)) (Result, error) {
	r := newRecorder(e.client, observe)
	if replicas > MaxReplicas {
		return r.result(Failed), failure.New(failure.Invalid, "invalid_replicas", name, "%s: %d replicas are more than %d", name, replicas, MaxReplicas)
	}
	ctx, cancel := within(ctx, timeout)
	defer cancel()
	service, err := e.service(ctx, name)
	if err != nil {
		return r.result(ended(ctx)), err
	}
	// As docker/cli's cli/command/service/scale.go does it.
	switch mode := &service.Spec.Mode; {
	case mode.Replicated != nil:
		mode.Replicated.Replicas = &replicas
	case mode.ReplicatedJob != nil:
		mode.ReplicatedJob.TotalCompletions = &replicas
	default:
		return r.result(Failed), failure.New(failure.Invalid, "not_scalable", name, "%s: scale can only be used with replicated or replicated-job mode", name)
	}
	return e.update(ctx, r, service, swarm.ServiceUpdateOptions{}, timeout)
}

// within bounds ctx by a timeout, unless that is 0.
func within(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, timeout)
}

// update writes a service whose spec was changed since it was read, in the version that was read, and watches it; timeout 0 does not.
func (e *Engine) update(ctx context.Context, r *recorder, service swarm.Service, o swarm.ServiceUpdateOptions, timeout time.Duration) (Result, error) {
	t := serviceTarget(service.ID, service.Spec.Name)
	before, err := e.taskIDs(ctx, t)
	if err != nil {
		return r.result(ended(ctx)), err
	}
	response, err := r.ServiceUpdate(ctx, service.ID, service.Version, service.Spec, o)
	if err != nil {
		f := engineFailure(err)
		f.Message = service.Spec.Name + ": " + f.Message
		return r.result(ended(ctx)), f
	}
	for _, warning := range response.Warnings {
		r.warn(warning)
	}
	if timeout <= 0 {
		return r.result(Accepted), nil
	}
	return e.newWatch(r, t, []string{service.Spec.Name}, before).run(ctx)
}

// service returns the service of that name or id.
func (e *Engine) service(ctx context.Context, name string) (swarm.Service, error) {
	service, _, err := e.client.ServiceInspectWithRaw(ctx, name, swarm.ServiceInspectOptions{})
	switch {
	case errdefs.IsNotFound(err):
		return service, failure.New(failure.Invalid, "no_such_service", name, "%s: %w", name, err)
	case err != nil:
		return service, engineFailure(err)
	}
	return service, nil
}

// StackOf returns the stack that a service belongs to, or "" if it belongs to none.
func (e *Engine) StackOf(ctx context.Context, service string) (string, error) {
	s, err := e.service(ctx, service)
	if err != nil {
		return "", err
	}
	return s.Spec.Labels[convert.LabelNamespace], nil
}
