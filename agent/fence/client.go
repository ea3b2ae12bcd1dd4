package fence

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/internal/crashpoint"
	"github.com/axion/runner-agent/proto/failure"
)

// removeAttempts bounds how often the tombstone of one service is written anew because the service changed meanwhile.
const removeAttempts = 5

// fenced is the Docker client of a claim's holder. Reads go through. A pass begins where the stack's services are listed: there the claim is renewed, after the
// list, and from then on a service is written with exactly the version that was listed. While only the end is waited for, writes are not sent.
type fenced struct {
	client.APIClient
	claim *Claim

	mu     sync.Mutex
	passed map[string]swarm.Service // by id: what the last list said, and no write has used up
	// left are the ids of objects that an update was not sent for, because it would have changed nothing.
	left     map[string]bool
	networks map[string]string // ids by name
}

// Client wraps a client for one attempt at the claim's command.
func (c *Claim) Client(api client.APIClient) client.APIClient {
	c.repeat.Store(false)
	return newFenced(c, api)
}

func newFenced(c *Claim, api client.APIClient) *fenced {
	return &fenced{APIClient: api, claim: c, passed: map[string]swarm.Service{}, left: map[string]bool{}, networks: map[string]string{}}
}

// allowed is asked before each write. It reports whether the write is to be sent.
func (f *fenced) allowed() (send bool, err error) {
	if err := f.claim.Stopped(); err != nil {
		return false, err
	}
	return !f.claim.Watching(), nil
}

// mayWrite is allowed, for a write that is about to be sent.
func (f *fenced) mayWrite() (send bool, err error) {
	if send, err = f.allowed(); send {
		crashpoint.At(crashpoint.Writing)
	}
	return send, err
}

// again refuses a write whose base has changed, so that the pass is repeated.
func (f *fenced) again(name string) error {
	f.claim.repeat.Store(true)
	return failure.New(failure.Conflict, CodeRepeat, name, "service %s changed between its list and its write: update out of sequence", name)
}

// ServiceList lists; where the stack's services are listed to be written, it renews the claim after that, takes away those with a tombstone, and makes sure that
// the services which this command leaves alone cannot be hit by an older write either.
func (f *fenced) ServiceList(ctx context.Context, o swarm.ServiceListOptions) ([]swarm.Service, error) {
	services, err := f.APIClient.ServiceList(ctx, o)
	if err != nil || !slices.Contains(o.Filters.Get("label"), labelNamespace+"="+f.claim.cmd.Stack) {
		return services, err
	}
	send, err := f.allowed()
	if err != nil || !send {
		return services, err
	}
	if f.claim.cmd.Kind == Remove && len(services) == 0 {
		f.claim.sawNone()
		return services, nil
	}
	return f.pass(ctx, services)
}

// ServiceInspectWithRaw is where a pass begins that scales one service: it lists the others along with it.
func (f *fenced) ServiceInspectWithRaw(ctx context.Context, id string, o swarm.ServiceInspectOptions) (swarm.Service, []byte, error) {
	service, raw, err := f.APIClient.ServiceInspectWithRaw(ctx, id, o)
	if err != nil || f.claim.cmd.Kind != Scale {
		return service, raw, err
	}
	send, err := f.allowed()
	if err != nil || !send {
		return service, raw, err
	}
	all := []swarm.Service{service}
	if stack := service.Spec.Labels[labelNamespace]; stack != "" {
		others, err := listServices(ctx, f.APIClient, stack)
		if err != nil {
			return service, raw, err
		}
		all = append(all, slices.DeleteFunc(others, func(s swarm.Service) bool { return s.ID == service.ID })...)
	}
	left, err := f.pass(ctx, all)
	if err == nil && (len(left) == 0 || left[0].ID != service.ID) {
		err = failure.New(failure.Invalid, "no_such_service", id, "service %s is being removed", service.Spec.Name)
	}
	return service, raw, err
}

// pass renews the claim and only then lets the listed services be written. It returns those that live.
func (f *fenced) pass(ctx context.Context, services []swarm.Service) ([]swarm.Service, error) {
	crashpoint.At(crashpoint.Listed)
	if err := f.claim.saw(ctx, services); err != nil {
		return nil, err
	}
	crashpoint.At(crashpoint.Renewed)
	f.mu.Lock()
	clear(f.passed)
	for _, s := range services {
		f.passed[s.ID] = s
	}
	f.mu.Unlock()
	var living []swarm.Service
	for _, s := range services {
		switch {
		case s.Spec.Labels[LabelTombstone] != "":
			if err := f.removeMarked(ctx, s.ID); err != nil {
				return nil, err
			}
		default:
			if err := f.touch(ctx, s); err != nil {
				return nil, err
			}
			living = append(living, s)
		}
	}
	return living, nil
}

