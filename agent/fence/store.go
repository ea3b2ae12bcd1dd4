package fence

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/proto/failure"
)

// object is a config object of this package as the Swarm holds it: a byte that says nothing, and labels that are changed by compare-and-swap on its version. Each
// change has a nonce of its own.
type object struct {
	id      string
	version swarm.Version
	spec    swarm.ConfigSpec
}

func (o *object) nonce() string { return o.spec.Labels[labelNonce] }

// stored is a head as the Swarm holds it.
type stored struct {
	object
	head Head
}

// errMoved says that somebody else changed the object first.
var errMoved = errors.New("the object has moved")

const (
	// swapAttempts bounds how often one change is sent whose answer leaves open whether it took effect.
	swapAttempts = 5
	// swapPause is between two looks at an object that does not show a change that was accepted.
	swapPause = 100 * time.Millisecond
)

func objectOf(c swarm.Config) *object { return &object{c.ID, c.Version, c.Spec} }

// storedOf reads a head; nil is the head of a stack that has none.
func storedOf(o *object) (*stored, error) {
	if o == nil {
		return nil, nil
	}
	h, err := parseHead(o.spec)
	if err != nil {
		return nil, badObject("bad_head", o.spec.Name, err)
	}
	return &stored{*o, h}, nil
}

func badObject(code, name string, err error) error {
	return failure.New(failure.Internal, code, name, "%w", err).WithHint("somebody changed a config object of the agents by hand; remove it to start anew")
}

// read returns a stack's head, or nil if it has none.
func read(ctx context.Context, api client.APIClient, stack string) (*stored, error) {
	o, err := readObject(ctx, api, headName(stack))
	if err != nil {
		return nil, unavailable(stack, err)
	}
	return storedOf(o)
}

// swap puts next in the place of at, which is nil for a head that does not exist yet. See swapObject.
func swap(ctx context.Context, api client.APIClient, at *stored, next Head) (*stored, error) {
	spec, err := next.spec()
	if err != nil {
		return at, failure.New(failure.Invalid, "head_too_large", next.Stack, "%w", err)
	}
	var was *object
	if at != nil {
		was = &at.object
	}
	o, err := swapObject(ctx, api, was, spec)
	if err != nil && !errors.Is(err, errMoved) {
		return at, unavailable(next.Stack, err)
	}
	now, unreadable := storedOf(o)
	if unreadable != nil {
		return at, unreadable
	}
	return now, err
}

// readObject returns the object of that name, or nil if there is none.
func readObject(ctx context.Context, api client.APIClient, name string) (*object, error) {
	c, _, err := api.ConfigInspectWithRaw(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return objectOf(c), nil
}

// swapObject puts spec, with a nonce of its own, in the place of at, which is nil for an object that does not exist yet, if the Swarm still holds exactly that one.
// It returns the object that the Swarm holds then, with errMoved if it is another's. An answer that leaves open what happened is settled by reading: who finds its
// own nonce has succeeded.
func swapObject(ctx context.Context, api client.APIClient, at *object, spec swarm.ConfigSpec) (*object, error) {
	nonce := newNonce()
	spec.Labels = maps.Clone(spec.Labels)
	spec.Labels[labelNonce] = nonce
	var trouble error
	for attempt := range swapAttempts {
		if attempt > 0 && !pause(ctx, swapPause) {
			break
		}
		trouble = send(ctx, api, at, spec)
		now, err := readAfter(ctx, api, at, spec.Name, nonce, trouble == nil)
		switch {
		case err != nil:
			trouble = errors.Join(trouble, err)
		case now != nil && now.nonce() == nonce:
			return now, nil
		case moved(at, now):
			return now, errMoved
		}
	}
	return at, trouble
}

func send(ctx context.Context, api client.APIClient, at *object, spec swarm.ConfigSpec) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if at == nil {
		_, err := api.ConfigCreate(ctx, spec)
		return err
	}
	return api.ConfigUpdate(ctx, at.id, at.version, spec)
}

// readAfter reads the object that a change has, or may have, taken effect on. Reads may be old: an accepted change is looked for again.
func readAfter(ctx context.Context, api client.APIClient, at *object, name, nonce string, accepted bool) (*object, error) {
	// The reading belongs to the writing: a caller whose time is over must still learn what it did.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	var now *object
	for range swapAttempts {
		var err error
		if now, err = readObject(ctx, api, name); err != nil {
			return nil, err
		}
		switch {
		case at != nil && now != nil && now.version.Index < at.version.Index: // older than what this process has seen
		case now != nil && now.nonce() == nonce, moved(at, now), !accepted:
			return now, nil
		}
		if !pause(ctx, swapPause) {
			break
		}
	}
	if accepted {
		return at, errors.New("the engine accepted a change and does not show it")
	}
	return now, nil
}

// moved says whether the object is another one than it was.
func moved(was, now *object) bool {
	if was == nil || now == nil {
		return was != now
	}
	return was.id != now.id || was.version.Index != now.version.Index
}

func newNonce() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // does not fail
	return hex.EncodeToString(b)
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// list reads all heads. One that cannot be read is told of and left out.
func (f *Fence) list(ctx context.Context) ([]*stored, error) {
	label := labelHead
	if f.only != "" {
		label += "=" + f.only
	}
	configs, err := f.deps.Client().ConfigList(ctx, swarm.ConfigListOptions{Filters: filters.NewArgs(filters.Arg("label", label))})
	if err != nil {
		return nil, unavailable("", err)
	}
	var all []*stored
	var heads []Head
	for _, c := range configs {
		s, err := storedOf(objectOf(c))
		if err != nil {
			f.deps.Log.Warn("a head cannot be read", "error", err)
			continue
		}
		f.stoodStill(s)
		all, heads = append(all, s), append(heads, s.head)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heads = heads
	there := make(map[string]bool, len(heads))
	for _, h := range heads {
		there[h.Stack] = true
	}
	maps.DeleteFunc(f.seen, func(stack string, _ sighting) bool { return !there[stack] && (f.only == "" || stack == f.only) })
	return all, nil
}
