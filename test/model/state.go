package model

// The size of the modelled world.
const (
	managers    = 2
	services    = 2
	maxHistory  = 5 // commands of a scenario, those before its start included
	maxInFlight = 6 // writes on their way: one a living manager, the rest of the dead and of commands that were cancelled
)

// Position is a place in the stack's history: generation and step. It is an index into Scenario.History, so that a later command has a larger one. A service's
// label axion.generation holds one.
type Position uint8

// nowhere is the position of what the head does not name.
const nowhere Position = 15

// Service is one service as Swarm's store has it. Its version and its id are not numbers here: whoever has listed them carries a flag that says whether they
// are still the current ones, which is all that a comparison would tell.
type Service struct {
	Exists     bool
	Tombstone  bool     // labelled for removal
	Label      Position // whose specification is in force
	RollingOut bool     // tasks are being replaced; Swarm may still roll it back
	Previous   Position // whose specification a rollback restores, while RollingOut
	RolledBack bool     // the update status says rollback_*
	Undone     Position // whose specification was rolled back, while RolledBack
}

// WriteKind is a kind of request that changes a service.
type WriteKind uint8

const (
	noWrite       WriteKind = iota
	updateService           // conditional: takes effect only on the version that was listed
	tombstone               // an update too: the label first, then the removal
	removeService           // by id: takes effect on the listed service whatever its version
	createService           // unconditional: takes effect if no service has the name
)

// orphan is the sender of a write whose sender has died.
const orphan uint8 = managers

// Write is a request on its way to Swarm, or one that a manager means to send.
type Write struct {
	Kind    WriteKind
	Service uint8
	Label   Position // on whose behalf
	By      uint8    // manager, or orphan
	Current bool     // would still take effect: the listed version is the current one (removal: the listed id)
}

// Phase is how far the head's position has come.
type Phase uint8

const (
	decided  Phase = iota // it has an outcome, and nobody is writing
	applying              // a command or a sweep is writing
	applied               // all is written; its owner watches the tasks
)

// Outcome is how a command ended.
type Outcome uint8

const (
	undecided Outcome = iota
	converged
	failed // applied in whole, but did not converge in its time
	superseded
	cancelled // stopped, at any point
	rolledBack
	expired // its deadline had passed before anybody began it
	cut     // its time was over before it was applied in whole
)

// Head is the one object of a stack on which the managers agree; each change of it is a compare-and-swap.
type Head struct {
	Position Position
	Phase    Phase
	Group    uint8               // Kafka group generation of the claim's holder
	Base     [services]Position  // label under which each service was last written by a position that is decided
	Trusted  bool                // Base may be relied on: the position converged, having written or rightly left every service
	PrevOK   bool                // when this position was claimed for the first time, the one before was at rest and Trusted
	Outcome  [maxHistory]Outcome // of each command
	// Cancelled are the commands that are to end as cancelled and have no outcome yet, one bit each.
	Cancelled uint8
}

// Stage is where a manager is in a command's life.
type Stage uint8

const (
	idle    Stage = iota
	claim         // has a command, and must look at the head
	list          // must list the services
	renew         // must renew the claim
	write         // may send what is planned
	await         // a write is on its way
	watch         // all is written
	record        // only without rule 7: the head is told after the outbox
	publish       // the outcome is decided
	commit        // the outcome is told
)

var stageNames = [...]string{"idle", "claiming", "listing", "renewing", "writing", "waiting for an answer", "watching", "recording", "publishing", "committing"}

// Manager is one agent on a manager node with the engine beside it. All that the agent knows is lost in a crash, except the outbox.
type Manager struct {
	Stage   Stage
	Command Position
	Sweep   bool            // works on the sweep of Command, not on Command itself
	Stopped Outcome         // Command is to end so, because it was cancelled or its time is over
	Holds   bool            // nobody has changed the head since this manager's last compare-and-swap
	Plan    [services]Write // what is left to write in this pass
	Ended   Outcome         // of Command, from publish on

	Member bool  // believes to be the partition's consumer
	Group  uint8 // in this group generation
	Offset uint8 // of the next message

	OldList bool             // the engine beside it will once more answer with the list that it had at some earlier time
	Old     [services]Listed // that list

	OutboxOf Position // only without rule 7: the command whose outcome waits in the outbox, which survives a crash
	Outbox   Outcome
}

