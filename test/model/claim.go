package model

// claim is the first thing done with a command: look at the head and change it by compare-and-swap. Reading and changing are one step here, because a swap
// that fails changes nothing and leads back to reading.
func (w *world) claim(s *State, k uint8) {
	m := &s.Managers[k]
	command := m.Command
	if m.Stage == idle {
		if !m.Member || int(m.Offset) == len(w.partition) {
			return
		}
		command = w.partition[m.Offset]
	}
	n := *s
	head, me := &n.Head, &n.Managers[k]
	me.Command = command
	step := Step{Who: actor(k), Position: command, Of: true}
	switch known := head.Outcome[command]; {
	case known != undecided:
		me.Stage, me.Ended = publish, known
		step.Does, step.Note = "takes", "the head knows its outcome"
		w.emit(&n, step)
	case command < head.Position:
		head.Outcome[command] = superseded
		n.holds(k)
		me.Stage, me.Ended, me.Holds = publish, superseded, false
		step.Does, step.Note = "takes", "the head is at a later one; superseded"
		w.cas(&n, k, step)
	case w.rules.GroupGeneration && m.Group < head.Group:
		me.rest()
		me.Member = false
		step.Does, step.Note = "may not claim", "the claim is of a newer group generation"
		w.emit(&n, step)
	default:
		if c, is := w.cancelledNow(&n, command); is {
			w.decideAtOnce(&c, k, command, cancelled)
			step.Does, step.Note = "ends without a write", outcomeNames[cancelled]
			w.cas(&c, k, step)
			step.Note = ""
		}
		if s.isCancelled(command) {
			return
		}
		if command > s.Head.Position && w.mayStop(command) { // by the clock of this manager
			w.expire(*s, k, command)
		}
		w.takeClaim(&n, k, command)
		step.Does = "claims"
		w.cas(&n, k, step)
	}
}

// expire: nobody has begun the command, and its deadline has passed, or it was cancelled.
func (w *world) expire(n State, k uint8, command Position) {
	me := &n.Managers[k]
	me.Command = command
	step := Step{Who: actor(k), Position: command, Of: true, Does: "ends without a write", Note: outcomeNames[expired]}
	if w.rules.ExpiredInHead {
		w.decideAtOnce(&n, k, command, expired)
		w.cas(&n, k, step)
		return
	}
	me.Stage, me.Ended, me.Holds = publish, expired, false
	w.emit(&n, step)
}

// decideAtOnce claims a command and gives it its outcome in the same change. If nobody has begun it the stack is what it was before.
func (w *world) decideAtOnce(n *State, k uint8, command Position, o Outcome) {
	head, me := &n.Head, &n.Managers[k]
	if command > head.Position {
		head.Trusted = head.Trusted && head.Phase == decided || w.rules.UnbegunIsRest
		head.Position = command
	}
	head.Phase, head.Group, head.PrevOK = decided, me.Group, false
	head.Outcome[command] = o
	head.Cancelled &^= 1 << command
	n.holds(k)
	me.Stage, me.Ended, me.Holds = publish, o, false
}

// takeClaim puts a command and its owner into the head. The first claim of a position looks at what it follows, a take-over keeps that.
func (w *world) takeClaim(n *State, k uint8, command Position) {
	head, me := &n.Head, &n.Managers[k]
	if command > head.Position {
		head.PrevOK = head.Trusted && (head.Phase == decided || w.rules.Leave.IfUnfinishedSweep)
		head.Trusted = false
		head.Position, head.Phase = command, applying
	}
	head.Group = me.Group
	n.holds(k)
	if head.Phase == applied && w.rules.WatchApplied {
		me.Stage = watch
		return
	}
	head.Phase = applying
	me.Stage = w.passBegins()
}

// lose is what a manager does whose claim is lost: with a command in hand it looks at the head again, a sweep is given up.
func lose(m *Manager) {
	if m.Sweep || m.Stage == idle {
		m.rest()
		return
	}
	command := m.Command
	m.rest()
	m.Stage, m.Command = claim, command
}

func (w *world) loseClaim(s *State, k uint8, note string) {
	n := *s
	lose(&n.Managers[k])
	w.emit(&n, Step{Who: actor(k), Does: "finds its claim lost", Note: note})
}