// touch writes this generation's label on a service that the command does not name and that stays, so that no older write can reach it any more. It is not
// needed where the generation before succeeded and left the service in that very version of its spec.
func (f *fenced) touch(ctx context.Context, s swarm.Service) error {
	name, has := s.Spec.Name, s.Spec.Labels[LabelGeneration]
	cmd := f.claim.cmd
	if has == "" || cmd.Kind == Remove || cmd.Prune || slices.Contains(cmd.Services, name) || slices.Contains(cmd.Services, s.ID) {
		return nil
	}
	if has == f.claim.label || f.claim.settled(name, has) {
		return nil
	}
	spec := s.Spec
	spec.Labels = labelled(s.Spec.Labels, LabelGeneration, f.claim.label)
	_, err := f.APIClient.ServiceUpdate(ctx, s.ID, s.Version, spec, swarm.ServiceUpdateOptions{})
	switch {
	case outOfSequence(err), errdefs.IsNotFound(err):
		return f.again(name)
	case err == nil:
		f.used(s.ID)
		f.claim.wrote(name, f.claim.label)
	}
	return err
}

func labelled(labels map[string]string, name, value string) map[string]string {
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[name] = value
	return labels
}

// ours gives a spec this generation's label.
func (f *fenced) ours(spec swarm.ServiceSpec) swarm.ServiceSpec {
	spec.Labels = labelled(spec.Labels, LabelGeneration, f.claim.label)
	delete(spec.Labels, LabelTombstone)
	return spec
}

func (f *fenced) listed(id string) (swarm.Service, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.passed[id]
	return s, ok
}

// leave notes that an object needs no update.
func (f *fenced) leave(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left[id] = true
}

// used forgets a version: it is good for one write.
func (f *fenced) used(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.passed, id)
}

// ServiceCreate creates a service of this generation. A name that is taken means that the list is old.
func (f *fenced) ServiceCreate(ctx context.Context, spec swarm.ServiceSpec, o swarm.ServiceCreateOptions) (swarm.ServiceCreateResponse, error) {
	if send, err := f.mayWrite(); err != nil || !send {
		return swarm.ServiceCreateResponse{}, err
	}
	response, err := f.APIClient.ServiceCreate(ctx, f.ours(spec), o)
	switch {
	case err == nil:
		f.claim.wrote(spec.Name, f.claim.label)
	case f.appeared(ctx, spec.Name):
		err = f.again(spec.Name)
	}
	return response, err
}

// appeared says whether the stack has a service of that name after all. A name that is another's stays the engine's to refuse.
func (f *fenced) appeared(ctx context.Context, name string) bool {
	s, _, err := f.APIClient.ServiceInspectWithRaw(ctx, name, swarm.ServiceInspectOptions{})
	return err == nil && s.Spec.Name == name && s.Spec.Labels[labelNamespace] == f.claim.cmd.Stack
}

// ServiceUpdate writes a listed service with its listed version. One that this generation has written already stays as it is: to write it again would make
// Swarm's own rollback lead to nowhere. So does one that Swarm has rolled back since: that is how the generation ended, and not to be repaired. So, too, may one
// that is as it should be.
func (f *fenced) ServiceUpdate(ctx context.Context, id string, version swarm.Version, spec swarm.ServiceSpec, o swarm.ServiceUpdateOptions) (swarm.ServiceUpdateResponse, error) {
	if send, err := f.allowed(); err != nil || !send {
		return swarm.ServiceUpdateResponse{}, err
	}
	s, ok := f.listed(id)
	if !ok || s.Version.Index != version.Index {
		return swarm.ServiceUpdateResponse{}, f.again(spec.Name)
	}
	if has := s.Spec.Labels[LabelGeneration]; has == f.claim.label || f.claim.rolledBack(s) {
		f.claim.wrote(s.Spec.Name, has)
		return swarm.ServiceUpdateResponse{}, nil
	}
	if f.unchanged(ctx, s, spec, o) { // it keeps the label that the head's base has
		f.leave(id)
		return swarm.ServiceUpdateResponse{}, nil
	}
	if send, err := f.mayWrite(); err != nil || !send {
		return swarm.ServiceUpdateResponse{}, err
	}
	response, err := f.APIClient.ServiceUpdate(ctx, id, version, f.ours(spec), o)
	f.used(id)
	switch {
	case err == nil:
		f.claim.wrote(spec.Name, f.claim.label)
	case outOfSequence(err), errdefs.IsNotFound(err):
		err = f.again(spec.Name)
	}
	return response, err
}

