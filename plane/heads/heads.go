// Package heads listens to what managers tell of their stacks' heads in each heartbeat. The newest numbers go to the ledger, so that a plane that was restored from
// a backup does not give out generations that a cluster has seen. And it notices when the numbers go back, which they do when a Swarm was restored from a
// backup: then the ledger tells it and offers again what is lost.
//
// One manager that tells an older state is no proof: it reads from its own memory, which may lag. So all connected, confirmed managers of a cluster that can
// tell anything must agree, and go on to do so, before it counts.
package heads

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/axion/runner-agent/plane/fleet"
	"github.com/axion/runner-agent/plane/ledger"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// lookEvery is how often heartbeats are looked at.
	lookEvery = 2 * time.Second
	// Agree is how long the managers of a cluster must agree on an older state: longer than the lists of heads take to be read anew.
	Agree = 30 * time.Second
	// AgreeOnNothing is how long if one of them tells of no stack at all: an agent that has just started has not read them yet, and one whose node was taken into
	// another Swarm is found out in that time.
	AgreeOnNothing = 2 * time.Minute
	// maxTold is the contract's bound on the stacks in a heartbeat. One that has as many may have left some out.
	maxTold = 1000
)

// noLeader is the warning of an agent whose engine only repeats what it knew before it lost its Swarm's leader.
const noLeader = "no_swarm_leader"

// Ledger keeps what is told; ledger.Ledger is one.
type Ledger interface {
	Heads(ctx context.Context, clusterID, swarmID string) (map[string]ledger.Head, error)
	NoteHead(ctx context.Context, clusterID, swarmID string, h ledger.Head) error
	WentBack(ctx context.Context, w ledger.WentBack) (*runnerv1.GenerationsWentBack, error)
}

// Deps are what a Watch needs; all are required.
type Deps struct {
	// Sessions are the live sessions.
	Sessions func() []fleet.Session
	// Swarms returns each cluster's Swarm id; empty if it is not known. Another id than before means that the Swarm was made anew.
	Swarms func(ctx context.Context) (map[string]string, error)
	Ledger Ledger
	// CommandTopic names a cluster's command topic.
	CommandTopic func(clusterID string) string
	Log          *slog.Logger
	Now          func() time.Time
}

// Watch listens. Its state is Run's alone.
type Watch struct {
	deps     Deps
	reports  map[string]*report // by session id
	clusters map[string]*cluster
}

// report is what a session's last heartbeat tells.
type report struct {
	sequence uint64
	noted    bool
	told     map[string]ledger.Head
}

// cluster is what is known of one cluster's stacks.
type cluster struct {
	swarmID string
	known   map[string]ledger.Head // as the ledger has it
	lower   map[string]*lowering   // by stack
}

// lowering is a stack of which all managers tell an older state.
type lowering struct {
	since time.Time
	heard map[string]uint64 // by session id: the first heartbeat that told so
}

// New returns a Watch.
func New(deps Deps) (*Watch, error) {
	if deps.Sessions == nil || deps.Swarms == nil || deps.Ledger == nil || deps.CommandTopic == nil || deps.Log == nil || deps.Now == nil {
		return nil, errors.New("heads: a dependency is missing")
	}
	return &Watch{deps: deps, reports: map[string]*report{}, clusters: map[string]*cluster{}}, nil
}

// Run looks at heartbeats until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := w.look(ctx); err != nil && ctx.Err() == nil {
				w.deps.Log.Error("what managers tell of their stacks could not be noted", "error", err)
			}
		}
	}
}

// look notes what is new and judges what is old. Only confirmed managers are believed: a worker does not know its Swarm's stacks.
func (w *Watch) look(ctx context.Context) error {
	swarms, err := w.deps.Swarms(ctx)
	if err != nil {
		return err
	}
	sessions := map[string][]fleet.Session{} // by cluster
	reports := map[string]*report{}
	for _, s := range w.deps.Sessions() {
		if s.Heartbeat == nil || !s.ClusterTopicAllowed {
			continue
		}
		sessions[s.ClusterID] = append(sessions[s.ClusterID], s)
		r := w.reports[s.ID]
		if r == nil || r.sequence != s.Heartbeat.GetSequence() {
			r = &report{sequence: s.Heartbeat.GetSequence(), told: toldBy(s.Heartbeat)}
		}
		reports[s.ID] = r
	}
	w.reports = reports // sessions that have ended are forgotten
	var errs []error
	for id, managers := range sessions {
		errs = append(errs, w.lookAt(ctx, id, swarms[id], managers))
	}
	return errors.Join(errs...)
}

func toldBy(beat *runnerv1.Heartbeat) map[string]ledger.Head {
	told := make(map[string]ledger.Head, len(beat.GetStacks()))
	for _, s := range beat.GetStacks() {
		told[s.GetStack()] = ledger.Head{Stack: s.GetStack(), Generation: s.GetGeneration(), Epoch: s.GetEpoch(), Removed: s.GetRemovedAt() != nil}
	}
	return told
}

