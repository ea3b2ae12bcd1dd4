package plane

import (
	"context"
	"log/slog"
	"time"

	"github.com/axion/runner-agent/plane/fleet"
	"github.com/axion/runner-agent/proto/failure"
)

// generationsEvery is how often the generations that heartbeats tell are looked at.
const generationsEvery = 2 * time.Second

// generations carries the generations that managers tell in their heartbeats to the ledger, so that a plane that was restored from a backup does not give
// out numbers that the clusters have seen.
type generations struct {
	sessions func() []fleet.Session
	note     func(ctx context.Context, clusterID, stack string, generation uint64) error
	log      *slog.Logger

	heard map[string]uint64            // by session id: sequence of the heartbeat that was looked at
	known map[string]map[string]uint64 // by cluster and stack: what the ledger has
}

func newGenerations(sessions func() []fleet.Session, note func(context.Context, string, string, uint64) error, log *slog.Logger) *generations {
	return &generations{sessions: sessions, note: note, log: log, heard: map[string]uint64{}, known: map[string]map[string]uint64{}}
}

// run looks at heartbeats until ctx ends.
func (g *generations) run(ctx context.Context) error {
	t := time.NewTicker(generationsEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			g.look(ctx)
		}
	}
}

// look notes what is new. Only confirmed managers are believed: a worker does not know its Swarm's stacks.
func (g *generations) look(ctx context.Context) {
	heard := map[string]uint64{}
	for _, s := range g.sessions() {
		if s.Heartbeat == nil || !s.ClusterTopicAllowed {
			continue
		}
		sequence := s.Heartbeat.GetSequence()
		if g.heard[s.ID] != sequence && !g.noteAll(ctx, s) {
			continue // not noted: looked at again
		}
		heard[s.ID] = sequence
	}
	g.heard = heard // sessions that have ended are forgotten
}

// noteAll notes one heartbeat and returns false if the ledger could not.
func (g *generations) noteAll(ctx context.Context, s fleet.Session) bool {
	known := g.known[s.ClusterID]
	if known == nil {
		known = map[string]uint64{}
		g.known[s.ClusterID] = known
	}
	for _, stack := range s.Heartbeat.GetStacks() {
		if stack.GetGeneration() <= known[stack.GetStack()] {
			continue
		}
		err := g.note(ctx, s.ClusterID, stack.GetStack(), stack.GetGeneration())
		switch {
		case err == nil:
			known[stack.GetStack()] = stack.GetGeneration()
		case failure.ClassOf(err) == failure.Invalid:
			g.log.Warn("an agent told a generation that is not believed", "agent_id", s.AgentID, "error", err)
			return true
		default:
			if ctx.Err() == nil {
				g.log.Error("a generation could not be noted", "error", err)
			}
			return false
		}
	}
	return true
}
