package model

import "fmt"

// Kind is what a command does.
type Kind uint8

// The kinds of commands. StackRollback is a Deploy of an older specification.
const (
	Deploy Kind = iota
	Remove
	Scale
)

// Command is one place in the history: what the services shall be from then on.
type Command struct {
	Kind             Kind
	Generation, Step int
	Target           [services]uint8 // the wanted specification of each service, a number; 0 = no such service
	Scaled           uint8           // the service that a Scale writes
}

// String is the command's generation, with its step if it has one: "2", "2/1".
func (c Command) String() string {
	if c.Step > 0 {
		return fmt.Sprintf("%d/%d", c.Generation, c.Step)
	}
	return fmt.Sprint(c.Generation)
}

// Scenario is a history of commands, the first ones of which are over when the search begins.
type Scenario struct {
	Name, About string
	History     []Command
	Start       Position   // the last command that is over
	Ended       Outcome    // how Start ended
	Running     Position   // the position whose services are there at the start
	RollingOut  bool       // Start's update of service b is being rolled out; a rollback brings the position before back
	InFlight    []Write    // requests of dead managers that are still on their way
	Delivered   []Position // the partition: what is delivered, in this order; nil means each command after Start, once
	NoCancel    bool       // no command is ever cancelled
}

// last is the position at which everything must end.
func (c *Scenario) last() Position { return Position(len(c.History) - 1) }

// partition is the messages of the topic, the first at offset 0.
func (c *Scenario) partition() []Position {
	if c.Delivered != nil {
		return c.Delivered
	}
	return []Position{c.Start + 1, c.Start + 2}
}

// deployOf is the deployment (or removal) that a position belongs to: itself, or the one that a scaling is a step of.
func (c *Scenario) deployOf(p Position) Position {
	for p > 0 && c.History[p].Kind == Scale {
		p--
	}
	return p
}

// wants is the specification that a position wants of a service, 0 for none.
func (c *Scenario) wants(p Position, service int) uint8 { return c.History[p].Target[service] }

// history builds the commands of a scenario: generation 0, 1, ... with the scalings as steps between them.
func history(steps ...func([]Command) Command) []Command {
	var h []Command
	for _, s := range steps {
		h = append(h, s(h))
	}
	return h
}

func nextGeneration(h []Command) int {
	if len(h) == 0 {
		return 0
	}
	return h[len(h)-1].Generation + 1
}

func deploy(a, b uint8) func([]Command) Command {
	return func(h []Command) Command {
		return Command{Kind: Deploy, Generation: nextGeneration(h), Target: [services]uint8{a, b}}
	}
}

func remove(h []Command) Command { return Command{Kind: Remove, Generation: nextGeneration(h)} }

// scale is a step within the generation before it: the same target but for one service.
func scale(service, specification uint8) func([]Command) Command {
	return func(h []Command) Command {
		c := h[len(h)-1]
		c.Kind, c.Step, c.Scaled = Scale, c.Step+1, service
		c.Target[service] = specification
		return c
	}
}

const serviceA, serviceB = 0, 1

