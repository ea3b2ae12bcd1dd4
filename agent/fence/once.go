package fence

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/internal/crashpoint"
	"github.com/axion/runner-agent/proto/failure"
)

// Once is a command without a generation that writes to one service, once.
type Once struct {
	// ID is the command's id.
	ID string
	// Deadline is when it may no longer be begun.
	Deadline time.Time
	// GroupGeneration is the consumer group generation in which the command came.
	GroupGeneration int32
	// Detail makes what an outcome with that status, which the claim itself decides, says beside it; nil means nothing.
	Detail func(status string, generation uint64) []byte
}

// OnceClaim is the right to work on a command without a generation, until it is lost.
type OnceClaim struct {
	latch
	term
	recent *Recent
	cmd    Once
	word   string // tells this claim from all others
	// repeat says that a write was refused because something had changed.
	repeat atomic.Bool

	mu      sync.Mutex // held during a change of the ring
	at      entry      // as this claim left it last
	renewed time.Time
}

// Claim takes the command in the ring. Exactly one of the three is given: a claim, which must be released; the outcome that the command already has, which is
// StatusExpired for one that nobody has begun and whose deadline has passed; or an error, which is Unavailable: the engine does not answer, somebody else has the
// command, or the ring is full of commands whose deadline is to come.
func (r *Recent) Claim(ctx context.Context, cmd Once) (*OnceClaim, *Outcome, error) {
	c := &OnceClaim{recent: r, cmd: cmd, word: newNonce()}
	var outcome *Outcome
	err := r.change(ctx, func(g *ring) (changed bool, err error) {
		changed, outcome, err = c.take(g)
		return changed, err
	})
	if err != nil || outcome != nil {
		return nil, outcome, err
	}
	c.open()
	return c, nil, nil
}

// take makes the command this claim's.
func (c *OnceClaim) take(g *ring) (changed bool, outcome *Outcome, err error) {
	now := c.recent.fence.deps.Now()
	e := g.find(c.cmd.ID)
	switch {
	case e != nil && e.Status != "":
		return false, e.outcome(), nil
	case e != nil && e.Claim == c.word: // an earlier attempt took effect
		c.at = *e
		return false, nil, nil
	case e != nil && c.older(e) && c.recent.stoodStill(g, e) < c.recent.fence.cfg.Standstill:
		return false, nil, failure.New(failure.Unavailable, CodeHeld, c.cmd.ID, "agent %s works on the command since consumer group generation %d; this agent was assigned in %d",
			e.Owner, e.Group, c.cmd.GroupGeneration)
	case e == nil && now.After(c.cmd.Deadline.Add(ClockTolerance)): // no clock says otherwise; the change proves that nobody has it
		return true, &Outcome{Command: c.cmd.ID, Status: StatusExpired, Detail: c.detail(StatusExpired)}, nil
	case e == nil:
		if g.forget(now); len(g.entries) >= KeepRecent {
			return false, nil, failure.New(failure.Unavailable, CodeRecentFull, c.cmd.ID, "%d commands without a generation are younger than their deadlines; the command waits until one is not",
				len(g.entries))
		}
		e = &entry{Command: c.cmd.ID, Deadline: c.cmd.Deadline, Begun: now}
		g.entries = append(g.entries, e)
	}
	e.Owner, e.Group, e.Claim = c.recent.fence.cfg.Owner, c.cmd.GroupGeneration, c.word
	e.Beat++
	switch {
	case g.uncancel(e.Command):
		e.decide(StatusCancelled, c.detail(StatusCancelled), now)
	case e.Service == "" && now.After(e.Deadline): // no write was ever sent
		e.decide(StatusExpired, c.detail(StatusExpired), now)
	}
	c.at, c.renewed, c.term = *e, now, term{now, e.Spent, used(e.Begun, e.Spent, now)}
	return true, e.outcome(), nil
}

func (c *OnceClaim) detail(status string) []byte {
	if c.cmd.Detail == nil {
		return nil
	}
	return boundedDetail(c.cmd.Detail(status, 0))
}

