package eviction

import "time"

// limits says whether an eviction may be now. It is told of every stream that breaks. It is owned by one loop.
type limits struct {
	cfg      Config
	broken   map[string]time.Time // by agent id: when its stream broke last, within cfg.AtOnce
	clusters map[string]pause     // by cluster id: the last eviction
}

// pause is the time after an eviction in which there is no other in the same cluster.
type pause struct {
	last   time.Time
	length time.Duration
}

func newLimits(cfg Config) *limits {
	return &limits{cfg: cfg, broken: map[string]time.Time{}, clusters: map[string]pause{}}
}

// broke notes that an agent's stream broke.
func (l *limits) broke(agentID string, at time.Time) { l.broken[agentID] = at }

// many reports whether so many streams have broken at once that the fault is not with the agents: more than one, and more than a tenth. Streams that are back
// count as broken too: the network that broke them is the one that broke the others. connected says whether an agent has a stream now, live how many have.
func (l *limits) many(now time.Time, live int, connected func(agentID string) bool) bool {
	for agentID, at := range l.broken {
		if now.Sub(at) > l.cfg.AtOnce {
			delete(l.broken, agentID)
		}
	}
	n := len(l.broken)
	switch {
	case n <= 1:
		return false
	case n*10 > live+n: // whoever is back or not
		return true
	}
	all := live
	for agentID := range l.broken {
		if !connected(agentID) {
			all++
		}
	}
	return n*10 > all
}

// take reports whether there may be an eviction in that cluster now, and counts it if so. Each one that follows soon doubles the pause.
func (l *limits) take(clusterID string, now time.Time) bool {
	l.forget(now)
	p, again := l.clusters[clusterID]
	if again && now.Sub(p.last) < p.length {
		return false
	}
	length := l.cfg.Pause
	if again {
		length = min(2*p.length, l.cfg.MaxPause)
	}
	l.clusters[clusterID] = pause{last: now, length: length}
	return true
}

// forget drops the clusters that have been calm for long.
func (l *limits) forget(now time.Time) {
	for id, p := range l.clusters {
		if now.Sub(p.last) >= max(2*p.length, l.cfg.Calm) {
			delete(l.clusters, id)
		}
	}
}