// Listed is a service as a list shows it.
type Listed struct {
	Service
	SameVersion bool // the version listed is still the current one
	SameID      bool // the id listed is still there
}

// Faults is how often each fault may still happen.
type Faults struct {
	Rebalances   uint8 // the partition goes to the other manager although this one lives
	Crashes      uint8 // a manager loses all that it knows
	OffsetResets uint8 // the committed offset is lost; delivery begins again
	Ambiguous    uint8 // a write or compare-and-swap takes effect and is answered with an error
	OldLists     uint8 // an engine answers with a list of some earlier time
	Rollbacks    uint8 // Swarm rolls a service back
	Cuts         uint8 // the time of a command is over while it is written
	Cancels      uint8 // an operator cancels a command, as a step of its own
}

// State is everything at one moment. Two equal states have the same future.
type State struct {
	Services [services]Service
	Head     Head
	InFlight [maxInFlight]Write
	Flying   uint8 // how many of InFlight
	Managers [managers]Manager

	Assigned  uint8 // the partition's consumer, as the group's coordinator sees it
	Group     uint8 // its group generation
	Committed uint8 // the offset of the message with which delivery begins after an assignment

	Left Faults

	// What an observer remembers and no manager knows.
	Events  [maxHistory]uint8 // the outcomes told of each command, one bit each
	Whole   uint8             // positions that were decided after they had been applied in whole, one bit each
	Written uint8             // positions that have been in phase applied, one bit each
	Told    uint8             // commands whose cancellation was acknowledged before they had an outcome, one bit each
}

// changeVersion makes every listed version of the service an old one.
func (s *State) changeVersion(service uint8) {
	s.outdate(service, func(k WriteKind) bool { return k == updateService || k == tombstone })
	for k := range s.Managers {
		s.Managers[k].Old[service].SameVersion = false
	}
}

// changeID is what a removal does: nothing that was listed of the service has a future.
func (s *State) changeID(service uint8) {
	s.outdate(service, func(k WriteKind) bool { return k != createService })
	for k := range s.Managers {
		s.Managers[k].Old[service].SameVersion, s.Managers[k].Old[service].SameID = false, false
	}
}

func (s *State) outdate(service uint8, hit func(WriteKind) bool) {
	for k := range s.Managers {
		if w := &s.Managers[k].Plan[service]; hit(w.Kind) {
			w.Current = false
		}
	}
	for i := range s.Flying {
		if w := &s.InFlight[i]; w.Service == service && hit(w.Kind) {
			w.Current = false
		}
	}
}

// holds makes manager k the one whose compare-and-swap was the last.
func (s *State) holds(k uint8) {
	for i := range s.Managers {
		s.Managers[i].Holds = uint8(i) == k
	}
}

// rest forgets the command in hand.
func (m *Manager) rest() {
	*m = Manager{Member: m.Member, Group: m.Group, Offset: m.Offset, OldList: m.OldList, Old: m.Old, OutboxOf: m.OutboxOf, Outbox: m.Outbox}
}

func (s *State) send(w Write) {
	s.InFlight[s.Flying] = w
	s.Flying++
}

func (s *State) take(i uint8) Write {
	w := s.InFlight[i]
	copy(s.InFlight[i:], s.InFlight[i+1:s.Flying])
	s.Flying--
	s.InFlight[s.Flying] = Write{}
	return w
}

// canonical gives states that differ in nothing that matters the same form: writes in flight are a set, one that nobody waits for and that can no longer
// take effect is gone, and a roll-out that can no longer be rolled back is over.
func (s *State) canonical() {
	for i := uint8(0); i < s.Flying; {
		if w := s.InFlight[i]; w.By == orphan && !w.Current && w.Kind != createService {
			s.take(i)
			continue
		}
		i++
	}
	for i := 1; i < int(s.Flying); i++ {
		for j := i; j > 0 && s.InFlight[j].order() < s.InFlight[j-1].order(); j-- {
			s.InFlight[j], s.InFlight[j-1] = s.InFlight[j-1], s.InFlight[j]
		}
	}
	if s.Left.Rollbacks == 0 {
		for i := range s.Services {
			s.Services[i].RollingOut, s.Services[i].Previous = false, 0
		}
	}
}

func (w Write) order() uint32 {
	n := uint32(w.Kind)<<16 | uint32(w.Service)<<12 | uint32(w.Label)<<8 | uint32(w.By)<<4
	if w.Current {
		n++
	}
	return n
}
