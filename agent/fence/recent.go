package fence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/proto/failure"
)

// Bounds of commands without a generation, and of the ring that they are kept in.
const (
	recentName  = "axion-recent"
	labelRecent = "axion.recent" // the commands, in the order in which they came
	// MaxDeadline is how far ahead a deadline may be: no topic holds a command for longer.
	MaxDeadline = 7 * 24 * time.Hour
	// KeepRecent is how many commands the ring holds.
	KeepRecent = 256
	// maxRecentBytes bounds the ring: each change of it is a raft message of its size.
	maxRecentBytes = 512 << 10
	// ringAttempts bounds how often one change of the ring is tried again because others change it at the same time.
	ringAttempts = 20
	// ringPause is the longest wait before that.
	ringPause = 200 * time.Millisecond
)

// Codes of failures of commands without a generation.
const (
	// CodeRecentFull: the ring holds as many commands as it may, none of whose deadlines is over; ask again.
	CodeRecentFull = "recent_full"
	// CodeServiceGone: the service that the command was begun on does not exist any more.
	CodeServiceGone = "service_gone"
)

// Recent is the ring of the commands without a generation that were begun, or refused for being late, and whose deadline is not over for every clock. It is one
// config object for the whole Swarm, changed as heads are.
//
// What it holds of a command is enough to tell, whoever asks and however much has happened since, whether its write took effect. Before the write is sent the
// ring says which service (by id) and version it is for and which ForceUpdate it makes, and the write is sent with exactly that version. So at most one of all
// that are ever sent for a version takes effect, and:
//
//   - the service still has that version: the write has not landed. It may be on its way, so the very same is sent again, and one of the two is refused;
//   - the service, or the spec before its last update, has the command's label: it landed;
//   - it has another version and no such label: somebody else has written since. A deployment drops the label and keeps ForceUpdate, so the write landed if
//     ForceUpdate has reached the number that it makes - unless that number is another restart's, which the ring knows;
//   - Swarm has rolled the service back since, to the spec that was listed: the write landed and was undone. That is how the command ended, and not repaired;
//   - else the version was used up by another's write, and the command's own is refused whenever it comes: it is planned anew with the service as it is now.
//
// Where it cannot be told - somebody restarted the service by hand between the plan and the write - it counts as landed. A command that was begun on a service
// never goes over to another of that name.
type Recent struct {
	fence *Fence

	mu   sync.Mutex
	seen sightings // by command
}

func newRecent(f *Fence) *Recent { return &Recent{fence: f, seen: sightings{}} }

// Recent returns the ring of commands without a generation.
func (f *Fence) Recent() *Recent { return f.recent }

// ring is what the object says.
type ring struct {
	entries   []*entry
	cancelled []string // ids, the newest last
}

// entry is one command. It has been begun, or decided without.
type entry struct {
	Command  string    `json:"command"`
	Deadline time.Time `json:"deadline"`
	// Begun is when it was claimed first, Spent how long its owners have worked on it: see used.
	Begun time.Time     `json:"begun,omitzero"`
	Spent time.Duration `json:"spent,omitempty"`
	// Owner is the agent that has the command, Group the consumer group generation in which it came, Claim the claim's own word, and Beat grows with each change.
	Owner string `json:"owner,omitempty"`
	Group int32  `json:"group,omitempty"`
	Claim string `json:"claim,omitempty"`
	Beat  uint64 `json:"beat,omitempty"`
	// Service is the id of the service that the write is for, "" until it is planned, Version the one that it is sent with, and Target the ForceUpdate that it makes.
	Service string `json:"service,omitempty"`
	Version uint64 `json:"version,omitempty"`
	Target  uint64 `json:"target,omitempty"`
	// Listed is a digest of the spec that was found, Rollback when Swarm had rolled the service back, if it had.
	Listed   string `json:"listed,omitempty"`
	Rollback string `json:"rollback,omitempty"`
	// Written says that the write took effect.
	Written bool `json:"written,omitempty"`
	// Status is the outcome's, "" until it is decided, at Ended.
	Status string    `json:"status,omitempty"`
	Detail []byte    `json:"detail,omitempty"`
	Ended  time.Time `json:"ended,omitzero"`
}

