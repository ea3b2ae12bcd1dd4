package stack

import (
	"context"
	"strings"
	"sync"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
)

const (
	// maxChanges bounds the writes that a result lists.
	maxChanges = 10_000
	// maxWarnings bounds the warnings that a result lists.
	maxWarnings = 100
)

// recorder is the Docker client of one operation: writes go through, and each that the engine accepted becomes an event. It also collects the result.
type recorder struct {
	client.APIClient
	observe func(Event)

	mu       sync.Mutex
	names    map[string]string // id to name, of what was listed
	changes  []ObjectChange
	warnings []string
	services []ServiceProgress
}

func newRecorder(c client.APIClient, observe func(Event)) *recorder {
	if observe == nil {
		observe = func(Event) {}
	}
	return &recorder{APIClient: c, observe: observe, names: map[string]string{}}
}

// result returns what has been recorded, with that status.
func (r *recorder) result(status Status) Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Result{Status: status, Changes: r.changes, Services: r.services, Warnings: r.warnings}
}

func (r *recorder) changed(kind Kind, action Action, name, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if name == "" {
		if name = r.names[id]; name == "" {
			name = id
		}
	}
	r.names[id] = name
	change := ObjectChange{Kind: kind, Action: action, Name: name, ID: id}
	if len(r.changes) < maxChanges {
		r.changes = append(r.changes, change)
	}
	r.observe(change)
}

// warn tells a warning of docker/cli or the engine.
func (r *recorder) warn(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.warnings) < maxWarnings {
		r.warnings = append(r.warnings, text)
	}
	r.observe(Notice{Warning: true, Text: text})
}

// warnLines tells each line that is not empty.
func (r *recorder) warnLines(text string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			r.warn(line)
		}
	}
}

// progress tells a service's state if it has changed, and keeps the last state of each service, sorted by name.
func (r *recorder) progress(now []ServiceProgress, changed []ServiceProgress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.services = now
	for _, p := range changed {
		r.observe(p)
	}
}

func (r *recorder) listed(id, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[id] = name
}

// ServiceList remembers the names.
func (r *recorder) ServiceList(ctx context.Context, o swarm.ServiceListOptions) ([]swarm.Service, error) {
	services, err := r.APIClient.ServiceList(ctx, o)
	for _, s := range services {
		r.listed(s.ID, s.Spec.Name)
	}
	return services, err
}

// NetworkList remembers the names.
func (r *recorder) NetworkList(ctx context.Context, o network.ListOptions) ([]network.Summary, error) {
	networks, err := r.APIClient.NetworkList(ctx, o)
	for _, n := range networks {
		r.listed(n.ID, n.Name)
	}
	return networks, err
}

// SecretList remembers the names.
func (r *recorder) SecretList(ctx context.Context, o swarm.SecretListOptions) ([]swarm.Secret, error) {
	secrets, err := r.APIClient.SecretList(ctx, o)
	for _, s := range secrets {
		r.listed(s.ID, s.Spec.Name)
	}
	return secrets, err
}

// ConfigList remembers the names.
func (r *recorder) ConfigList(ctx context.Context, o swarm.ConfigListOptions) ([]swarm.Config, error) {
	configs, err := r.APIClient.ConfigList(ctx, o)
	for _, c := range configs {
		r.listed(c.ID, c.Spec.Name)
	}
	return configs, err
}

// ServiceCreate tells of the new service, and of the engine's warnings, which docker/cli drops.
func (r *recorder) ServiceCreate(ctx context.Context, spec swarm.ServiceSpec, o swarm.ServiceCreateOptions) (swarm.ServiceCreateResponse, error) {
	response, err := r.APIClient.ServiceCreate(ctx, spec, o)
	if err == nil {
		r.changed(KindService, Created, spec.Name, response.ID)
		for _, warning := range response.Warnings {
			r.warn(warning)
		}
	}
	return response, err
}

// leaver is a client that may answer an update without sending it, because it would change nothing.
type leaver interface{ LeftAlone(id string) bool }

// leftAlone says whether the update of an object was no change.
func (r *recorder) leftAlone(id string) bool {
	l, may := r.APIClient.(leaver)
	return may && l.LeftAlone(id)
}

// ServiceUpdate tells of the change.
func (r *recorder) ServiceUpdate(ctx context.Context, id string, version swarm.Version, spec swarm.ServiceSpec, o swarm.ServiceUpdateOptions) (swarm.ServiceUpdateResponse, error) {
	response, err := r.APIClient.ServiceUpdate(ctx, id, version, spec, o)
	if err == nil && !r.leftAlone(id) {
		r.changed(KindService, Updated, spec.Name, id)
	}
	return response, err
}

// ServiceRemove tells of the removal.
func (r *recorder) ServiceRemove(ctx context.Context, id string) error {
	err := r.APIClient.ServiceRemove(ctx, id)
	if err == nil {
		r.changed(KindService, Removed, "", id)
	}
	return err
}

// NetworkCreate tells of the new network.
func (r *recorder) NetworkCreate(ctx context.Context, name string, o network.CreateOptions) (network.CreateResponse, error) {
	response, err := r.APIClient.NetworkCreate(ctx, name, o)
	if err == nil {
		r.changed(KindNetwork, Created, name, response.ID)
	}
	return response, err
}

// NetworkRemove tells of the removal.
func (r *recorder) NetworkRemove(ctx context.Context, id string) error {
	err := r.APIClient.NetworkRemove(ctx, id)
	if err == nil {
		r.changed(KindNetwork, Removed, "", id)
	}
	return err
}

// SecretCreate tells of the new secret.
func (r *recorder) SecretCreate(ctx context.Context, spec swarm.SecretSpec) (swarm.SecretCreateResponse, error) {
	response, err := r.APIClient.SecretCreate(ctx, spec)
	if err == nil {
		r.changed(KindSecret, Created, spec.Name, response.ID)
	}
	return response, err
}

// SecretUpdate tells of the change.
func (r *recorder) SecretUpdate(ctx context.Context, id string, version swarm.Version, spec swarm.SecretSpec) error {
	err := r.APIClient.SecretUpdate(ctx, id, version, spec)
	if err == nil {
		r.changed(KindSecret, Updated, spec.Name, id)
	}
	return err
}

// SecretRemove tells of the removal.
func (r *recorder) SecretRemove(ctx context.Context, id string) error {
	err := r.APIClient.SecretRemove(ctx, id)
	if err == nil {
		r.changed(KindSecret, Removed, "", id)
	}
	return err
}

// ConfigCreate tells of the new config.
func (r *recorder) ConfigCreate(ctx context.Context, spec swarm.ConfigSpec) (swarm.ConfigCreateResponse, error) {
	response, err := r.APIClient.ConfigCreate(ctx, spec)
	if err == nil {
		r.changed(KindConfig, Created, spec.Name, response.ID)
	}
	return response, err
}

// ConfigUpdate tells of the change.
func (r *recorder) ConfigUpdate(ctx context.Context, id string, version swarm.Version, spec swarm.ConfigSpec) error {
	err := r.APIClient.ConfigUpdate(ctx, id, version, spec)
	if err == nil && !r.leftAlone(id) {
		r.changed(KindConfig, Updated, spec.Name, id)
	}
	return err
}

// ConfigRemove tells of the removal.
func (r *recorder) ConfigRemove(ctx context.Context, id string) error {
	err := r.APIClient.ConfigRemove(ctx, id)
	if err == nil {
		r.changed(KindConfig, Removed, "", id)
	}
	return err
}
