// Package eviction takes dead agents out of their Kafka consumer groups. A member that was killed holds its partition until its session ends, 10 s later; the
// plane sees the agent's stream break at once, knows from its heartbeats which member it was, and takes exactly that one out, so that another manager goes on
// after about a second.
//
// This is speed and never correctness. A living member that is evicted by mistake joins again and applies nothing twice, but each eviction rebalances its
// group, so they are few: one try for a stream that broke, after a reset or an end of file and never after a goodbye; none if the same process is back; one in a
// cluster within 10 s, with a pause that doubles when they repeat; none while many streams break at once, which says that the network or the plane is at fault.
package eviction

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

const (
	// maxWaiting bounds the breaks that wait; there are never more unless very many streams break at once, when none is followed by an eviction.
	maxWaiting = 1024
	// maxMember bounds a member's id, in bytes.
	maxMember = 1024
	// leaveTimeout bounds one request to the broker.
	leaveTimeout = 3 * time.Second
)

// Config holds the limits. A zero field takes the value that its comment names.
type Config struct {
	// Group names the consumer group of an agent's or a cluster's topic; required.
	Group func(id string) string
	// Settle is how long after a break is looked whether the agent is back and what else broke: 300 ms.
	Settle time.Duration
	// AtOnce is the time within which streams break at once: 2 s.
	AtOnce time.Duration
	// Pause is the time between two evictions in a cluster: 10 s. It doubles up to MaxPause: 10 min. A cluster in which there was none for twice its pause,
	// and for Calm, begins anew: 1 min.
	Pause, MaxPause, Calm time.Duration
	// Stale is the age of a break that needs no eviction any more, because the member's session has ended: 10 s.
	Stale time.Duration
}

// Deps are what an Evictor needs; all are required.
type Deps struct {
	// Leave takes a member out of a group and reports whether the group had it.
	Leave func(ctx context.Context, group, memberID string) (bool, error)
	// Instance returns the process of an agent that is connected now.
	Instance func(agentID string) (instanceID string, connected bool)
	// Streams is how many agents are connected now.
	Streams func() int
	// Log receives each eviction with its reason, and why there was none.
	Log *slog.Logger
	// Now is the clock.
	Now func() time.Time
}

// Break is a stream that broke without a goodbye.
type Break struct {
	// AgentID, ClusterID and InstanceID say whose it was.
	AgentID, ClusterID, InstanceID string
	// Manager is whether the agent may read its cluster's topic.
	Manager bool
	// Members are the memberships of its last heartbeat.
	Members []*runnerv1.GroupMember
	// Err is how it broke.
	Err error

	at time.Time
}

// What became of breaks, as Counts names it.
const (
	Evicted    = "evicted"      // the member is out of its group
	NotMember  = "not_member"   // the group did not have it any more
	Failed     = "failed"       // the broker refused or did not answer
	NoMember   = "no_member"    // the agent was in no group, as far as is known
	CameBack   = "came_back"    // the same process is connected again
	ManyAtOnce = "many_at_once" // many streams broke at once
	TooSoon    = "too_soon"     // there was one in the cluster a moment ago
	TooLate    = "too_late"     // the member's session has ended meanwhile
	Overflow   = "overflow"     // more breaks than can wait
)

// Evictor decides on evictions and does them.
type Evictor struct {
	cfg    Config
	deps   Deps
	breaks chan Break

	mu     sync.Mutex
	counts map[string]uint64
}

// New checks the configuration.
func New(cfg Config, deps Deps) (*Evictor, error) {
	if cfg.Group == nil || deps.Leave == nil || deps.Instance == nil || deps.Streams == nil || deps.Log == nil || deps.Now == nil {
		return nil, errors.New("eviction: a dependency is missing")
	}
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&cfg.Settle, 300 * time.Millisecond},
		{&cfg.AtOnce, 2 * time.Second},
		{&cfg.Pause, 10 * time.Second},
		{&cfg.MaxPause, 10 * time.Minute},
		{&cfg.Calm, time.Minute},
		{&cfg.Stale, 10 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	return &Evictor{cfg: cfg, deps: deps, breaks: make(chan Break, maxWaiting), counts: map[string]uint64{}}, nil
}

