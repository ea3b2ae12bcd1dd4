package model

import "strings"

// land lets a request take effect, or be refused, and answers its sender. As a fault one that took effect is answered with an error.
func (w *world) land(s *State, i uint8) {
	n := *s
	q := n.take(i)
	before := s.Services[q.Service]
	ok := w.apply(&n, q)
	step := Step{Who: swarm, Does: "refuses", Write: q}
	if ok {
		step.Does = "carries out"
	}
	w.note(s, &before, q, ok, w.deliver(&n, q, ok, step))
	if ok && q.By != orphan && s.Left.Ambiguous > 0 {
		n.Left.Ambiguous--
		step.Note, step.Fault = "and answers with an error", true
		w.note(s, &before, q, ok, w.deliver(&n, q, false, step))
	}
}

func (w *world) deliver(n *State, q Write, ok bool, step Step) *transition {
	a := *n
	if q.By != orphan {
		w.answered(&a, q, ok)
	}
	return w.emit(&a, step)
}

// note is what an observer sees in a request that took effect.
func (w *world) note(s *State, before *Service, q Write, ok bool, t *transition) {
	if !ok {
		return
	}
	if w.overtaken(s, q) {
		t.late = q.Kind
		t.step.Note = strings.TrimPrefix(t.step.Note+", late", ", ")
	}
	t.repairs = q.Kind == updateService && before.RolledBack && before.Undone == q.Label && s.Written&(1<<q.Label) != 0
}

// overtaken: a later position that had to do with the service was applied in whole and has its outcome.
func (w *world) overtaken(s *State, q Write) bool {
	for p := q.Label + 1; p <= w.scenario.last(); p++ {
		if s.Whole&(1<<p) != 0 && w.wrote(p, int(q.Service)) {
			return true
		}
	}
	return false
}

// apply is Swarm's store: an update compares the version, a removal only names an id, a create only needs the name to be free.
func (w *world) apply(n *State, q Write) bool {
	v := &n.Services[q.Service]
	old := v.Label
	switch {
	case q.Kind == createService && !v.Exists:
		*v = Service{Exists: true, Label: q.Label}
	case q.Kind == createService, !q.Current:
		return false
	case q.Kind == updateService:
		*v = Service{Exists: true, Label: q.Label}
		if n.Left.Rollbacks > 0 {
			v.RollingOut, v.Previous = true, old
		}
		n.changeVersion(q.Service)
	case q.Kind == tombstone:
		v.Tombstone, v.RolledBack, v.Undone = true, false, 0
		if w.rules.TombstoneStays {
			v.RollingOut = false
		}
		v.Previous = 0
		if v.RollingOut {
			v.Previous = v.Label // the same specification without the tombstone
		}
		n.changeVersion(q.Service)
	case q.Kind == removeService:
		*v = Service{}
		n.changeID(q.Service)
	}
	return true
}

// endRollOut: the tasks of an update run, and it can no longer be rolled back.
func (w *world) endRollOut(s *State, service uint8) {
	if !s.Services[service].RollingOut {
		return
	}
	n := *s
	n.Services[service].RollingOut, n.Services[service].Previous = false, 0
	w.emit(&n, Step{Who: swarm, Does: "ends the roll-out of " + serviceNames[service]})
}

// rollBack: the tasks of an update fail, and Swarm puts back the specification that the update replaced, labels included. The version changes.
func (w *world) rollBack(s *State, service uint8) {
	if s.Left.Rollbacks == 0 || !s.Services[service].RollingOut {
		return
	}
	n := *s
	n.Left.Rollbacks--
	v := &n.Services[service]
	*v = Service{Exists: true, Label: v.Previous, RolledBack: true, Undone: v.Label}
	n.changeVersion(service)
	w.emit(&n, Step{Who: swarm, Does: "rolls back " + serviceNames[service], Fault: true})
}

var serviceNames = [services]string{"a", "b"}

// fallBehind: the engine beside a manager keeps the services as they are now, to answer with them once at any later time. Swarm's reads do not ask the
// quorum: a leader that is one no longer, or a manager that is behind, answers from its memory.
func (w *world) fallBehind(s *State, k uint8) {
	if s.Left.OldLists == 0 || s.Managers[k].OldList {
		return
	}
	n := *s
	n.Left.OldLists--
	m := &n.Managers[k]
	m.OldList = true
	for i, v := range s.Services {
		m.Old[i] = Listed{Service: v, SameVersion: v.Exists, SameID: v.Exists}
		m.Old[i].RollingOut, m.Old[i].Previous = false, 0 // what a plan does not look at
	}
	w.emit(&n, Step{Who: swarm, Does: behindNames[k], Fault: true})
}

var behindNames = [managers]string{"lets the engine of m0 fall behind", "lets the engine of m1 fall behind"}