func (e *entry) outcome() *Outcome {
	if e.Status == "" {
		return nil
	}
	return &Outcome{Command: e.Command, Status: e.Status, Detail: e.Detail}
}

// plan is the write that comes next, for the service as it is now.
func (e *entry) plan(s swarm.Service) {
	e.Service, e.Version, e.Target = s.ID, s.Version.Index, s.Spec.TaskTemplate.ForceUpdate+1
	e.Listed, e.Rollback = digestOf(s.Spec), rolledBackAt(s)
}

func digestOf(spec swarm.ServiceSpec) string { return hashOf(mustJSON(spec))[:16] }

// marked says whether the service bears the command's label, or did before its last update.
func marked(s swarm.Service, command string) bool {
	return s.Spec.Labels[LabelRestart] == command || s.PreviousSpec != nil && s.PreviousSpec.Labels[LabelRestart] == command
}

// landed says whether the planned write has taken effect; see Recent.
func (g *ring) landed(e *entry, s swarm.Service) bool {
	if marked(s, e.Command) {
		return true
	}
	if s.Version.Index <= e.Version {
		return false
	}
	since := rolledBackAt(s)
	undone := since != "" && since != e.Rollback && digestOf(s.Spec) == e.Listed
	return undone || s.Spec.TaskTemplate.ForceUpdate >= e.Target && !g.taken(e, s)
}

// taken says whether another command made the number that e was to make.
func (g *ring) taken(e *entry, s swarm.Service) bool {
	return slices.ContainsFunc(g.entries, func(o *entry) bool {
		return o != e && o.Service == e.Service && o.Target == e.Target && (o.Written || marked(s, o.Command))
	})
}

// free takes away the numbers of commands that Swarm has undone: they are made again. A service that was read before such a command's write tells nothing of it.
func (g *ring) free(s swarm.Service) {
	for _, o := range g.entries {
		if o.Service == s.ID && o.Written && s.Version.Index > o.Version && o.Target > s.Spec.TaskTemplate.ForceUpdate {
			o.Target = 0
		}
	}
}

func (g *ring) find(command string) *entry {
	if i := slices.IndexFunc(g.entries, func(e *entry) bool { return e.Command == command }); i >= 0 {
		return g.entries[i]
	}
	return nil
}

// forget drops what is over: a decided command when no clock takes it for one that may be begun, or a while after it ended if that was later still; one that was
// begun when no topic holds it any more.
func (g *ring) forget(now time.Time) {
	g.entries = slices.DeleteFunc(g.entries, func(e *entry) bool {
		over := e.Deadline
		switch {
		case e.Status == "":
			over = over.Add(MaxDeadline)
		case e.Ended.After(over):
			over = e.Ended
		}
		return now.After(over.Add(ClockTolerance))
	})
}

// spec is the ring as a config object. Where it would be too large the oldest outcomes keep their status only.
func (g *ring) spec(name string) (swarm.ConfigSpec, error) {
	text := mustJSON(g.entries)
	for _, e := range g.entries {
		if len(text) <= maxRecentBytes {
			break
		}
		e.Detail = nil
		text = mustJSON(g.entries)
	}
	if len(text) > maxRecentBytes {
		return swarm.ConfigSpec{}, fmt.Errorf("the ring of recent commands would take %d bytes, at most %d are allowed", len(text), maxRecentBytes)
	}
	labels := map[string]string{labelRecent: text}
	if len(g.cancelled) > 0 {
		labels[labelCancelled] = mustJSON(g.cancelled)
	}
	return swarm.ConfigSpec{Annotations: swarm.Annotations{Name: name, Labels: labels}, Data: []byte{'-'}}, nil
}

func parseRing(o *object) (*ring, error) {
	g := &ring{}
	if o == nil {
		return g, nil
	}
	for name, to := range map[string]any{labelRecent: &g.entries, labelCancelled: &g.cancelled} {
		if text, ok := o.spec.Labels[name]; ok || name == labelRecent {
			if err := json.Unmarshal([]byte(text), to); err != nil {
				return nil, badObject("bad_recent", o.spec.Name, fmt.Errorf("the ring of recent commands has an unreadable label %s: %w", name, err))
			}
		}
	}
	g.entries = slices.DeleteFunc(g.entries, func(e *entry) bool { return e == nil })
	return g, nil
}

