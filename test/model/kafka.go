package model

// assign gives the partition to a manager: because its consumer is gone, or, as a fault, although it lives. The former one does not know until it notices.
func (w *world) assign(s *State) {
	current := &s.Managers[s.Assigned]
	alive := current.Member && current.Group == s.Group
	for k := range uint8(managers) {
		if alive && (s.Left.Rebalances == 0 || k == s.Assigned) {
			continue
		}
		n := *s
		step := Step{Who: kafka, Does: assignNames[k], Note: "delivery begins at the committed offset"}
		if alive {
			n.Left.Rebalances--
			step.Fault = true
		}
		n.Group++
		n.Assigned = k
		m := &n.Managers[k]
		m.Member, m.Group, m.Offset = true, n.Group, n.Committed
		w.emit(&n, step)
	}
}

var assignNames = [managers]string{"assigns the partition to m0", "assigns the partition to m1"}

// resetOffset loses the committed offset: the topic was deleted and made again, or the offset has expired.
func (w *world) resetOffset(s *State) {
	if s.Left.OffsetResets == 0 || s.Committed == 0 {
		return
	}
	n := *s
	n.Left.OffsetResets--
	n.Committed = 0
	w.emit(&n, Step{Who: kafka, Does: "loses the committed offset", Fault: true})
}
