package model

// Rules are the protocol's rules, each of which can be taken out. The zero value breaks all of them.
type Rules struct {
	// RenewAfterList: a pass lists the services, then renews the claim by compare-and-swap, then writes with exactly the versions that it listed. A claim
	// that held after the listing proves that nobody had begun a later position when the versions were read.
	RenewAfterList bool
	// RenewBeforeList and CheckBeforeWrite are the two wrong substitutes for it.
	RenewBeforeList, CheckBeforeWrite bool
	// Tombstone: a service is labelled for removal, on the version that was listed, before it is removed by id. Swarm removes without looking at a version.
	Tombstone bool
	// NoRevival: a service with a tombstone is removed and made anew, even if it is wanted again. The removal of the one that was labelled may still be on its way.
	NoRevival bool
	// TombstoneStays: the update that sets a tombstone also sets the failure action to pause. A roll-out that is still running would otherwise go on under
	// the tombstone, and its rollback would take the tombstone off again.
	TombstoneStays bool
	// Sweep: whoever consumes the partition compares the services with the head's target whenever no command is at work, and puts right what differs.
	// Creation is unconditional in Swarm, so that nothing else can undo a late one.
	Sweep bool
	// ResumeSweep: a head that was left applying by a sweep is swept again.
	ResumeSweep bool
	// GroupGeneration: a claimant whose Kafka group generation is lower than the claim's may not take it.
	GroupGeneration bool
	// OutcomeInHead: the outcome is decided by compare-and-swap in the head before it goes to the outbox.
	OutcomeInHead bool
	// CancelInHead: a cancellation is a compare-and-swap of the head, by any manager. Without it only the manager that works on the command knows.
	CancelInHead bool
	// DecisionSeesCancel: the compare-and-swap that decides an outcome looks for a cancellation in the head that it changes.
	DecisionSeesCancel bool
	// ExpiredInHead: that a command's deadline passed before it was begun is decided in the head. Without it each manager goes by its clock.
	ExpiredInHead bool
	// UnbegunIsRest, which is wrong: a command that ends without ever having been begun leaves the stack at rest whatever it was before.
	UnbegunIsRest bool
	// HeadOutlivesStack: StackRemove leaves the head.
	HeadOutlivesStack bool
	// WatchApplied: who takes over in phase applied only watches.
	WatchApplied bool
	// LeaveRollbacks: what Swarm rolled back is an outcome, which the sweep does not put right.
	LeaveRollbacks bool

	// Leave is when an unchanged service may be left unwritten.
	Leave Leave
	// ScaleKeepsDoubt: a scaling that converges makes the head trusted only if it was before; it has written one service and says nothing about the others.
	ScaleKeepsDoubt bool
}

// Leave is the rule for services that need no write. An untouched service is an unfenced one: a late write of an older position still fits its version.
type Leave struct {
	// Nothing: every service is written in every pass, as docker stack deploy does it. All the rest is ignored.
	Nothing bool
	// Unconditional: whenever the specification is the wanted one. All the rest is ignored.
	Unconditional bool
	// IfPrevOK: only if the position before was at rest and converged when this one was claimed for the first time.
	IfPrevOK bool
	// IfUnfinishedSweep: an unfinished sweep counts as being at rest.
	IfUnfinishedSweep bool
	// IfBase: only if the service carries the label under which the head knows it.
	IfBase bool
}

// Protocol is all rules in force.
func Protocol() Rules {
	return Rules{
		RenewAfterList: true, Tombstone: true, NoRevival: true, TombstoneStays: true, Sweep: true, ResumeSweep: true, GroupGeneration: true, OutcomeInHead: true,
		HeadOutlivesStack: true, WatchApplied: true, LeaveRollbacks: true, Leave: Leave{IfPrevOK: true, IfBase: true}, ScaleKeepsDoubt: true,
		CancelInHead: true, DecisionSeesCancel: true, ExpiredInHead: true,
	}
}

