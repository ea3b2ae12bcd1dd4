package command

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
)

// configs is as much of a Swarm as heads need. It keeps versions as the real one does.
type configs struct {
	client.APIClient
	mu    sync.Mutex
	index uint64
	byID  map[string]swarm.Config
}

func newConfigs() *configs { return &configs{byID: map[string]swarm.Config{}} }

func (s *configs) find(name string) (swarm.Config, bool) {
	for id, c := range s.byID {
		if id == name || c.Spec.Name == name {
			return c, true
		}
	}
	return swarm.Config{}, false
}

// labelled says whether a config has that label.
func (s *configs) labelled(name, value string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.byID {
		if c.Spec.Labels[name] == value {
			return true
		}
	}
	return false
}

func (s *configs) put(id string, spec swarm.ConfigSpec) {
	s.index++
	spec.Labels = maps.Clone(spec.Labels)
	s.byID[id] = swarm.Config{ID: id, Meta: swarm.Meta{Version: swarm.Version{Index: s.index}}, Spec: spec}
}

func (s *configs) ConfigCreate(_ context.Context, spec swarm.ConfigSpec) (swarm.ConfigCreateResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.find(spec.Name); taken {
		return swarm.ConfigCreateResponse{}, errdefs.ErrAlreadyExists
	}
	id := fmt.Sprintf("c%d", s.index)
	s.put(id, spec)
	return swarm.ConfigCreateResponse{ID: id}, nil
}

func (s *configs) ConfigUpdate(_ context.Context, id string, version swarm.Version, spec swarm.ConfigSpec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch c, ok := s.byID[id]; {
	case !ok:
		return errdefs.ErrNotFound
	case c.Version != version:
		return fmt.Errorf("rpc error: code = Unknown desc = update out of sequence: %w", errdefs.ErrUnknown)
	}
	s.put(id, spec)
	return nil
}

func (s *configs) ConfigInspectWithRaw(_ context.Context, name string) (swarm.Config, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.find(name)
	if !ok {
		return c, nil, errdefs.ErrNotFound
	}
	return c, nil, nil
}

func (s *configs) ConfigList(_ context.Context, o swarm.ConfigListOptions) ([]swarm.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []swarm.Config
	for _, c := range s.byID {
		for _, label := range o.Filters.Get("label") {
			name, value, exact := strings.Cut(label, "=")
			if has, ok := c.Spec.Labels[name]; ok && (!exact || has == value) {
				found = append(found, c)
			}
		}
	}
	return found, nil
}

func (s *configs) ConfigRemove(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, id)
	return nil
}

func (s *configs) ServiceList(context.Context, swarm.ServiceListOptions) ([]swarm.Service, error) {
	return nil, nil
}

func (s *configs) ServiceInspectWithRaw(context.Context, string, swarm.ServiceInspectOptions) (swarm.Service, []byte, error) {
	return swarm.Service{}, nil, errdefs.ErrNotFound
}
