package fence

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
)

// ownLabels are those labels of a service that the agents write and no deployment asks for. The last one is of a restart.
var ownLabels = []string{LabelGeneration, LabelTombstone, LabelRestart}

// unchanged says whether an update would leave a listed service as it is, and may therefore be left out. An untouched service is an unfenced one: a late write of an
// older generation still fits its version. So it must be the generation before that wrote or left it so, and nothing of that may be under way: the head's PrevOK and Base
// say that. Whatever leaves a doubt is written.
func (f *fenced) unchanged(ctx context.Context, s swarm.Service, spec swarm.ServiceSpec, o swarm.ServiceUpdateOptions) bool {
	name, has := s.Spec.Name, s.Spec.Labels[LabelGeneration]
	switch {
	case !f.claim.fence.cfg.SkipUnchanged, f.claim.cmd.Kind != Deploy, s.Spec.Labels[LabelTombstone] != "", has == "", !f.claim.settled(name, has):
		return false
	case o.EncodedRegistryAuth != "": // credentials go along, and nobody can tell whether they are the ones that the Swarm has
		return false
	case spec.Mode.ReplicatedJob != nil || spec.Mode.GlobalJob != nil: // an update runs a job again
		return false
	}
	target, ok := f.asStored(ctx, spec, o.QueryRegistry)
	if !ok {
		return false
	}
	is, ok := copied(s.Spec)
	return ok && bytes.Equal(normal(is), normal(target))
}

// asStored is the spec as the engine would keep it, and whether that is known for sure: with its image by digest if docker/cli would ask for that, with the platforms
// that come along, and with the ids of its networks in the place of their names.
func (f *fenced) asStored(ctx context.Context, spec swarm.ServiceSpec, digest bool) (*swarm.ServiceSpec, bool) {
	target, ok := copied(spec)
	if !ok || target.TaskTemplate.ContainerSpec == nil {
		return nil, false
	}
	task := &target.TaskTemplate
	if named, err := reference.ParseNormalizedNamed(task.ContainerSpec.Image); err == nil {
		task.ContainerSpec.Image = reference.FamiliarString(reference.TagNameOnly(named))
	}
	if digest && !f.resolve(ctx, task) {
		return nil, false
	}
	for i, n := range task.Networks {
		id, ok := f.networkID(ctx, n.Target)
		if !ok {
			return nil, false
		}
		task.Networks[i].Target = id
	}
	return target, true
}

// resolve does what the Docker client does with an image before it sends an update.
func (f *fenced) resolve(ctx context.Context, task *swarm.TaskSpec) bool {
	found, err := f.DistributionInspect(ctx, task.ContainerSpec.Image, "")
	if err != nil {
		return false
	}
	named, err := reference.ParseNormalizedNamed(task.ContainerSpec.Image)
	if err != nil {
		return false
	}
	if _, canonical := named.(reference.Canonical); !canonical {
		pinned, err := reference.WithDigest(named, found.Descriptor.Digest)
		if err != nil {
			return false
		}
		task.ContainerSpec.Image = reference.FamiliarString(pinned)
	}
	if len(found.Platforms) == 0 {
		return true
	}
	if task.Placement == nil {
		task.Placement = &swarm.Placement{}
	}
	task.Placement.Platforms = nil
	for _, p := range found.Platforms {
		if strings.EqualFold(p.Architecture, "arm") { // as the client has it: nodes call theirs otherwise
			p.Architecture = ""
		}
		task.Placement.Platforms = append(task.Placement.Platforms, swarm.Platform{Architecture: p.Architecture, OS: p.OS})
	}
	return true
}

// networkID is the id of a network of the Swarm.
func (f *fenced) networkID(ctx context.Context, name string) (string, bool) {
	f.mu.Lock()
	id, known := f.networks[name]
	f.mu.Unlock()
	if known {
		return id, true
	}
	n, err := f.NetworkInspect(ctx, name, network.InspectOptions{Scope: "swarm"})
	if err != nil {
		return "", false
	}
	f.mu.Lock()
	f.networks[name] = n.ID
	f.mu.Unlock()
	return n.ID, true
}

