package model

// sweep is begun by the partition's consumer when the services differ from what the head names, or when an earlier sweep has not ended. A position that was
// stopped is not swept: nobody wants its target.
func (w *world) sweep(s *State, k uint8) {
	m, head := &s.Managers[k], &s.Head
	p := head.Position
	if !w.rules.Sweep || !m.Member || p <= w.scenario.Start || (w.rules.GroupGeneration && m.Group < head.Group) || !w.isTarget(head) {
		return
	}
	note := "an earlier sweep has not ended"
	switch head.Phase {
	case decided:
		if !w.differs(s) {
			return
		}
		note = "the services are not as the head says"
	case applying:
		if !w.rules.ResumeSweep {
			return
		}
	case applied:
		return
	}
	n := *s
	me := &n.Managers[k]
	n.Head.Phase, n.Head.Group = applying, m.Group
	me.Sweep, me.Command, me.Stage = true, p, w.passBegins()
	n.holds(k)
	w.cas(&n, k, Step{Who: actor(k), Does: "begins the sweep of", Position: p, Of: true, Note: note})
}

// isTarget says that the head's position was applied in whole, and with it the deployment that it is a step of.
func (w *world) isTarget(head *Head) bool {
	for p := w.scenario.deployOf(head.Position); p <= head.Position; p++ {
		if o := head.Outcome[p]; p > w.scenario.Start && (o == undecided || o == superseded) || !o.whole() {
			return false
		}
	}
	return true
}

// whole says that a command was not stopped before it was applied in whole. One that was cancelled may have been; nobody wants its target any more.
func (o Outcome) whole() bool { return o != cancelled && o != expired && o != cut }

// differs compares the services with what the head names.
func (w *world) differs(s *State) bool {
	for i, v := range s.Services {
		want := w.scenario.wants(s.Head.Position, i)
		switch {
		case v.Exists != (want != 0), v.Tombstone:
			return true
		case want == 0, v.RolledBack && w.rules.LeaveRollbacks:
		case v.Label != s.Head.Base[i] || w.scenario.wants(v.Label, i) != want:
			return true
		}
	}
	return false
}

// endSweep brings the head to rest again.
func (w *world) endSweep(s *State, k uint8) {
	if !s.Managers[k].Holds {
		w.loseClaim(s, k, "the head has moved")
		return
	}
	n := *s
	me := &n.Managers[k]
	p := me.Command
	n.Head.Phase = decided
	w.rebase(&n, p)
	me.rest()
	w.cas(&n, k, Step{Who: actor(k), Does: "ends the sweep of", Position: p, Of: true})
}