func (r *Recent) read(ctx context.Context) (*object, *ring, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	at, err := readObject(ctx, r.fence.deps.Client(), r.fence.cfg.Recent)
	if err != nil {
		return nil, nil, r.unavailable(err)
	}
	g, err := parseRing(at)
	return at, g, err
}

// change puts what f makes of the ring in its place. f is asked again, with the ring as it is then, when others have changed it meanwhile; an earlier change of
// its own may be in it, because an answer was lost. f returns false if nothing is to be changed.
func (r *Recent) change(ctx context.Context, f func(*ring) (bool, error)) error {
	for attempt := range ringAttempts {
		if attempt > 0 && !pause(ctx, rand.N(ringPause)) {
			return ctx.Err()
		}
		at, g, err := r.read(ctx)
		if err != nil {
			return err
		}
		if changed, err := f(g); err != nil || !changed {
			return err
		}
		g.forget(r.fence.deps.Now())
		spec, err := g.spec(r.fence.cfg.Recent)
		if err != nil {
			return failure.New(failure.Unavailable, CodeRecentFull, r.fence.cfg.Recent, "%w", err)
		}
		if _, err = swapObject(ctx, r.fence.deps.Client(), at, spec); !errors.Is(err, errMoved) {
			return r.unavailable(err)
		}
	}
	return failure.New(failure.Unavailable, CodeHeld, r.fence.cfg.Recent, "the ring of recent commands keeps moving")
}

func (r *Recent) unavailable(err error) error {
	if err == nil {
		return nil
	}
	return failure.New(failure.Unavailable, "engine_unavailable", r.fence.cfg.Recent, "the ring of recent commands: %w", err)
}

// stoodStill notes each command's last change, and tells how long this one has not changed.
func (r *Recent) stoodStill(g *ring, e *entry) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	for command := range r.seen {
		if g.find(command) == nil {
			delete(r.seen, command)
		}
	}
	return r.seen.still(e.Command, e.Beat, r.fence.deps.Now())
}

// Look tells, without a claim, what the ring knows of a command: its outcome, or that it has been begun.
func (r *Recent) Look(ctx context.Context, command string) (outcome *Outcome, begun bool, err error) {
	_, g, err := r.read(ctx)
	if err != nil {
		return nil, false, err
	}
	e := g.find(command)
	if e == nil {
		return nil, false, nil
	}
	return e.outcome(), true, nil
}

// Cancel has the command end as cancelled, whoever works on it or nobody yet, and tells whether the ring knew it. When it has returned nil the command can have no
// other outcome, however often it is delivered; a write that is on its way may still land. A command that has an outcome is refused with CodeDecided. An id that no
// command ever has does no harm, and is dropped in time.
func (r *Recent) Cancel(ctx context.Context, command string) (known bool, err error) {
	err = r.change(ctx, func(g *ring) (bool, error) {
		e := g.find(command)
		known = e != nil
		switch {
		case e != nil && e.Status == StatusCancelled, e == nil && slices.Contains(g.cancelled, command):
			return false, nil
		case e != nil && e.Status != "":
			return false, failure.New(failure.Conflict, CodeDecided, command, "command %s has ended already: %s", command, e.Status)
		case e != nil:
			e.decide(StatusCancelled, nil, r.fence.deps.Now())
			e.Claim = "" // whoever had it has lost it
		default:
			g.cancelled = append(g.cancelled, command)
			g.cancelled = g.cancelled[max(0, len(g.cancelled)-KeepCancelled):]
		}
		return true, nil
	})
	return known, err
}

// uncancel tells whether the command was cancelled before it came, and takes it off the list.
func (g *ring) uncancel(command string) bool {
	before := len(g.cancelled)
	g.cancelled = slices.DeleteFunc(g.cancelled, func(id string) bool { return id == command })
	return len(g.cancelled) < before
}

func (e *entry) decide(status string, detail []byte, now time.Time) {
	e.Status, e.Detail, e.Ended = status, detail, now
	e.Beat++
}
