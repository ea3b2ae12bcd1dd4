package plane

import (
	"context"

	"github.com/axion/runner-agent/plane/broker"
	"github.com/axion/runner-agent/plane/eviction"
	"github.com/axion/runner-agent/plane/fleet"
)

// newEviction makes the part that takes dead agents out of their consumer groups. The fleet is asked for only once it runs.
func (p *Plane) newEviction(leave func(context.Context, string, string) (bool, error), sessions func() *fleet.Fleet) (*eviction.Evictor, error) {
	return eviction.New(eviction.Config{Group: broker.Group}, eviction.Deps{
		Leave: leave,
		Instance: func(agentID string) (string, bool) {
			s, ok := sessions().Session(agentID)
			return s.InstanceID, ok
		},
		Streams: func() int { return sessions().Len() },
		Log:     p.component("eviction"),
		Now:     p.now,
	})
}

// broken is what the eviction is told of a session that was lost.
func broken(e fleet.Event) eviction.Break {
	return eviction.Break{
		AgentID: e.Session.AgentID, ClusterID: e.Session.ClusterID, InstanceID: e.Session.InstanceID, Manager: e.Session.ClusterTopicAllowed,
		Members: e.Session.Heartbeat.GetMembers(), Err: e.Err,
	}
}