// Scenarios are the histories that are tried. Two commands are to come in each.
func Scenarios() []Scenario {
	lateUpdate := func(service uint8, p Position) []Write {
		return []Write{{Kind: updateService, Service: service, Label: p, By: orphan, Current: true}}
	}
	return []Scenario{
		{Name: "stale-create", About: "1 adds b, 2 drops it again", History: history(deploy(1, 0), deploy(2, 2), deploy(3, 0))},
		{Name: "stale-remove", About: "1 drops b, 2 brings it back", History: history(deploy(1, 1), deploy(2, 0), deploy(3, 3))},
		{Name: "back", About: "b changes in 1 and is in 2 what it was in 0", History: history(deploy(1, 1), deploy(2, 2), deploy(3, 1))},
		{Name: "identical", About: "2 is the same as 1", History: history(deploy(1, 1), deploy(2, 1), deploy(2, 1))},
		{Name: "same-change", About: "b changes in 1 and stays so in 2", History: history(deploy(1, 1), deploy(2, 2), deploy(3, 2))},
		{Name: "drop-and-return", About: "1 drops b, 2 is the same as 0", History: history(deploy(1, 1), deploy(1, 0), deploy(1, 1))},
		{
			Name: "drop-and-return-late", About: "the same, with a create of 0 still in flight", History: history(deploy(1, 1), deploy(1, 0), deploy(1, 1)),
			InFlight: []Write{{Kind: createService, Service: serviceB, Label: 0, By: orphan, Current: true}},
		},
		{Name: "overtaken", About: "2 is delivered before 1", History: history(deploy(1, 1), deploy(2, 2), deploy(2, 3)), Delivered: []Position{2, 1}},
		{Name: "repeated", About: "1 is delivered again after 2", History: history(deploy(1, 1), deploy(2, 2), deploy(2, 3)), Delivered: []Position{1, 2, 1}},
		{
			Name: "cancelled-in-flight", About: "1 was cancelled and its update of b is in flight; 2 and 3 want b as it was", Start: 1, Ended: cancelled,
			History: history(deploy(1, 1), deploy(2, 3), deploy(2, 1), deploy(2, 1)), InFlight: lateUpdate(serviceB, 1),
		},
		{Name: "remove", About: "1 deploys, 2 removes the stack", History: history(deploy(1, 1), deploy(2, 1), remove)},
		{Name: "remove-and-deploy", About: "1 removes the stack, 2 deploys it again", History: history(deploy(1, 1), remove, deploy(1, 2))},
		{Name: "scale", About: "1 changes a, 1/1 scales b", History: history(deploy(1, 1), deploy(2, 1), scale(serviceB, 2))},
		{Name: "scale-and-deploy", About: "0/1 scales b, 1 is the same as 0", History: history(deploy(1, 1), scale(serviceB, 2), deploy(1, 1))},
		{
			Name: "scale-after-cancel", About: "1 was cancelled and its update of a is in flight; 1/1 scales b; 2 wants a as it was", Start: 1, Ended: cancelled,
			History: history(deploy(1, 1), deploy(2, 1), scale(serviceB, 2), deploy(1, 2)), InFlight: lateUpdate(serviceA, 1),
		},
		{Name: "roll-out", About: "b changes in 1 and in 2", History: history(deploy(1, 1), deploy(1, 2), deploy(1, 3))},
		{
			Name: "remove-in-roll-out", About: "1's update of b is being rolled out; 2 drops b, 3 brings it back", Start: 1, Ended: failed, Running: 1, RollingOut: true,
			History: history(deploy(1, 1), deploy(1, 2), deploy(1, 0), deploy(1, 3)),
		},
	}
}

// ScenarioByName finds one.
func ScenarioByName(name string) (Scenario, bool) {
	for _, s := range Scenarios() {
		if s.Name == name {
			if s.Ended == undecided {
				s.Ended = converged
			}
			return s, true
		}
	}
	return Scenario{}, false
}

// initial is the state in which the search begins: generation Start is over, manager 0 consumes the partition, manager 1 has not joined.
func (c *Scenario) initial(f Faults) State {
	s := State{Group: 1, Left: f}
	s.Head.Position, s.Head.Trusted = c.Start, c.Ended == converged
	for p := Position(0); p < c.Start; p++ {
		s.Head.Outcome[p] = converged
	}
	s.Head.Outcome[c.Start] = c.Ended
	for i := range s.Services {
		s.Head.Base[i] = nowhere
		if c.wants(c.Running, i) != 0 {
			s.Services[i] = Service{Exists: true, Label: c.Running}
			s.Head.Base[i] = c.Running
		}
	}
	if c.RollingOut {
		s.Services[serviceB].RollingOut, s.Services[serviceB].Previous = true, c.Running-1
	}
	for _, w := range c.InFlight {
		s.send(w)
	}
	s.Managers[0].Member, s.Managers[0].Group = true, 1
	s.canonical()
	return s
}
