// Package crashpoint names the steps of a command's life at which tests kill the agent. In a program that is shipped At does nothing and costs nothing; one that is
// built with the tag "crashpoints" kills itself with SIGKILL - no deferred call, no flush, nothing told - when it comes to the step that it was armed for.
package crashpoint

// Variable names the environment variable that arms a program built with the tag: "NAME" kills at the first time that the step is reached, "NAME:3" at the third,
// "*:17" at the seventeenth step of any name. It is read once, by Arm. Names that begin with AXION_ are the configuration's, which refuses those that it does not
// know.
const Variable = "CRASH_AT"

// The steps, in the order of a command's life.
const (
	// Received: the message was read; nothing is written yet.
	Received = "received"
	// Journaled: the delivery is in the journal.
	Journaled = "journaled"
	// Claimed: the head is this agent's.
	Claimed = "claimed"
	// Listed: the services are listed, the claim is not renewed yet.
	Listed = "listed"
	// Renewed: the claim is renewed after the list; nothing is written in this pass.
	Renewed = "renewed"
	// Writing: one write to the stack is about to be sent.
	Writing = "writing"
	// Written: one write to the stack was answered.
	Written = "written"
	// Tombstoned: a service bears its tombstone and is not removed yet.
	Tombstoned = "tombstoned"
	// Applied: the head says that all is written.
	Applied = "applied"
	// Converged: the end is known and not decided yet.
	Converged = "converged"
	// Decided: the outcome is in the head and nowhere else.
	Decided = "decided"
	// Recorded: the outcome is in the outbox.
	Recorded = "recorded"
	// Published: Kafka has the outcome, the outbox still has it, too.
	Published = "published"
	// Settled: the outbox knows that Kafka has the outcome; the offset is not committed.
	Settled = "settled"
	// Sweeping: a sweep has taken the claim.
	Sweeping = "sweeping"
	// Swept: a sweep has removed what is stale, and the head does not say so yet.
	Swept = "swept"
)

// Names are all steps.
func Names() []string {
	return []string{
		Received, Journaled, Claimed, Listed, Renewed, Writing, Written, Tombstoned, Applied, Converged, Decided, Recorded, Published, Settled, Sweeping, Swept,
	}
}
