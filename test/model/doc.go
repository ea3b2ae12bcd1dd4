// Package model checks the protocol by which several managers deploy to one Swarm, by looking at every order in which things can happen.
//
// It is an explicit-state model checker for one protocol: two managers, one stack of two services, a handful of commands, and a scheduler that is as unkind as
// a bound allows. A write may land at any later time, also after its sender has died; a manager may pause between any two steps; Kafka may give the partition
// to the other one at any moment.
//
// Read it in this order:
//
//	state.go       what there is: services, head, writes in flight, managers, the consumer group
//	variant.go     the protocol's rules, each with a switch that takes it out, and the search that shows what breaks then
//	claim.go       a command is taken: the head's compare-and-swap, take-over, superseded
//	pass.go        list, renew, write; which services may be left alone; tombstones
//	stop.go        a command is cancelled, at any point and by any manager, or runs out of time
//	outcome.go     the outcome is decided in the head, published, committed
//	sweep.go       what the head does not name is removed, what is missing is made
//	manager.go     what befalls a manager
//	swarm.go       writes land, roll-outs end or are rolled back
//	kafka.go       the partition is assigned, its offset lost
//	property.go    what must hold
//	scenario.go    the histories of commands that are tried
//	world.go       all steps out of a state
//	check.go       the search: breadth first, each state kept as a 64-bit fingerprint
//	trace.go       the shortest way to a broken property, in words
//
// testdata/counterexamples.txt holds, for each rule, what happens without it. A rule that could be taken out without the search finding anything would be
// one that the model does not cover; the tests take out each. docs/model.md has the bounds, the results, and what is left out.
package model
