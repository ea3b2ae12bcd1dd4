package model

// Property is one of the things that must hold, a bit each.
type Property uint16

// The properties. What "at rest" means: no step is possible except faults.
const (
	AtRest        Property = 1 << iota // P1 at rest the services are what the last position wants, but for what Swarm rolled back
	NoLateEffect                       // P2 no update, tombstone or removal of an older position takes effect after a newer one's outcome
	NoLateCreate                       // P2 for creates, which the protocol does not promise: one may exist until the sweep
	OneOutcome                         // P3 one outcome a command
	NothingLost                        // P4 at rest every command has an outcome, and all are committed unless the committed offset was lost
	HeadAtRest                         // P5 at rest the head is at the last position, decided, and names the label of every service
	Ends                               // P6 without further faults everything comes to rest
	RollbackStays                      // P7 what Swarm rolled back of a position is not written again for it once all was written
	OutcomeTrue                        // P8 at rest "rolled back" was told if and only if a service that the last command wrote stands rolled back, unless it failed
	CancelStays                        // P9 a command whose cancellation was acknowledged before it had an outcome has no other outcome than that, but superseded

	// Promised is what the protocol promises: all but NoLateCreate.
	Promised = CancelStays<<1 - 1 - NoLateCreate
)

var propertyNames = []struct {
	Property
	short, text string
}{
	{AtRest, "P1", "at rest the services are what the last generation wants"},
	{NoLateEffect, "P2", "no update or removal of an older generation takes effect after a newer one's outcome"},
	{NoLateCreate, "P2c", "no create of an older generation takes effect after a newer one's outcome (not promised)"},
	{OneOutcome, "P3", "one outcome a command"},
	{NothingLost, "P4", "nothing lost"},
	{HeadAtRest, "P5", "at rest the head is at the last generation, decided, and names the services' labels"},
	{Ends, "P6", "everything comes to rest"},
	{RollbackStays, "P7", "what Swarm rolled back is not repaired"},
	{OutcomeTrue, "P8", "the outcome is true at rest"},
	{CancelStays, "P9", "what was cancelled stays cancelled"},
}

// String lists the properties of a set by their short names.
func (p Property) String() string {
	text := ""
	for _, n := range propertyNames {
		if p&n.Property != 0 {
			text += " " + n.short
		}
	}
	if text == "" {
		return "none"
	}
	return text[1:]
}

// Text is the sentence of a single property.
func (p Property) Text() string {
	for _, n := range propertyNames {
		if p == n.Property {
			return n.text
		}
	}
	return p.String()
}

// brokenByStep are the properties that a step breaks.
func brokenByStep(t *transition) (p Property) {
	switch t.late {
	case noWrite:
	case createService:
		p |= NoLateCreate
	default:
		p |= NoLateEffect
	}
	if t.repairs {
		p |= RollbackStays
	}
	return p
}

// brokenAnywhere are the properties that a state breaks by itself.
func (w *world) brokenAnywhere(s *State) (p Property) {
	for c, told := range s.Events {
		if told&(told-1) != 0 {
			p |= OneOutcome
		}
		if s.Told&(1<<c) != 0 && told&^(1<<cancelled|1<<superseded) != 0 {
			p |= CancelStays
		}
	}
	return p
}

// brokenAtRest are the properties that a state breaks in which nothing more happens by itself.
func (w *world) brokenAtRest(s *State, resets uint8) (p Property) {
	if !w.servicesRight(s) {
		p |= AtRest
	}
	last := w.scenario.last()
	if int(s.Committed) != len(w.partition) && s.Left.OffsetResets == resets {
		p |= NothingLost
	}
	for c := w.scenario.Start + 1; c <= last; c++ {
		if s.Events[c] == 0 {
			p |= NothingLost
		}
	}
	if s.Head.Position != last || s.Head.Phase != decided || !w.labelsNamed(s) {
		p |= HeadAtRest
	}
	if o := s.Head.Outcome[last]; w.standsRolledBack(s) != (o == rolledBack) && o != failed {
		p |= OutcomeTrue
	}
	return p
}

func (w *world) servicesRight(s *State) bool {
	for i, v := range s.Services {
		if !w.bound(s, i) {
			continue
		}
		want := w.scenario.wants(w.scenario.last(), i)
		if v.Exists != (want != 0) || v.Tombstone {
			return false
		}
		if v.Exists && !v.RolledBack && w.scenario.wants(v.Label, i) != want {
			return false
		}
	}
	return true
}

func (w *world) labelsNamed(s *State) bool {
	for i, v := range s.Services {
		if w.bound(s, i) && v.Exists && !v.RolledBack && v.Label != s.Head.Base[i] {
			return false
		}
	}
	return true
}

func (w *world) standsRolledBack(s *State) bool {
	for i, v := range s.Services {
		if v.Exists && v.RolledBack && w.wrote(w.scenario.last(), i) {
			return true
		}
	}
	return false
}

// bound says that the last position has a target for the service. After a scaling on top of a deployment that was stopped only the scaled service has one.
func (w *world) bound(s *State, service int) bool {
	last := w.scenario.last()
	return w.wrote(last, service) || s.Head.Outcome[w.scenario.deployOf(last)].whole()
}