// older says whether whoever has the command goes before this claimant, as long as it shows that it is alive. Of two of the same group generation, which only a
// broker that lost its groups can bring about, the first goes on: else they would take the command from each other for ever.
func (c *OnceClaim) older(e *entry) bool {
	return c.cmd.GroupGeneration < e.Group || c.cmd.GroupGeneration == e.Group && e.Owner != c.recent.fence.cfg.Owner
}

// change changes the command in the ring by compare-and-swap. The claim is lost if it is another's.
func (c *OnceClaim) change(ctx context.Context, f func(*ring, *entry) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.Err(); err != nil {
		return err
	}
	var next entry
	err := c.recent.change(ctx, func(g *ring) (bool, error) {
		e := g.find(c.cmd.ID)
		switch {
		case e == nil:
			return false, c.lose("")
		case e.Claim != c.word:
			return false, c.lose(e.Owner)
		case e.Status != "": // decided by this claim, and the answer was lost
			return false, nil
		}
		if err := f(g, e); err != nil {
			return false, err
		}
		e.Spent = c.spent(c.recent.fence.deps.Now())
		e.Beat++
		next = *e
		return true, nil
	})
	if err == nil && next.Command != "" {
		c.at, c.renewed = next, c.recent.fence.deps.Now()
	}
	return err
}

func (c *OnceClaim) lose(owner string) error {
	return c.shut(failure.New(failure.Conflict, CodeLost, c.cmd.ID, "the claim on command %s was lost: it was taken or ended elsewhere (agent %q has it)", c.cmd.ID, owner))
}

// Release ends the work on the command in this process. The ring stays as it is.
func (c *OnceClaim) Release() { c.end(nil) }

// Generation is 0: the command has none.
func (c *OnceClaim) Generation() uint64 { return 0 }

// Context returns a context that ends with ctx, or when the claim is lost, with that failure as its cause.
func (c *OnceClaim) Context(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	return c.until(ctx, c.Err)
}

// Stopped is Err: a cancelled command has its outcome, and the claim on it is lost.
func (c *OnceClaim) Stopped() error { return c.Err() }

// Keep shows every few seconds that the holder is alive, and looks each second whether the command was cancelled, until ctx ends or the claim is lost.
func (c *OnceClaim) Keep(ctx context.Context) {
	c.keep(ctx, func() {
		c.mu.Lock()
		fresh := c.recent.fence.deps.Now().Sub(c.renewed) < renewEvery-noticeEvery/2
		c.mu.Unlock()
		if fresh {
			c.notice(ctx)
			return
		}
		if err := c.change(ctx, func(*ring, *entry) error { return nil }); err != nil && ctx.Err() == nil && c.Err() == nil {
			c.recent.fence.deps.Log.Warn("a claim cannot be renewed; trying again", "command_id", c.cmd.ID, "error", err)
		}
	})
}

