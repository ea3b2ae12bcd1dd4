package model

// decide chooses the outcome - converged only if no roll-out is still running, rolled back if Swarm did that - and records it in the head.
func (w *world) decide(s *State, k uint8) {
	m := &s.Managers[k]
	if w.rules.OutcomeInHead && !m.Holds {
		w.loseClaim(s, k, "the outcome is not its to decide")
		return
	}
	if _, now := w.cancelledNow(s, m.Command); now && w.rules.DecisionSeesCancel && m.Stopped == undecided && !s.isCancelled(m.Command) {
		w.findsCancelled(s, k)
	}
	for _, o := range w.possible(s, m) {
		n := *s
		me := &n.Managers[k]
		step := Step{Who: actor(k), Does: "decides the outcome of", Position: m.Command, Of: true, Note: outcomeNames[o]}
		if !w.rules.OutcomeInHead {
			me.OutboxOf, me.Outbox, me.Stage = m.Command, o, record
			step.Does = "puts into its outbox the outcome of"
			w.emit(&n, step)
			continue
		}
		me.Stage, me.Ended, me.Holds, me.Stopped = publish, o, false, undecided
		w.conclude(&n, m.Command, o)
		w.cas(&n, k, step)
	}
}

var (
	outcomesCancelled  = []Outcome{cancelled}
	outcomesCut        = []Outcome{cut}
	outcomesRolledBack = []Outcome{rolledBack}
	outcomesRunning    = []Outcome{failed} // the time is over
	outcomesDone       = []Outcome{converged, failed}
)

// possible are the outcomes that the owner may come to by looking at the services.
func (w *world) possible(s *State, m *Manager) []Outcome {
	running, back := false, false
	for i, v := range s.Services {
		if w.wrote(m.Command, i) {
			running = running || v.RollingOut
			back = back || v.RolledBack
		}
	}
	switch {
	case m.Stopped == cancelled, w.rules.DecisionSeesCancel && s.isCancelled(m.Command):
		return outcomesCancelled
	case m.Stopped == cut:
		return outcomesCut
	case back:
		return outcomesRolledBack
	case running:
		return outcomesRunning
	}
	return outcomesDone
}

// wrote says whether a command had anything to do with a service.
func (w *world) wrote(p Position, service int) bool {
	c := w.scenario.History[p]
	return c.Kind != Scale || int(c.Scaled) == service
}

// conclude is what the head says after an outcome.
func (w *world) conclude(n *State, p Position, o Outcome) {
	head := &n.Head
	head.Phase = decided
	if head.Outcome[p] == undecided {
		head.Outcome[p] = o
	}
	head.Trusted = o == converged && (w.scenario.History[p].Kind != Scale || head.PrevOK || !w.rules.ScaleKeepsDoubt)
	head.PrevOK = false
	head.Cancelled &^= 1 << p
	if o == cancelled {
		return
	}
	w.rebase(n, p)
	if o == cut {
		return
	}
	n.Whole |= 1 << p
	if w.scenario.History[p].Kind == Remove && !w.rules.HeadOutlivesStack {
		*head = Head{Base: [services]Position{nowhere, nowhere}}
	}
}

// rebase sets the label under which the head knows each service: this position's where it was written, the old one where it was left alone.
func (w *world) rebase(n *State, p Position) {
	for i, v := range n.Services {
		switch {
		case w.scenario.wants(p, i) == 0 && (!v.Exists || n.Head.Outcome[p] != cut):
			n.Head.Base[i] = nowhere
		case v.Exists && v.Label == p:
			n.Head.Base[i] = p
		}
	}
}

// recordLate tells the head of an outcome that is in the outbox already; only without rule OutcomeInHead.
func (w *world) recordLate(s *State, k uint8) {
	n := *s
	me := &n.Managers[k]
	me.Stage = publish
	if me.Holds {
		w.conclude(&n, me.Command, me.Outbox)
	}
	w.emit(&n, Step{Who: actor(k), Does: "tells the head the outcome of", Position: me.Command, Of: true})
}

// publish sends the outcome's event, which Kafka acknowledges.
func (w *world) publish(s *State, k uint8) {
	n := *s
	me := &n.Managers[k]
	p, o := me.Command, me.Ended
	if me.OutboxOf != 0 {
		p, o = me.OutboxOf, me.Outbox
		me.OutboxOf, me.Outbox = 0, undecided
	}
	n.Events[p] |= 1 << o
	me.Stage = commit
	w.emit(&n, Step{Who: actor(k), Does: "publishes the outcome of", Position: p, Of: true, Note: outcomeNames[o]})
}

// publishOutbox: a restarted manager sends what its outbox holds; only without rule OutcomeInHead, under which the outbox holds what the head says.
func (w *world) publishOutbox(s *State, k uint8) {
	m := &s.Managers[k]
	if m.OutboxOf == 0 || m.Stage != idle {
		return
	}
	n := *s
	me := &n.Managers[k]
	n.Events[m.OutboxOf] |= 1 << m.Outbox
	me.OutboxOf, me.Outbox = 0, undecided
	w.emit(&n, Step{Who: actor(k), Does: "publishes from its outbox the outcome of", Position: m.OutboxOf, Of: true, Note: outcomeNames[m.Outbox]})
}

// commit moves the committed offset, if the group generation is still the one in which the command was delivered.
func (w *world) commit(s *State, k uint8) {
	m := &s.Managers[k]
	n := *s
	me := &n.Managers[k]
	p := me.Command
	me.rest()
	step := Step{Who: actor(k), Does: "commits the offset of", Position: p, Of: true}
	if m.Member && m.Group == s.Group && int(m.Offset) < len(w.partition) && p == w.partition[m.Offset] {
		me.Offset++
		n.Committed = me.Offset
	} else {
		me.Member = me.Member && m.Group == s.Group
		step.Does = "may not commit the offset of"
	}
	w.emit(&n, step)
}
