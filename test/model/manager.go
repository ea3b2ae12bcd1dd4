package model

// crash loses all that a manager knows; its requests stay on their way.
func (w *world) crash(s *State, k uint8) {
	m := &s.Managers[k]
	if s.Left.Crashes == 0 || (m.Stage == idle && !m.Member) {
		return
	}
	n := *s
	n.Left.Crashes--
	n.Managers[k] = Manager{OldList: m.OldList, Old: m.Old, OutboxOf: m.OutboxOf, Outbox: m.Outbox}
	n.orphan(k)
	w.emit(&n, Step{Who: actor(k), Does: "crashes and restarts while " + stageNames[m.Stage], Fault: true})
}

// noticeLeft: a former consumer learns that it is one. What it has in hand it goes on with.
func (w *world) noticeLeft(s *State, k uint8) {
	if m := &s.Managers[k]; !m.Member || m.Group == s.Group {
		return
	}
	n := *s
	n.Managers[k].Member = false
	w.emit(&n, Step{Who: actor(k), Does: "notices that it left the consumer group"})
}

// orphan leaves a manager's requests on their way to themselves.
func (s *State) orphan(k uint8) {
	for i := range s.Flying {
		if s.InFlight[i].By == k {
			s.InFlight[i].By = orphan
		}
	}
}