// ServiceRemove puts a tombstone on a service, checked by its version, and then removes it by its id: an id that has a tombstone never lives again, so that a
// removal that comes late does no harm. If the service changed meanwhile, it is looked at, the claim is renewed, and so on, a few times. docker/cli does not
// always listen to the error, so it is also remembered.
func (f *fenced) ServiceRemove(ctx context.Context, id string) error {
	if send, err := f.mayWrite(); err != nil || !send {
		return err
	}
	var name string
	for attempt := range removeAttempts {
		s, ok := f.listed(id)
		if attempt > 0 || !ok {
			var err error
			if s, _, err = f.APIClient.ServiceInspectWithRaw(ctx, id, swarm.ServiceInspectOptions{}); err != nil {
				return f.unremoved(err)
			}
			if err := f.claim.change(ctx, func(*Head) {}); err != nil {
				return err
			}
		}
		name = s.Spec.Name
		if s.Spec.Labels[LabelTombstone] == "" {
			_, err := f.APIClient.ServiceUpdate(ctx, id, s.Version, f.tombstone(s.Spec), swarm.ServiceUpdateOptions{})
			f.used(id)
			if outOfSequence(err) {
				continue
			}
			if err != nil {
				return f.unremoved(err)
			}
		}
		crashpoint.At(crashpoint.Tombstoned)
		if err := f.removeMarked(ctx, id); err != nil {
			return err
		}
		f.claim.wroteNone(name)
		return nil
	}
	return f.again(name)
}

// tombstone marks a spec. A roll-out of the service that is still under way must not be rolled back any more: that would take the mark off again, a newer
// generation might then revive the service, and the removal that is on its way would take that one's.
func (f *fenced) tombstone(spec swarm.ServiceSpec) swarm.ServiceSpec {
	spec.Labels = labelled(spec.Labels, LabelTombstone, f.claim.label)
	if u := spec.UpdateConfig; u != nil && u.FailureAction == swarm.UpdateFailureActionRollback {
		paused := *u
		paused.FailureAction = swarm.UpdateFailureActionPause
		spec.UpdateConfig = &paused
	}
	return spec
}

// unremoved keeps in mind that a removal failed; a service that is gone already was removed.
func (f *fenced) unremoved(err error) error {
	if !errdefs.IsNotFound(err) {
		f.claim.repeat.Store(true)
	}
	return err
}

// removeMarked removes a service that has a tombstone.
func (f *fenced) removeMarked(ctx context.Context, id string) error {
	if err := f.claim.Stopped(); err != nil {
		return err
	}
	if err := f.APIClient.ServiceRemove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return f.unremoved(err)
	}
	f.used(id)
	return nil
}

// NetworkCreate is refused once the claim is lost, as are the other writes below.
func (f *fenced) NetworkCreate(ctx context.Context, name string, o network.CreateOptions) (network.CreateResponse, error) {
	if send, err := f.mayWrite(); err != nil || !send {
		return network.CreateResponse{}, err
	}
	return f.APIClient.NetworkCreate(ctx, name, o)
}

// NetworkRemove removes a network.
func (f *fenced) NetworkRemove(ctx context.Context, id string) error {
	if send, err := f.mayWrite(); err != nil || !send {
		return err
	}
	return f.APIClient.NetworkRemove(ctx, id)
}

// SecretCreate creates a secret.
func (f *fenced) SecretCreate(ctx context.Context, spec swarm.SecretSpec) (swarm.SecretCreateResponse, error) {
	if send, err := f.mayWrite(); err != nil || !send {
		return swarm.SecretCreateResponse{}, err
	}
	return f.APIClient.SecretCreate(ctx, spec)
}

// SecretUpdate changes a secret's labels.
func (f *fenced) SecretUpdate(ctx context.Context, id string, version swarm.Version, spec swarm.SecretSpec) error {
	if send, err := f.mayWrite(); err != nil || !send {
		return err
	}
	return f.APIClient.SecretUpdate(ctx, id, version, spec)
}