// Broke tells of a stream that broke without a goodbye. It returns at once.
func (e *Evictor) Broke(b Break) {
	b.at = e.deps.Now()
	select {
	case e.breaks <- b:
	default:
		e.count(Overflow)
	}
}

// Counts returns how many breaks, or of those that were followed by an eviction how many memberships, ended in which way since the start.
func (e *Evictor) Counts() map[string]uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.counts)
}

func (e *Evictor) count(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.counts[what]++
}

// Run follows breaks until ctx ends; then it returns nil.
func (e *Evictor) Run(ctx context.Context) error {
	limits := newLimits(e.cfg)
	var waiting []Break // oldest first
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if len(waiting) > 0 {
			timer.Reset(max(0, waiting[0].at.Add(e.cfg.Settle).Sub(e.deps.Now())))
		}
		select {
		case <-ctx.Done():
			return nil
		case b := <-e.breaks:
			limits.broke(b.AgentID, b.at)
			waiting = append(waiting, b)
		case <-timer.C:
			if len(e.breaks) > 0 {
				continue // what else broke is heard first
			}
			if len(waiting) > 0 && e.deps.Now().Sub(waiting[0].at) >= e.cfg.Settle {
				b := waiting[0]
				waiting = waiting[1:]
				e.follow(ctx, limits, b)
			}
		}
	}
}

// follow decides on one break, and evicts.
func (e *Evictor) follow(ctx context.Context, limits *limits, b Break) {
	log := e.deps.Log.With("agent_id", b.AgentID, "cluster_id", b.ClusterID, "broken_by", b.Err)
	members := e.members(b)
	if why := e.objection(limits, b, members); why != "" {
		e.count(why)
		log.Info("no eviction for a stream that broke", "reason", why)
		return
	}
	for _, m := range members {
		log := log.With("group", m.GetGroup(), "member", m.GetMemberId())
		switch had, err := e.leave(ctx, m); {
		case err != nil:
			e.count(Failed)
			log.Warn("a member was not evicted; its group waits until its session ends", "error", err)
		case !had:
			e.count(NotMember)
			log.Info("no eviction for a stream that broke", "reason", NotMember)
		default:
			e.count(Evicted)
			log.Info("evicted a member from its group", "reason", "its agent's stream broke without a goodbye", "after", e.deps.Now().Sub(b.at))
		}
	}
}

// objection returns why there is no eviction; empty if there is one, which is then counted against the cluster's limit.
func (e *Evictor) objection(limits *limits, b Break, members []*runnerv1.GroupMember) string {
	now := e.deps.Now()
	connected := func(agentID string) bool {
		_, ok := e.deps.Instance(agentID)
		return ok
	}
	instance, back := e.deps.Instance(b.AgentID)
	switch {
	case len(members) == 0:
		return NoMember
	case back && instance == b.InstanceID:
		return CameBack
	case now.Sub(b.at) >= e.cfg.Stale:
		return TooLate
	case limits.many(now, e.deps.Streams(), connected):
		return ManyAtOnce
	case !limits.take(b.ClusterID, now):
		return TooSoon
	}
	return ""
}

// members returns the memberships that the agent may speak of, one a group: an agent that names the group of another has nobody evicted from it.
func (e *Evictor) members(b Break) []*runnerv1.GroupMember {
	open := map[string]bool{e.cfg.Group(b.AgentID): true}
	if b.Manager {
		open[e.cfg.Group(b.ClusterID)] = true
	}
	var own []*runnerv1.GroupMember
	for _, m := range b.Members {
		if open[m.GetGroup()] && m.GetMemberId() != "" && len(m.GetMemberId()) <= maxMember {
			open[m.GetGroup()] = false
			own = append(own, m)
		}
	}
	return own
}

func (e *Evictor) leave(ctx context.Context, m *runnerv1.GroupMember) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	return e.deps.Leave(ctx, m.GetGroup(), m.GetMemberId())
}
