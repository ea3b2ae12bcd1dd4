package broker

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// silentEvery is how often silent members are looked for.
	silentEvery = 2 * time.Second
	// silentFor is how long a member of a stable group must have been silent. Agents are heard every second and have a session of 10 s.
	silentFor = 12 * time.Second
	// stable is the state of a group in which each member has its partitions and is to be heard.
	stable = "Stable"
)

// silent finds members that the embedded broker would keep for ever: one whose connection breaks before it is told that it has joined is given partitions, and no
// session that could end. (A real Kafka begins the session in any case.)
type silent struct {
	cluster *kfake.Cluster
	now     func() time.Time

	mu     sync.Mutex
	groups map[string]bool
	heard  map[string]time.Time // by member id
}

// watchSilent listens for what members say.
func watchSilent(c *kfake.Cluster) *silent {
	s := &silent{cluster: c, now: time.Now, groups: map[string]bool{}, heard: map[string]time.Time{}}
	for _, key := range []kmsg.Key{kmsg.JoinGroup, kmsg.SyncGroup, kmsg.Heartbeat} {
		c.ControlKey(key.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) {
			switch r := req.(type) {
			case *kmsg.JoinGroupRequest:
				s.hear(r.Group, r.MemberID)
			case *kmsg.SyncGroupRequest:
				s.hear(r.Group, r.MemberID)
			case *kmsg.HeartbeatRequest:
				s.hear(r.Group, r.MemberID)
			}
			return nil, nil, false // the broker is to answer
		})
	}
	return s
}

// hear notes that a member has said something. Who may not be a member is none of any group, and forgotten by the next look.
func (s *silent) hear(group, member string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[group] = true
	if member != "" {
		s.heard[member] = s.now()
	}
}

// member is one of a group.
type member struct{ group, id string }

// look returns the members that have been silent for too long.
func (s *silent) look() []member {
	s.mu.Lock()
	var groups []string
	for g := range s.groups {
		groups = append(groups, g)
	}
	s.mu.Unlock()
	var found []member
	known := map[string]bool{}
	for _, g := range groups {
		info := s.cluster.GroupInfo(g) // asks the broker's own loop, which may wait for hear
		s.mu.Lock()
		if info == nil || len(info.Members) == 0 {
			delete(s.groups, g)
			s.mu.Unlock()
			continue
		}
		for _, m := range info.Members {
			known[m.MemberID] = true
			last, ok := s.heard[m.MemberID]
			if !ok || info.State != stable { // a member waits in silence while the others join
				s.heard[m.MemberID] = s.now()
			} else if s.now().Sub(last) > silentFor {
				found = append(found, member{g, m.MemberID})
			}
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.heard {
		if !known[id] {
			delete(s.heard, id)
		}
	}
	return found
}

// evictSilent takes silent members out of their groups.
func (b *Broker) evictSilent(ctx context.Context) {
	for _, m := range b.embedded.silent.look() {
		if had, err := b.Evict(ctx, m.group, m.id); err != nil || had {
			b.log.Info("took a silent member out of its group", "group", m.group, "member", m.id, "error", err)
		}
	}
}