// copied is a deep copy.
func copied(spec swarm.ServiceSpec) (*swarm.ServiceSpec, bool) {
	text, err := json.Marshal(spec)
	c := new(swarm.ServiceSpec)
	if err == nil {
		err = json.Unmarshal(text, c)
	}
	return c, err == nil
}

// normal writes a spec in a form in which two are the same if the Swarm would do the same with them: with what the engine fills in, without our labels, without
// what is there but empty. It changes the spec.
func normal(spec *swarm.ServiceSpec) []byte {
	maps.DeleteFunc(spec.Labels, func(label, _ string) bool { return slices.Contains(ownLabels, label) })
	task := &spec.TaskTemplate
	task.Runtime = cmp.Or(task.Runtime, swarm.RuntimeContainer)
	if c := task.ContainerSpec; c != nil {
		c.Isolation = cmp.Or(c.Isolation, container.IsolationDefault)
		for i := range c.Mounts {
			c.Mounts[i].Consistency = cmp.Or(c.Mounts[i].Consistency, mount.ConsistencyDefault)
			if b := c.Mounts[i].BindOptions; b != nil {
				b.Propagation = cmp.Or(b.Propagation, mount.PropagationRPrivate)
			}
		}
	}
	if p := task.RestartPolicy; p != nil {
		p.Condition = cmp.Or(p.Condition, swarm.RestartPolicyConditionAny)
		p.MaxAttempts = cmp.Or(p.MaxAttempts, new(uint64))
	}
	if r := spec.Mode.Replicated; r != nil && r.Replicas == nil {
		one := uint64(1)
		r.Replicas = &one
	}
	for _, u := range []*swarm.UpdateConfig{spec.UpdateConfig, spec.RollbackConfig} {
		if u != nil {
			u.FailureAction = cmp.Or(u.FailureAction, swarm.UpdateFailureActionPause)
			u.Order = cmp.Or(u.Order, swarm.UpdateOrderStopFirst)
		}
	}
	if e := spec.EndpointSpec; e != nil {
		e.Mode = cmp.Or(e.Mode, swarm.ResolutionModeVIP)
		for i := range e.Ports {
			e.Ports[i].Protocol = cmp.Or(e.Ports[i].Protocol, swarm.PortConfigProtocolTCP)
			e.Ports[i].PublishMode = cmp.Or(e.Ports[i].PublishMode, swarm.PortConfigPublishModeIngress)
		}
		slices.SortFunc(e.Ports, func(a, b swarm.PortConfig) int { // docker/cli sorts by the published port only
			return cmp.Or(cmp.Compare(a.PublishedPort, b.PublishedPort), cmp.Compare(a.TargetPort, b.TargetPort), cmp.Compare(a.Protocol, b.Protocol))
		})
	}
	text, err := json.Marshal(spec)
	var tree any
	if err == nil {
		err = json.Unmarshal(text, &tree)
	}
	if err == nil {
		text, err = json.Marshal(filled(tree))
	}
	if err != nil { // it was made from JSON: cannot happen
		panic(err)
	}
	return text
}

// filled is the tree without what is null or empty. Zeros stay: a pointer to one says something that its absence does not.
func filled(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if value = filled(value); value == nil {
				delete(v, key)
			} else {
				v[key] = value
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		if len(v) == 0 {
			return nil
		}
		for i := range v {
			v[i] = filled(v[i])
		}
	}
	return v
}

// configUnchanged says whether the update of a config would leave it as it is. Nothing fences a config but its content, which cannot be changed; its labels are
// left alone under the same condition as a service's. A secret cannot be read back, so that only the engine can tell whether it is still the same.
func (f *fenced) configUnchanged(ctx context.Context, id string, version swarm.Version, spec swarm.ConfigSpec) bool {
	if !f.claim.fence.cfg.SkipUnchanged || f.claim.cmd.Kind != Deploy || !f.claim.prevOK() {
		return false
	}
	is, _, err := f.ConfigInspectWithRaw(ctx, id)
	return err == nil && is.Version == version && is.Spec.Name == spec.Name && maps.Equal(is.Spec.Labels, spec.Labels) && bytes.Equal(is.Spec.Data, spec.Data) &&
		reflect.DeepEqual(is.Spec.Templating, spec.Templating)
}

// LeftAlone says whether an update of that service was answered without being sent, because it would have changed nothing.
func (f *fenced) LeftAlone(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.left[id]
}
