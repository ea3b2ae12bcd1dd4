package fence

import "time"

const (
	// ClockTolerance is how far the clocks of two managers may be apart. What they say is believed as far as it goes beyond that.
	ClockTolerance = time.Hour
	// lastLook is what is left of a command's time in any case: enough to look at the services once and to say what they have come to.
	lastLook = 10 * time.Second
)

// used is how much of its time a command has certainly had.
//
// A command that is taken up again gets what is left of its time, and not all of it again. What its owners have measured themselves counts in full: they add it to
// the head, or the ring, with each change, every 5 s at least, each by its own monotonic clock, which no wrong time of day can spoil. The time in which nobody worked on it is known by
// the difference of two managers' clocks only. One that is an hour ahead would make a deployment of a minute ago look an hour old, and end it at once; one that is
// an hour behind would have it begin in the future. So of that difference only what exceeds an hour counts. Whatever the clocks say, owners then work for the
// timeout in all, and not for longer than 5 s more for each of them that died; and a command that lay about for longer than its timeout and that hour is over.
func used(begun time.Time, spent time.Duration, now time.Time) time.Duration {
	if begun.IsZero() { // claimed by an agent that did not note it
		return spent
	}
	return max(spent, now.Sub(begun)-ClockTolerance)
}

func (h Head) used(now time.Time) time.Duration { return used(h.Begun, h.Spent, now) }

// term is what a claim knows of its command's time.
type term struct {
	taken                   time.Time     // when the claim was
	spentBefore, usedBefore time.Duration // of the command's time, by then
}

// Left is how much of the command's timeout was left when the claim was taken: all of it if the claim was the first, less if another owner, or an earlier life of this
// one, has worked on it; enough for one look at least, so that what has converged is told as such.
func (t term) Left(timeout time.Duration) time.Duration {
	return min(timeout, max(timeout-t.usedBefore, lastLook))
}

// spent is what the Swarm is told of the time.
func (t term) spent(now time.Time) time.Duration { return t.spentBefore + max(0, now.Sub(t.taken)) }