// SecretRemove removes a secret.
func (f *fenced) SecretRemove(ctx context.Context, id string) error {
	if send, err := f.mayWrite(); err != nil || !send {
		return err
	}
	return f.APIClient.SecretRemove(ctx, id)
}

// ConfigCreate creates a config, but none that looks like this package's own.
func (f *fenced) ConfigCreate(ctx context.Context, spec swarm.ConfigSpec) (swarm.ConfigCreateResponse, error) {
	if err := reserved(spec.Name); err != nil {
		return swarm.ConfigCreateResponse{}, err
	}
	if send, err := f.mayWrite(); err != nil || !send {
		return swarm.ConfigCreateResponse{}, err
	}
	return f.APIClient.ConfigCreate(ctx, spec)
}

// ConfigUpdate changes a config's labels, but of none that is this package's own.
func (f *fenced) ConfigUpdate(ctx context.Context, id string, version swarm.Version, spec swarm.ConfigSpec) error {
	if err := reserved(spec.Name); err != nil {
		return err
	}
	if send, err := f.allowed(); err != nil || !send {
		return err
	}
	if f.configUnchanged(ctx, id, version, spec) {
		f.leave(id)
		return nil
	}
	if send, err := f.mayWrite(); err != nil || !send {
		return err
	}
	return f.APIClient.ConfigUpdate(ctx, id, version, spec)
}

// ConfigRemove removes a config.
func (f *fenced) ConfigRemove(ctx context.Context, id string) error {
	if send, err := f.mayWrite(); err != nil || !send {
		return err
	}
	return f.APIClient.ConfigRemove(ctx, id)
}

// reserved refuses the names of this package's own configs.
func reserved(name string) error {
	if strings.HasPrefix(name, headPrefix) || strings.HasPrefix(name, manifestPrefix) || name == recentName {
		return failure.New(failure.Denied, "reserved_name", name, "config %s: the name %s and names that begin with %s or %s are the agents' own",
			name, recentName, headPrefix, manifestPrefix)
	}
	return nil
}

// saw renews the claim after a list. The generation's first list also leaves in the head how it found the services.
func (c *Claim) saw(ctx context.Context, services []swarm.Service) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.at.head.Before
	if before == nil {
		before = map[string]string{}
		for _, s := range services {
			before[s.Spec.Name] = sightOf(s)
		}
	}
	if err := c.changeLocked(ctx, func(h *Head) { h.Before = before }); err != nil {
		return err
	}
	c.listed = map[string]bool{}
	for _, s := range services {
		c.listed[s.Spec.Name] = s.Spec.Labels[LabelTombstone] == ""
	}
	return nil
}

// sawNone notes that nothing of the stack is there.
func (c *Claim) sawNone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listed = map[string]bool{}
}

// sightOf is a service's label and, if Swarm has rolled it back, since when.
func sightOf(s swarm.Service) string { return s.Spec.Labels[LabelGeneration] + "@" + rolledBackAt(s) }

// rolledBackAt is since when Swarm has put a service back to what it was, "" if it has not.
func rolledBackAt(s swarm.Service) string {
	if u := s.UpdateStatus; u != nil && u.StartedAt != nil && strings.HasPrefix(string(u.State), "rollback_") {
		return strconv.FormatInt(u.StartedAt.UnixNano(), 10)
	}
	return ""
}

// rolledBack says whether Swarm itself has put the service back to what the generation found, after the generation wrote it.
func (c *Claim) rolledBack(s swarm.Service) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, known := c.at.head.Before[s.Spec.Name]
	has, since, _ := strings.Cut(sightOf(s), "@")
	had, _, _ := strings.Cut(before, "@")
	return known && since != "" && has == had && before != sightOf(s)
}

// settled says whether the generation before has left the service for good, with that label.
func (c *Claim) settled(name, has string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at.head.PrevOK && c.at.head.Base[name] == has
}

// prevOK says whether the generation before had succeeded and was at rest when this one was first claimed.
func (c *Claim) prevOK() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at.head.PrevOK
}

func (c *Claim) wrote(name, label string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written[name] = label
	delete(c.removed, name)
	crashpoint.At(crashpoint.Written)
}

func (c *Claim) wroteNone(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.written, name)
	c.removed[name] = true
}
