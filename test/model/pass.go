package model

// passBegins is a pass's first stage.
func (w *world) passBegins() Stage {
	if w.rules.RenewBeforeList {
		return renew
	}
	return list
}

// list reads the services and plans what to write with exactly the versions that it saw. An engine that is behind answers with an older list.
func (w *world) list(s *State, k uint8) {
	var now [services]Listed
	for i, v := range s.Services {
		now[i] = Listed{Service: v, SameVersion: true, SameID: true}
	}
	w.listed(s, k, now, Step{Who: actor(k), Does: "lists the services with their versions"})
	if m := &s.Managers[k]; m.OldList {
		n := *s
		n.Managers[k].OldList, n.Managers[k].Old = false, [services]Listed{}
		w.listed(&n, k, m.Old, Step{Who: actor(k), Does: "lists the services, and gets the older list"})
	}
}

func (w *world) listed(s *State, k uint8, list [services]Listed, step Step) {
	n := *s
	me := &n.Managers[k]
	for i := range uint8(services) {
		me.Plan[i] = w.plan(s, k, i, &list[i])
	}
	me.Stage = write
	if w.rules.RenewAfterList {
		me.Stage = renew
	}
	w.emit(&n, step)
}

// plan is the next request that a service needs.
func (w *world) plan(s *State, k, service uint8, v *Listed) Write {
	m := &s.Managers[k]
	command := w.scenario.History[m.Command]
	if command.Kind == Scale && command.Scaled != service && !m.Sweep {
		return Write{}
	}
	to := Write{Service: service, Label: m.Command, By: k, Current: v.SameVersion}
	want := w.scenario.wants(m.Command, int(service))
	switch {
	case want == 0 && !v.Exists:
		return Write{}
	case want == 0 && w.rules.Tombstone && !v.Tombstone:
		to.Kind = tombstone
	case want == 0, v.Tombstone && w.rules.NoRevival:
		to.Kind, to.Current = removeService, v.SameID
	case !v.Exists:
		to.Kind, to.Current = createService, true
	case v.Tombstone: // only without rule NoRevival
		to.Kind = updateService
	case v.Label == m.Command && !w.rules.Leave.Nothing, m.Sweep && v.RolledBack && w.rules.LeaveRollbacks, w.mayLeave(s, k, service, v):
		return Write{}
	default:
		to.Kind = updateService
	}
	return to
}

// mayLeave is the rule for a service that needs no write. Whoever has lost the claim does not know what the head says and may leave nothing.
func (w *world) mayLeave(s *State, k, service uint8, v *Listed) bool {
	m, rule := &s.Managers[k], w.rules.Leave
	if rule.Nothing || w.scenario.wants(v.Label, int(service)) != w.scenario.wants(m.Command, int(service)) {
		return false
	}
	if rule.Unconditional {
		return true
	}
	return m.Holds && (m.Sweep || s.Head.PrevOK || !rule.IfPrevOK) && (v.Label == s.Head.Base[service] || !rule.IfBase)
}

// renew proves by compare-and-swap that the claim still holds.
func (w *world) renew(s *State, k uint8) {
	if !s.Managers[k].Holds {
		w.loseClaim(s, k, "the renewal fails")
		return
	}
	if w.findsCancelled(s, k) {
		return
	}
	n := *s
	me := &n.Managers[k]
	me.Stage = write
	if w.rules.RenewBeforeList {
		me.Stage = list
	}
	w.cas(&n, k, Step{Who: actor(k), Does: "renews its claim to", Position: me.Command, Of: true})
}

// write sends one of the planned requests, in any order, or ends the pass when there is none left.
func (w *world) write(s *State, k uint8) {
	m := &s.Managers[k]
	left := false
	for i, planned := range m.Plan {
		if planned.Kind == noWrite {
			continue
		}
		left = true
		if w.rules.CheckBeforeWrite && !m.Holds {
			w.loseClaim(s, k, "the head names another")
			return
		}
		n := *s
		n.send(planned)
		n.Managers[k].Plan[i] = Write{}
		n.Managers[k].Stage = await
		w.emit(&n, Step{Who: actor(k), Does: "sends", Write: planned})
	}
	switch {
	case left:
	case m.Sweep:
		w.endSweep(s, k)
	default:
		w.endWriting(s, k)
	}
}

// answered is the manager's side of a request that has come back. A refusal repeats the pass; after a tombstone comes the removal of what bears it.
func (w *world) answered(n *State, q Write, ok bool) {
	me := &n.Managers[q.By]
	me.Stage = write
	switch {
	case !ok:
		me.Plan = [services]Write{}
		me.Stage = w.passBegins()
	case q.Kind == tombstone:
		q.Kind = removeService
		me.Plan[q.Service] = q
	case q.Kind == removeService && w.scenario.wants(me.Command, int(q.Service)) != 0: // what was tombstoned is gone; make it anew
		me.Plan = [services]Write{}
		me.Stage = w.passBegins()
	}
}

// endWriting moves the head to phase applied.
func (w *world) endWriting(s *State, k uint8) {
	if w.rules.OutcomeInHead && s.Managers[k].Holds && w.findsCancelled(s, k) {
		return
	}
	n := *s
	me := &n.Managers[k]
	me.Stage = watch
	step := Step{Who: actor(k), Does: "has written all of", Position: me.Command, Of: true}
	if !w.rules.OutcomeInHead {
		w.emit(&n, step)
		return
	}
	if !me.Holds {
		w.loseClaim(s, k, "all is written, but the head has another owner")
		return
	}
	n.Head.Phase = applied
	n.Written |= 1 << me.Command
	w.cas(&n, k, step)
}
