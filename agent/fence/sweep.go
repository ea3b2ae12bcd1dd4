package fence

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/internal/crashpoint"
)

// stale says whether a service is what an older generation created too late, or was about to remove: it has no place in the stack as the head's decided
// generation left it. A service without a label was made by hand; that is for a person to judge.
func (h Head) stale(s swarm.Service) bool {
	generation, _ := parseLabel(s.Spec.Labels[LabelGeneration])
	if s.Spec.Labels[LabelTombstone] != "" {
		return true
	}
	_, named := h.Base[s.Spec.Name]
	return generation != 0 && generation < h.Generation && !named
}

// sweepable says whether the head's generation has an outcome, which includes a sweep that was begun and not ended. A head without a generation says nothing of
// the services.
func (h Head) sweepable() bool {
	_, decided := h.outcome(h.Command)
	return decided && !h.Dead
}

// sweepAll removes what is stale, stack by stack, and the heads of stacks that were removed long ago.
func (f *Fence) sweepAll(ctx context.Context, all []*stored, generation int32) error {
	services, err := f.deps.Client().ServiceList(ctx, swarm.ServiceListOptions{Filters: filters.NewArgs(filters.Arg("label", LabelGeneration))})
	if err != nil {
		return unavailable("", err)
	}
	byStack := map[string][]swarm.Service{}
	for _, s := range services {
		stack := s.Spec.Labels[labelNamespace]
		byStack[stack] = append(byStack[stack], s)
	}
	var errs []error
	for _, at := range all {
		if !at.head.sweepable() && !at.head.Dead && at.head.Generation != 0 {
			continue
		}
		if generation < at.head.GroupGeneration && f.stoodStill(at) < f.cfg.Standstill {
			continue // a newer member looks after it
		}
		dirty := at.head.Phase == Applying
		for _, s := range byStack[at.head.Stack] {
			dirty = dirty || at.head.stale(s)
		}
		switch {
		case dirty && at.head.sweepable():
			errs = append(errs, f.sweep(ctx, at.head.Stack, generation))
		case at.head.Dead || !at.head.Removed.IsZero() && f.deps.Now().Sub(at.head.Removed) > keepRemoved:
			errs = append(errs, f.forget(ctx, at))
		}
	}
	return errors.Join(errs...)
}

// sweep takes the claim on a stack whose generation is decided, and removes what is stale. A newer command takes the claim away from it at any point.
func (f *Fence) sweep(ctx context.Context, stack string, generation int32) error {
	if !f.tryLock(stack) {
		return nil // a command of this process works on it
	}
	defer f.unlock(stack)
	api := f.deps.Client()
	at, err := read(ctx, api, stack)
	if err != nil || at == nil || !at.head.sweepable() || generation < at.head.GroupGeneration && f.stoodStill(at) < f.cfg.Standstill {
		return err
	}
	next := at.head.clone()
	next.Epoch++
	next.Owner, next.GroupGeneration, next.Phase = f.cfg.Owner, generation, Applying
	if at, err = swap(ctx, api, at, next); err != nil {
		return ignoreMoved(err)
	}
	c := f.newClaim(Command{ID: at.head.Command, Stack: stack}, at)
	defer c.end(nil)
	crashpoint.At(crashpoint.Sweeping)
	if err := c.clean(ctx, api); err != nil {
		return ignoreMoved(err)
	}
	crashpoint.At(crashpoint.Swept)
	return ignoreMoved(c.change(ctx, func(h *Head) { h.Phase, h.Before = Decided, nil }))
}

// clean is the sweep's pass.
func (c *Claim) clean(ctx context.Context, api client.APIClient) error {
	services, err := listServices(ctx, api, c.cmd.Stack)
	if err != nil {
		return err
	}
	if err := c.saw(ctx, services); err != nil {
		return err
	}
	w := newFenced(c, api)
	for _, s := range services {
		w.passed[s.ID] = s
	}
	var errs []error
	for _, s := range services {
		if !c.at.head.stale(s) {
			continue
		}
		err := w.ServiceRemove(ctx, s.ID)
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
			continue
		}
		c.fence.deps.Log.Info("a stale service was removed", "stack", c.cmd.Stack, "service", s.Spec.Name,
			"label", s.Spec.Labels[LabelGeneration], "generation", c.at.head.Generation)
	}
	return errors.Join(errs...)
}

// ignoreMoved: who has taken the head meanwhile looks after the stack.
func ignoreMoved(err error) error {
	if errors.Is(err, errMoved) || isLost(err) {
		return nil
	}
	return err
}

// forget removes the head of a stack that was removed long ago: first a mark, by compare-and-swap, then the object, which is never used again.
func (f *Fence) forget(ctx context.Context, at *stored) error {
	if !f.tryLock(at.head.Stack) {
		return nil
	}
	defer f.unlock(at.head.Stack)
	api := f.deps.Client()
	old, err := manifests(ctx, api, at.head.Stack)
	if err != nil {
		return unavailable(at.head.Stack, err)
	}
	if !at.head.Dead {
		next := at.head.clone()
		next.Epoch++
		next.Dead = true
		if at, err = swap(ctx, api, at, next); err != nil {
			return ignoreMoved(err)
		}
	}
	if err := prune(ctx, api, old, nil); err != nil {
		return err
	}
	if err := api.ConfigRemove(ctx, at.id); err != nil && !errdefs.IsNotFound(err) {
		return unavailable(at.head.Stack, err)
	}
	return nil
}
