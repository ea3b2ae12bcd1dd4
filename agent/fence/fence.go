// Package fence keeps managers from undoing each other's work on a stack. Any manager may be asked to deploy, an old one may be slow, and a request that was
// sent may take effect long after its sender died; so every write to a stack goes through a claim that this package can prove and revoke.
//
// Each stack has a head: one small config object in the Swarm whose labels say which generation the stack is at, which command it belongs to, who works on it and
// how the last commands ended. The head is changed by compare-and-swap on its version only, because a read proves nothing: it may be old. A Claim is the right to
// work on one generation, taken and renewed by such changes, and lost for good at the first that fails. To cancel a command, whoever runs it or nobody yet, is such a
// change, too: the holder of the claim finds it in its way. A Client is a Docker client for the holder of a claim: it
// lists the stack's services, renews the claim, and writes with exactly the versions of that list, in this order, which is what makes an update that comes
// too late fail by its version. A removal is a label first, checked in the same way. A creation has no condition in Swarm, so Run sweeps what an older generation
// created too late.
//
// A command without a generation has no place in a head. It is kept in a ring, Recent, from before its first write until its deadline is over for every clock, so
// that it is done once whoever is given it, and however often.
//
// Besides stack/ and agent/engine this is the only package that talks to Docker. It knows nothing of Kafka, of what a command does, and of what its outcome means.
package fence

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/proto/failure"
)

const (
	// renewEvery is how often the holder of a claim shows that it is alive.
	renewEvery = 5 * time.Second
	// noticeEvery is how often the holder looks whether its command was cancelled.
	noticeEvery = time.Second
	// standstill is how long a head must not have moved before a claimant of an older consumer group generation may take it.
	standstill = 30 * time.Second
	// sweepEvery bounds how long a stale creation may exist.
	sweepEvery = 5 * time.Second
	// lookEvery is how often Run looks whether the cluster's topic was assigned.
	lookEvery = time.Second
	// callTimeout bounds each sweep and each reading of all heads.
	callTimeout = 20 * time.Second
	// keepRemoved is how long the head of a removed stack is kept: longer than any queue holds an old deployment of it.
	keepRemoved = 30 * 24 * time.Hour
)

// API is the Docker client that is worked with.
type API = client.APIClient

// Config says who claims.
type Config struct {
	// Owner is this agent's id; it is written into each head that it claims.
	Owner string
	// Standstill is how long a head must not have moved before a claimant of an older consumer group generation may take it; 0 means 30 s.
	Standstill time.Duration
	// SkipUnchanged leaves a service of a deployment unwritten that is as it should be, when that is safe. Without it each deployment writes each service that it
	// names, as docker stack deploy does.
	SkipUnchanged bool
	// SweepEvery is how often Run sweeps; 0 means 5 s.
	SweepEvery time.Duration
	// Recent is the name of the ring of commands without a generation; "" means axion-recent. Tests share a Swarm.
	Recent string
}