func (w *Watch) lookAt(ctx context.Context, clusterID, swarmID string, managers []fleet.Session) error {
	c := w.clusters[clusterID]
	if c == nil || c.swarmID != swarmID {
		known, err := w.deps.Ledger.Heads(ctx, clusterID, swarmID)
		if err != nil {
			return err
		}
		c = &cluster{swarmID: swarmID, known: known, lower: map[string]*lowering{}}
		w.clusters[clusterID] = c
	}
	for _, s := range managers {
		if err := w.note(ctx, clusterID, c, s); err != nil {
			return err
		}
	}
	managers = slices.DeleteFunc(managers, func(s fleet.Session) bool { return !canTell(s.Heartbeat) })
	for stack, known := range c.known {
		now, agreed := w.agreed(managers, known)
		if !agreed {
			delete(c.lower, stack)
			continue
		}
		if !w.lasts(c, stack, managers) {
			continue
		}
		if err := w.wentBack(ctx, clusterID, c, known, now); err != nil {
			return err
		}
	}
	return nil
}

// note gives the ledger what is newer than what it has. What is not noted because the ledger is away is tried again with the same heartbeat.
func (w *Watch) note(ctx context.Context, clusterID string, c *cluster, s fleet.Session) error {
	r := w.reports[s.ID]
	if r.noted {
		return nil
	}
	for stack, h := range r.told {
		if !h.Above(c.known[stack]) {
			continue
		}
		err := w.deps.Ledger.NoteHead(ctx, clusterID, c.swarmID, h)
		switch {
		case err == nil:
			c.known[stack] = h
		case failure.ClassOf(err) == failure.Invalid:
			w.deps.Log.Warn("an agent told a generation that is not believed", "agent_id", s.AgentID, "error", err)
		default:
			return err
		}
	}
	r.noted = true
	return nil
}

// canTell says whether a manager knows its Swarm's state. One without a leader remembers; one without an engine knows nothing.
func canTell(beat *runnerv1.Heartbeat) bool {
	return beat.GetEngineReachable() && !slices.ContainsFunc(beat.GetWarnings(), func(w *runnerv1.HealthWarning) bool { return w.GetCode() == noLeader })
}

// agreed returns the newest head that the managers tell of the stack, and whether all of them tell an older one than is known.
func (w *Watch) agreed(managers []fleet.Session, known ledger.Head) (now ledger.Head, agreed bool) {
	now.Stack = known.Stack
	if known.Generation == 0 || len(managers) == 0 {
		return now, false
	}
	for _, s := range managers {
		told := w.reports[s.ID].told
		h, ok := told[known.Stack]
		switch {
		case !ok && (known.Removed || len(told) >= maxTold): // the head of a removed stack is forgotten in the end
			return now, false
		case ok && h.Generation == known.Generation && h.Epoch == 0: // an older agent, which tells no epochs
			return now, false
		case !known.Above(h):
			return now, false
		case h.Above(now):
			now = h
		}
	}
	return now, true
}

// lasts notes that the managers agree on an older state of a stack and says whether they have done so for long enough, each in more than one heartbeat.
func (w *Watch) lasts(c *cluster, stack string, managers []fleet.Session) bool {
	l := c.lower[stack]
	if l == nil {
		l = &lowering{since: w.deps.Now(), heard: map[string]uint64{}}
		c.lower[stack] = l
	}
	repeated, long := true, Agree
	for _, s := range managers {
		first, ok := l.heard[s.ID]
		if !ok {
			first = s.Heartbeat.GetSequence()
			l.heard[s.ID] = first
		}
		repeated = repeated && first != s.Heartbeat.GetSequence()
		if len(w.reports[s.ID].told) == 0 {
			long = AgreeOnNothing
		}
	}
	return repeated && w.deps.Now().Sub(l.since) >= long
}

func (w *Watch) wentBack(ctx context.Context, clusterID string, c *cluster, from, to ledger.Head) error {
	told, err := w.deps.Ledger.WentBack(ctx, ledger.WentBack{
		ClusterID: clusterID, SwarmID: c.swarmID, Topic: w.deps.CommandTopic(clusterID), From: from, To: to,
	})
	if err != nil {
		return err
	}
	delete(c.lower, from.Stack)
	if told == nil {
		delete(w.clusters, clusterID) // the ledger knows something else: it is asked anew
		return nil
	}
	c.known[from.Stack] = to
	w.deps.Log.Error("a stack's generations went back: its Swarm was restored from a backup, or lost what it knew", "cluster_id", clusterID, "stack", from.Stack,
		"from_generation", from.Generation, "from_epoch", from.Epoch, "to_generation", to.Generation, "to_epoch", to.Epoch,
		"offered_command_ids", told.GetOfferedCommandIds(), "not_offered", told.GetNotOffered().GetMessage())
	return nil
}
