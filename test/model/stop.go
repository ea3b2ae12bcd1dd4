package model

// mayStop says whether a command may be cancelled, or run out of time before it is applied. The last one may not, so that there is a target.
func (w *world) mayStop(command Position) bool {
	return !w.scenario.NoCancel && command != w.scenario.last()
}

// cancel: an operator has the command at work cancelled, by any manager: its id is put into the head by compare-and-swap. The claim's holder stays its holder; its next
// compare-and-swap fails once, and it sees the cancellation.
//
// This is a step of its own only within the budget Cancels. Otherwise it is one with the step that first looks for it - of the holder, or of who takes the claim over - because
// nothing that happens between the two can see it (cancelledNow). What nobody has begun is not cancelled here: its claim ends it without a write, as it does one
// that has expired, and the two are one step (expire). What is superseded already stays so.
func (w *world) cancel(s *State) {
	c := s.Head.Position
	if s.Left.Cancels == 0 || !w.mayBeCancelled(s, c) {
		return
	}
	n := *s
	n.Left.Cancels--
	n.Told |= 1 << c
	step := Step{Who: operator, Does: "has cancelled", Position: c, Of: true}
	if w.rules.CancelInHead {
		n.Head.Cancelled |= 1 << c
		w.emit(&n, step)
		return
	}
	for k := range n.Managers { // only without the rule: whoever works on it keeps it in mind
		m := n.Managers[k]
		if m.Command != c || m.Sweep || m.Stage != write && m.Stage != watch {
			continue
		}
		n := n
		n.Managers[k].stop(cancelled)
		w.emit(&n, step)
	}
}

func (w *world) mayBeCancelled(s *State, c Position) bool {
	return c > w.scenario.Start && c == s.Head.Position && w.mayStop(c) && s.Head.Outcome[c] == undecided && s.Told&(1<<c) == 0
}

// isCancelled says whether the head names the command as cancelled.
func (s *State) isCancelled(c Position) bool { return s.Head.Cancelled&(1<<c) != 0 }

// cancelledNow are the states in which a command that is looked at is cancelled: this one, if it was, or as it becomes when that has just happened.
func (w *world) cancelledNow(s *State, c Position) (State, bool) {
	n := *s
	if s.isCancelled(c) {
		return n, true
	}
	if w.separate || !w.mayBeCancelled(s, c) {
		return n, false
	}
	n.Told |= 1 << c
	n.Head.Cancelled |= 1 << c
	return n, true
}

func (m *Manager) stop(as Outcome) {
	m.Plan = [services]Write{}
	m.Stopped, m.Stage = as, watch
}

// findsCancelled: at its compare-and-swap the claim's holder finds that the command is cancelled. It reports whether there is no other way.
func (w *world) findsCancelled(s *State, k uint8) bool {
	m := &s.Managers[k]
	if m.Sweep {
		return false
	}
	n, cancelledBefore := w.cancelledNow(s, m.Command)
	if !cancelledBefore {
		return false
	}
	n.Managers[k].stop(cancelled)
	w.emit(&n, Step{Who: actor(k), Does: "finds cancelled", Position: m.Command, Of: true})
	return s.isCancelled(m.Command)
}

// notice: the holder looks at the head, or its command's time is over; it stops writing. A request that is under way stays so, and nobody waits for it any more.
func (w *world) notice(s *State, k uint8) {
	m := &s.Managers[k]
	if m.Sweep || !m.Holds || !w.mayStop(m.Command) {
		return
	}
	if n, is := w.cancelledNow(s, m.Command); is {
		n.orphan(k)
		n.Managers[k].stop(cancelled)
		w.emit(&n, Step{Who: actor(k), Does: "notices that it is cancelled:", Position: m.Command, Of: true})
	}
	if m.Stage == write && s.Left.Cuts > 0 && !s.isCancelled(m.Command) {
		n := *s
		n.Left.Cuts--
		n.Managers[k].stop(cut)
		w.emit(&n, Step{Who: actor(k), Does: "has no time left for", Position: m.Command, Of: true, Fault: true})
	}
}
