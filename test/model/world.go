package model

// world is a scenario under a set of rules; it knows which steps are possible in a state.
type world struct {
	rules     Rules
	scenario  *Scenario
	partition []Position
	separate  bool         // a cancellation is a step of its own
	out       []transition // of the state in hand
}

func newWorld(r Rules, c *Scenario, f Faults) world {
	return world{rules: r, scenario: c, partition: c.partition(), separate: f.Cancels > 0}
}

// steps are all transitions out of a state. The slice is used again by the next call.
func (w *world) steps(s *State) []transition {
	w.out = w.out[:0]
	w.assign(s)
	w.resetOffset(s)
	w.cancel(s)
	for i := range s.Flying {
		w.land(s, i)
	}
	for i := range uint8(services) {
		w.endRollOut(s, i)
		w.rollBack(s, i)
	}
	for k := range uint8(managers) {
		w.crash(s, k)
		w.noticeLeft(s, k)
		w.publishOutbox(s, k)
		w.fallBehind(s, k)
		switch s.Managers[k].Stage {
		case idle:
			w.claim(s, k)
			w.sweep(s, k)
		case claim:
			w.claim(s, k)
		case list:
			w.list(s, k)
		case renew:
			w.renew(s, k)
		case write:
			w.notice(s, k)
			w.write(s, k)
		case watch:
			w.decide(s, k)
		case record:
			w.recordLate(s, k)
		case publish:
			w.publish(s, k)
		case commit:
			w.commit(s, k)
		case await: // the answer is Swarm's step
			w.notice(s, k)
		}
	}
	return w.out
}

// emit adds a transition. The caller's copy of the state is the next one.
func (w *world) emit(next *State, step Step) *transition {
	w.out = append(w.out, transition{step: step, next: *next})
	t := &w.out[len(w.out)-1]
	t.next.canonical()
	return t
}

// cas adds a compare-and-swap of the head that succeeds - and, as a fault, one that succeeds and is answered with an error: its sender looks at the head
// again. The nonce in the head spares it that detour; the model takes it always.
func (w *world) cas(next *State, k uint8, step Step) {
	w.emit(next, step)
	if next.Left.Ambiguous == 0 {
		return
	}
	again := *next
	again.Left.Ambiguous--
	lose(&again.Managers[k])
	step.Note, step.Fault = "it takes effect, and is answered with an error", true
	w.emit(&again, step)
}