// Deps are the parts that a Fence works with.
type Deps struct {
	// Client returns the engine's client of now; it is replaced when the engine comes back after an outage.
	Client func() API
	// Assigned tells the consumer group generation in which the cluster's topic was assigned to this agent, and whether it is; nil means never. Only then does
	// Run sweep.
	Assigned func() (generation int32, ok bool)
	// Manager tells whether this node's engine can be asked about the Swarm; nil means always.
	Manager func() bool
	Log     *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Fence claims and sweeps stacks. It is safe for concurrent use.
type Fence struct {
	cfg  Config
	deps Deps
	wake chan struct{}
	// only is a stack, the only one that Run looks after; "" means all. Tests share a Swarm.
	only   string
	recent *Recent

	mu    sync.Mutex
	busy  map[string]chan struct{} // by stack: closed when the claim or sweep of this process is over
	seen  sightings                // by stack
	heads []Head                   // as last listed
}

// sightings is what rule 8 needs: since when, on this process's monotonic clock, something has had that version.
type sightings map[string]sighting

type sighting struct {
	version uint64
	since   time.Time
}

// still notes the version and tells how long it has not moved.
func (s sightings) still(name string, version uint64, now time.Time) time.Duration {
	was, ok := s[name]
	if !ok || was.version != version {
		was = sighting{version, now}
		s[name] = was
	}
	return now.Sub(was.since)
}

// New returns a Fence; it starts nothing and asks the engine nothing.
func New(cfg Config, deps Deps) (*Fence, error) {
	if cfg.Owner == "" || deps.Client == nil || deps.Log == nil {
		return nil, errors.New("fence: the owner, the client or the log is missing")
	}
	if cfg.Standstill == 0 {
		cfg.Standstill = standstill
	}
	if cfg.SweepEvery == 0 {
		cfg.SweepEvery = sweepEvery
	}
	if cfg.Recent == "" {
		cfg.Recent = recentName
	}
	if deps.Assigned == nil {
		deps.Assigned = func() (int32, bool) { return 0, false }
	}
	if deps.Manager == nil {
		deps.Manager = func() bool { return true }
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	f := &Fence{cfg: cfg, deps: deps, wake: make(chan struct{}, 1), busy: map[string]chan struct{}{}, seen: sightings{}}
	f.recent = newRecent(f)
	return f, nil
}

// Run lists the heads and sweeps, until ctx ends: when the cluster's topic is assigned, after each outcome, and every few seconds in between.
func (f *Fence) Run(ctx context.Context) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	var last time.Time
	var lastGeneration int32 = -1
	for {
		generation, assigned := f.deps.Assigned()
		if !assigned {
			generation = -1
		}
		if f.deps.Manager() && (f.deps.Now().Sub(last) >= f.cfg.SweepEvery || generation != lastGeneration) {
			if err := f.round(ctx, generation, assigned); err != nil && ctx.Err() == nil {
				f.deps.Log.Warn("the stacks' heads cannot be looked after; trying again", "error", err)
			}
			last, lastGeneration = f.deps.Now(), generation
		}
		select {
		case <-ticker.C:
		case <-f.wake:
			last = time.Time{}
		case <-ctx.Done():
			return nil
		}
	}
}

func (f *Fence) round(ctx context.Context, generation int32, assigned bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	all, err := f.list(ctx)
	if err != nil || !assigned {
		return err
	}
	return f.sweepAll(ctx, all, generation)
}

// Heads returns the heads as they were listed last, a few seconds ago at most; none before Run has asked.
func (f *Fence) Heads() []Head {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.heads
}

// stir asks Run for a round now.
func (f *Fence) stir() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// lock waits until nothing else in this process works on the stack.
func (f *Fence) lock(ctx context.Context, stack string) error {
	for {
		f.mu.Lock()
		other, taken := f.busy[stack]
		if !taken {
			f.busy[stack] = make(chan struct{})
		}
		f.mu.Unlock()
		if !taken {
			return nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tryLock reports whether nothing else in this process works on the stack, and then holds it.
func (f *Fence) tryLock(stack string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, taken := f.busy[stack]; taken {
		return false
	}
	f.busy[stack] = make(chan struct{})
	return true
}

func (f *Fence) unlock(stack string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.busy[stack])
	delete(f.busy, stack)
}

// stoodStill notes the head's version and tells how long it has not moved.
func (f *Fence) stoodStill(s *stored) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen.still(s.head.Stack, s.version.Index, f.deps.Now())
}

// outOfSequence says whether the engine refused a write because its object has moved on.
func outOfSequence(err error) bool {
	return err != nil && strings.Contains(err.Error(), "update out of sequence")
}

func unavailable(stack string, err error) error {
	if f := (*failure.Error)(nil); errors.As(err, &f) {
		return err
	}
	return failure.New(failure.Unavailable, "engine_unavailable", stack, "the head of stack %s: %w", stack, err)
}