// Variant is the protocol with something taken out, and where that must show.
type Variant struct {
	Name, About string
	Rules       Rules
	Shows       []Witness // the protocol itself has none
	Spare       bool      // a rule that another one backs up: nothing breaks as long as that is in force
}

// Witness is a search that must find a property broken.
type Witness struct {
	Breaks   Property
	Scenario string
	Faults   Faults
}

// Variants are the protocol, first, and what is left of it without each rule.
func Variants() []Variant {
	rebalance, rollback := Faults{Rebalances: 1}, Faults{Rollbacks: 1}
	crashed := Faults{Rebalances: 1, Crashes: 1}
	undone := Faults{Rebalances: 1, Rollbacks: 1}
	plain := func(r *Rules) {
		*r = Rules{CancelInHead: true, DecisionSeesCancel: true, ExpiredInHead: true, NoRevival: true, HeadOutlivesStack: true, WatchApplied: true, LeaveRollbacks: true, TombstoneStays: true, ScaleKeepsDoubt: true, Leave: Leave{Nothing: true}}
	}
	without := func(name, about string, out func(*Rules), shows ...Witness) Variant {
		r := Protocol()
		out(&r)
		return Variant{Name: name, About: about, Rules: r, Shows: shows}
	}
	return []Variant{
		{Name: "protocol", About: "all rules in force", Rules: Protocol()},
		without("claim-then-deploy", "the head is claimed once, then all is written as docker stack deploy does it", plain,
			Witness{AtRest, "back", rebalance}, Witness{NoLateEffect, "back", rebalance}, Witness{OneOutcome, "back", rebalance},
			Witness{HeadAtRest, "back", rebalance}, Witness{Ends, "back", rebalance}),
		without("claim-checked", "the same, and the claim is read before each write", func(r *Rules) {
			plain(r)
			r.CheckBeforeWrite, r.GroupGeneration = true, true
		}, Witness{AtRest, "stale-remove", rebalance}, Witness{AtRest, "stale-create", rebalance}, Witness{OneOutcome, "back", rebalance}, Witness{HeadAtRest, "back", crashed}),
		without("no-tombstone", "removal by id alone", func(r *Rules) { r.Tombstone = false }, Witness{NoLateEffect, "stale-remove", rebalance}),
		without("no-tombstone-no-sweep", "the same, and nobody sweeps", func(r *Rules) { r.Tombstone, r.Sweep = false, false },
			Witness{AtRest, "stale-remove", rebalance}, Witness{AtRest, "stale-create", rebalance}),
		without("tombstone-revived", "a service with a tombstone that is wanted again is updated", func(r *Rules) { r.NoRevival = false },
			Witness{NoLateEffect, "stale-remove", rebalance}),
		without("no-sweep", "nobody sweeps", func(r *Rules) { r.Sweep = false }, Witness{AtRest, "stale-create", rebalance}),
		without("sweep-not-resumed", "a sweep that died is left as it is", func(r *Rules) { r.ResumeSweep = false },
			Witness{AtRest, "stale-create", crashed}, Witness{HeadAtRest, "stale-create", crashed}),
		without("cas-before-list", "the claim is renewed before the services are listed", func(r *Rules) { r.RenewAfterList, r.RenewBeforeList = false, true },
			Witness{NoLateEffect, "back", rebalance}),
		without("cas-before-list-no-sweep", "the same, and nobody sweeps", func(r *Rules) {
			r.RenewAfterList, r.RenewBeforeList, r.Sweep = false, true, false
		}, Witness{AtRest, "back", rebalance}),
		without("identical-not-sent", "a service that has the wanted specification is never written", func(r *Rules) { r.Leave = Leave{Unconditional: true} },
			Witness{NoLateEffect, "back", crashed}),
		without("identical-not-sent-no-sweep", "the same, and nobody sweeps", func(r *Rules) {
			r.Leave, r.Sweep = Leave{Unconditional: true}, false
		}, Witness{AtRest, "back", crashed}),
		without("no-prevok", "an unchanged service is left alone whatever the position before came to", func(r *Rules) { r.Leave.IfPrevOK = false },
			Witness{NoLateEffect, "back", crashed}, Witness{NoLateEffect, "drop-and-return", crashed}, Witness{NoLateEffect, "drop-and-return-late", crashed},
			Witness{NoLateEffect, "cancelled-in-flight", Faults{}}),
		without("no-group-generation", "a former consumer may take the claim back", func(r *Rules) { r.GroupGeneration = false }, Witness{Ends, "identical", rebalance}),
		without("outbox-first", "the outcome goes to the outbox before the head knows it", func(r *Rules) { r.OutcomeInHead = false },
			Witness{OneOutcome, "identical", rebalance}, Witness{HeadAtRest, "identical", crashed}),
		without("head-goes-with-stack", "StackRemove removes the head as well", func(r *Rules) { r.HeadOutlivesStack = false }, Witness{OneOutcome, "remove", Faults{Rebalances: 1, OffsetResets: 1}}),
		without("cancel-in-memory", "only the manager that works on a command knows that it is cancelled", func(r *Rules) { r.CancelInHead = false },
			Witness{CancelStays, "identical", Faults{Cancels: 1, Rebalances: 1}}, Witness{CancelStays, "identical", Faults{Cancels: 1, Crashes: 1}}),
		without("cancel-overlooked", "the decision does not look for a cancellation that came first", func(r *Rules) { r.DecisionSeesCancel = false },
			Witness{CancelStays, "identical", Faults{Cancels: 1}}),
		without("expired-not-recorded", "who finds a command expired says so and leaves the head as it is", func(r *Rules) { r.ExpiredInHead = false },
			Witness{OneOutcome, "identical", rebalance}, Witness{OneOutcome, "identical", Faults{Crashes: 1}}),
		without("unbegun-is-rest", "a command that ends without having been begun leaves the stack at rest whatever it was before", func(r *Rules) { r.UnbegunIsRest = true },
			Witness{NoLateEffect, "cancelled-in-flight", Faults{}}),
		without("scale-trusts", "a scaling that converges makes the head trusted", func(r *Rules) { r.ScaleKeepsDoubt = false },
			Witness{NoLateEffect, "scale-after-cancel", Faults{}}),
		without("tombstone-rolls-back", "a tombstone leaves the failure action as it was", func(r *Rules) { r.TombstoneStays = false },
			Witness{NoLateEffect, "remove-in-roll-out", undone}),
		without("take-over-writes", "who takes over in phase applied writes again", func(r *Rules) { r.WatchApplied = false }, Witness{RollbackStays, "roll-out", undone}),
		without("sweep-repairs-rollbacks", "the sweep puts right what Swarm rolled back", func(r *Rules) { r.LeaveRollbacks = false },
			Witness{RollbackStays, "roll-out", rollback}),
		without("no-base", "an unchanged service is left alone whatever label it carries", func(r *Rules) { r.Leave.IfBase = false },
			Witness{NoLateEffect, "drop-and-return-late", Faults{Rebalances: 1, OldLists: 1}}),
		without("unfinished-sweep-is-rest", "an unfinished sweep counts as being at rest", func(r *Rules) { r.Leave.IfUnfinishedSweep = true }).spare(),
		without("no-base-and-unfinished-sweep", "both", func(r *Rules) { r.Leave.IfUnfinishedSweep, r.Leave.IfBase = true, false },
			Witness{NoLateEffect, "drop-and-return-late", Faults{Crashes: 1}}),
	}
}

func (v Variant) spare() Variant {
	v.Spare = true
	return v
}

// VariantByName finds one.
func VariantByName(name string) (Variant, bool) {
	for _, v := range Variants() {
		if v.Name == name {
			return v, true
		}
	}
	return Variant{}, false
}