// notice looks at the ring: a look proves nothing good, because it may be old, but a newer state of the command says what has become of the claim.
func (c *OnceClaim) notice(ctx context.Context) {
	_, g, err := c.recent.read(ctx)
	if err != nil {
		return // the next renewal tells
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := g.find(c.cmd.ID); e != nil && e.Beat > c.at.Beat && e.Claim != c.word {
		_ = c.lose(e.Owner)
	}
}

// Applied says that all is written. A failure with CodeRepeat asks for another pass.
func (c *OnceClaim) Applied(context.Context) error {
	if c.repeat.Load() {
		return c.again("")
	}
	return c.Err()
}

// Decide records the command's outcome in the ring. With a failure nothing is decided; with CodeLost somebody else has decided or will.
func (c *OnceClaim) Decide(ctx context.Context, status string, detail []byte) error {
	return c.change(ctx, func(_ *ring, e *entry) error {
		e.decide(status, boundedDetail(detail), c.recent.fence.deps.Now())
		return nil
	})
}

func (c *OnceClaim) again(name string) error {
	c.repeat.Store(true)
	return failure.New(failure.Conflict, CodeRepeat, name, "service %s changed between its list and its write: update out of sequence", name)
}

// saw is the pass: after the service was read and before it is written the ring says what the write will be, or finds that it has landed already.
func (c *OnceClaim) saw(ctx context.Context, s swarm.Service) error {
	return c.change(ctx, func(g *ring, e *entry) error {
		switch {
		case e.Written:
		case e.Service != "" && s.Version.Index < e.Version: // this engine has not heard of what the ring's last owner saw
			return c.again(s.Spec.Name)
		case e.Service != "" && g.landed(e, s):
			e.Written = true
		case s.Version.Index > e.Version:
			g.free(s)
			e.plan(s)
		}
		return nil
	})
}

// wrote notes that the write took effect.
func (c *OnceClaim) wrote(ctx context.Context) error {
	crashpoint.At(crashpoint.Written)
	return c.change(ctx, func(_ *ring, e *entry) error {
		e.Written = true
		return nil
	})
}

func (c *OnceClaim) now() entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

// once is the Docker client of the holder of a OnceClaim. Reading the one service plans its update, and the update is sent with exactly the version that was read,
// and with the command's label. Once that has landed, whoever sent it, no more is sent.
type once struct {
	client.APIClient
	claim *OnceClaim
}

// Client wraps a client for one attempt at the claim's command.
func (c *OnceClaim) Client(api client.APIClient) client.APIClient {
	c.repeat.Store(false)
	return &once{APIClient: api, claim: c}
}

// ServiceInspectWithRaw is where the pass begins.
func (o *once) ServiceInspectWithRaw(ctx context.Context, name string, opts swarm.ServiceInspectOptions) (swarm.Service, []byte, error) {
	if err := o.claim.Err(); err != nil {
		return swarm.Service{}, nil, err
	}
	begunOn := o.claim.now().Service
	id := name
	if begunOn != "" {
		id = begunOn
	}
	s, raw, err := o.APIClient.ServiceInspectWithRaw(ctx, id, opts)
	gone := errdefs.IsNotFound(err) || err == nil && s.Spec.Labels[LabelTombstone] != ""
	switch {
	case gone && begunOn != "":
		return s, raw, failure.New(failure.Conflict, CodeServiceGone, name, "service %s, on which the command was begun, has been removed", name)
	case gone && err == nil:
		return s, raw, failure.New(failure.Invalid, "no_such_service", name, "service %s is being removed", name)
	case err != nil:
		return s, raw, err
	}
	crashpoint.At(crashpoint.Listed)
	if err := o.claim.saw(ctx, s); err != nil {
		return s, raw, err
	}
	crashpoint.At(crashpoint.Renewed)
	return s, raw, nil
}

// ServiceUpdate sends the planned write. Where the answer leaves open what became of it, the service tells.
func (o *once) ServiceUpdate(ctx context.Context, id string, version swarm.Version, spec swarm.ServiceSpec, opts swarm.ServiceUpdateOptions) (swarm.ServiceUpdateResponse, error) {
	if err := o.claim.Err(); err != nil {
		return swarm.ServiceUpdateResponse{}, err
	}
	planned := o.claim.now()
	if planned.Written {
		return swarm.ServiceUpdateResponse{}, nil
	}
	if id != planned.Service || version.Index != planned.Version || spec.TaskTemplate.ForceUpdate != planned.Target {
		return swarm.ServiceUpdateResponse{}, o.claim.again(spec.Name)
	}
	crashpoint.At(crashpoint.Writing)
	spec.Labels = labelled(spec.Labels, LabelRestart, o.claim.cmd.ID)
	response, err := o.APIClient.ServiceUpdate(ctx, id, version, spec, opts)
	switch {
	case err == nil, o.landed(ctx, id):
		return response, o.claim.wrote(ctx)
	case outOfSequence(err), errdefs.IsNotFound(err):
		return response, o.claim.again(spec.Name)
	default:
		return response, err
	}
}

// landed says whether the service bears the mark of a write whose answer was an error.
func (o *once) landed(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	s, _, err := o.APIClient.ServiceInspectWithRaw(ctx, id, swarm.ServiceInspectOptions{})
	return err == nil && marked(s, o.claim.cmd.ID)
}
