package stack

import (
	"context"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

func (e *Engine) restart(ctx context.Context, name string, timeout time.Duration, observe func(Event)) (Result, error) {
	r := newRecorder(e.client, observe)
	ctx, cancel := within(ctx, timeout)
	defer cancel()
	service, err := e.service(ctx, name)
	if err != nil {
		return r.result(ended(ctx)), err
	}
	// As docker/cli's cli/command/service/update.go does it.
	service.Spec.TaskTemplate.ForceUpdate++
	return e.update(ctx, r, service, swarm.ServiceUpdateOptions{RegistryAuthFrom: swarm.RegistryAuthFromSpec}, timeout)
}
