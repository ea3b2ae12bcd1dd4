package fence

import "time"

const (
	// clockTolerance is how far the clocks of two managers may be apart. What they say is believed as far as it goes beyond that.
	clockTolerance = time.Hour
	// lastLook is what is left of a command's time in any case: enough to look at the services once and to say what they have come to.
	lastLook = 10 * time.Second
)

// used is how much of its time the generation has certainly had.
//
// A command that is taken up again gets what is left of its time, and not all of it again. What its owners have measured themselves counts in full: they add it to
// the head with each change, every 5 s at least, each by its own monotonic clock, which no wrong time of day can spoil. The time in which nobody worked on it is known by
// the difference of two managers' clocks only. One that is an hour ahead would make a deployment of a minute ago look an hour old, and end it at once; one that is
// an hour behind would have it begin in the future. So of that difference only what exceeds an hour counts. Whatever the clocks say, owners then work for the
// timeout in all, and not for longer than 5 s more for each of them that died; and a command that lay about for longer than its timeout and that hour is over.
func (h Head) used(now time.Time) time.Duration {
	if h.Begun.IsZero() { // claimed by an agent that did not note it
		return h.Spent
	}
	return max(h.Spent, now.Sub(h.Begun)-clockTolerance)
}

// Left is how much of the command's timeout was left when the claim was taken: all of it if the claim was the first, less if another owner, or an earlier life of this
// one, has worked on it; enough for one look at least, so that what has converged is told as such.
func (c *Claim) Left(timeout time.Duration) time.Duration {
	return min(timeout, max(timeout-c.usedBefore, lastLook))
}

// spent is what the head says of the time from now on.
func (c *Claim) spent() time.Duration { return c.spentBefore + max(0, c.fence.deps.Now().Sub(c.taken)) }
