package fence

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/internal/crashpoint"
	"github.com/axion/runner-agent/proto/failure"
)

// Codes of this package's failures.
const (
	// CodeSuperseded: a newer generation has been claimed; the failure is a Superseded.
	CodeSuperseded = "superseded"
	// CodeConflict: the generation belongs to another command.
	CodeConflict = "generation_conflict"
	// CodeHeld: somebody of a newer consumer group generation works on the stack; ask again.
	CodeHeld = "claim_held"
	// CodeLost: somebody else has taken the claim; ask for it again, the answer says what became of the command.
	CodeLost = "claim_lost"
	// CodeRepeat: something changed between the list and the write; list again.
	CodeRepeat = "out_of_sequence"
	// CodeCancelled: the head says that the command is to be stopped; the claim is good for that outcome only.
	CodeCancelled = "cancelled"
	// CodeDecided: the command has an outcome, so that it cannot be cancelled any more.
	CodeDecided = "already_decided"
)

// Kind is what a command does to a stack.
type Kind int

// The kinds.
const (
	// Deploy puts the stack's services in place.
	Deploy Kind = iota
	// Remove takes the whole stack away.
	Remove
	// Scale changes one service.
	Scale
)

// Command is what a claim is asked for.
type Command struct {
	// ID is the command's id.
	ID string
	// Stack is the stack's name; of a service without a stack the service's.
	Stack string
	// Generation is the stack's; 0 means the current one + 1.
	Generation uint64
	// GroupGeneration is the consumer group generation in which the command came.
	GroupGeneration int32
	Kind            Kind
	// Services are the full names of the services that a deployment names, or the one that is scaled.
	Services []string
	// Prune says that a deployment removes services that it does not name.
	Prune bool
	// Manifest describes a deployment; nil for the other kinds.
	Manifest *Manifest
	// Expired says that the command's deadline has passed: it is not begun any more, but ended if it was.
	Expired bool
	// Detail makes what an outcome with that status, which the claim itself decides, says beside it; nil means nothing.
	Detail func(status string, generation uint64) []byte
}

// Superseded is what becomes of a command of an older generation.
type Superseded struct {
	// Current is the stack's generation.
	Current uint64
	failure *failure.Error
}

func (s *Superseded) Error() string { return s.failure.Error() }
func (s *Superseded) Unwrap() error { return s.failure }

// Claim is the right to work on one generation of a stack, until it is lost.
type Claim struct {
	latch
	term
	fence   *Fence
	cmd     Command
	label   string
	stopErr atomic.Pointer[failure.Error] // the command is cancelled
	// repeat says that a write of this pass was refused because something had changed, and the caller was not told or does not listen.
	repeat atomic.Bool

	mu      sync.Mutex // held during a change of the head
	at      *stored
	renewed time.Time
	// What the passes found and did, by service name.
	listed  map[string]bool // of the last list; nil before the first
	written map[string]string
	removed map[string]bool
}

// Claim takes the stack's head for the command, and waits for what this process itself still does on the stack. Exactly one of the three is given: a claim, which
// must be released; the outcome that the command has, already or by this very call; or an error. An error is a *Superseded, or a failure with one of this package's
// codes, or Unavailable: the engine does not answer.
func (f *Fence) Claim(ctx context.Context, cmd Command) (*Claim, *Outcome, error) {
	if err := f.lock(ctx, cmd.Stack); err != nil {
		return nil, nil, err
	}
	claim, outcome, err := f.claim(ctx, cmd)
	if claim == nil {
		f.unlock(cmd.Stack)
	}
	return claim, outcome, err
}

func (f *Fence) claim(ctx context.Context, cmd Command) (*Claim, *Outcome, error) {
	api := f.deps.Client()
	for range swapAttempts {
		at, err := read(ctx, api, cmd.Stack)
		if err != nil {
			return nil, nil, err
		}
		if at != nil {
			if o, ok := at.head.outcome(cmd.ID); ok {
				return nil, &o, nil
			}
		}
		// What ends without having been begun keeps no manifest: nothing of it will ever be there.
		verdict := verdictOn(at, cmd)
		if verdict != "" && !begun(at, cmd) {
			cmd.Manifest = nil
		}
		next, err := f.nextHead(ctx, api, at, cmd)
		if err != nil {
			return nil, nil, err
		}
		var outcome *Outcome
		if verdict != "" {
			outcome = next.end(at, cmd, verdict)
		}
		if at, err = f.bury(ctx, api, at); err != nil {
			return nil, nil, err
		}
		at, err = swap(ctx, api, at, next)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if outcome != nil {
			crashpoint.At(crashpoint.Decided)
			f.stir()
			return nil, outcome, nil
		}
		c := f.newClaim(cmd, at)
		if err := c.keepManifest(ctx, api); err != nil {
			return nil, nil, unavailable(cmd.Stack, err)
		}
		return c, nil, nil
	}
	return nil, nil, keepsMoving(cmd.Stack)
}

func keepsMoving(stack string) error {
	return failure.New(failure.Unavailable, CodeHeld, stack, "the head of stack %s keeps moving", stack)
}

// begun says whether the command has been claimed before, by whomever.
func begun(at *stored, cmd Command) bool { return at != nil && at.head.Command == cmd.ID }

// verdictOn is the status with which the command ends without any, or any further, write; "" if it is to be worked on.
func verdictOn(at *stored, cmd Command) string {
	switch {
	case at != nil && at.head.isCancelled(cmd.ID):
		return StatusCancelled
	case cmd.Expired && !begun(at, cmd):
		return StatusExpired
	}
	return ""
}

// bury removes a head that was marked to be removed: it is never revived, but a new one goes on from it.
func (f *Fence) bury(ctx context.Context, api client.APIClient, at *stored) (*stored, error) {
	if at == nil || !at.head.Dead {
		return at, nil
	}
	if err := api.ConfigRemove(ctx, at.id); err != nil && !errdefs.IsNotFound(err) {
		return at, unavailable(at.head.Stack, err)
	}
	return nil, nil
}

func (f *Fence) newClaim(cmd Command, at *stored) *Claim {
	now := f.deps.Now()
	c := &Claim{
		fence: f, cmd: cmd, label: at.head.Label(), at: at, renewed: now, term: term{now, at.head.Spent, at.head.used(now)},
		written: map[string]string{}, removed: map[string]bool{},
	}
	c.open()
	return c
}

func (c *Claim) keepManifest(ctx context.Context, api client.APIClient) error {
	if c.cmd.Manifest == nil {
		return nil
	}
	return c.cmd.Manifest.keep(ctx, api, c.cmd.Stack, c.at.head.Manifest)
}

// nextHead is the head with the command's claim.
func (f *Fence) nextHead(ctx context.Context, api client.APIClient, at *stored, cmd Command) (Head, error) {
	if at == nil || at.head.Generation == 0 {
		return f.firstHead(ctx, api, at, cmd)
	}
	return f.laterHead(at, cmd)
}

// firstHead is the head of a stack that has none, or one that only holds cancellations. Its services may know better than nobody what the newest generation was: a
// head can be lost.
func (f *Fence) firstHead(ctx context.Context, api client.APIClient, at *stored, cmd Command) (Head, error) {
	services, err := listServices(ctx, api, cmd.Stack)
	if err != nil {
		return Head{}, err
	}
	head := Head{Stack: cmd.Stack}
	if at != nil {
		head = at.head.clone()
	}
	head.Base = map[string]string{}
	for _, s := range services {
		if l := s.Spec.Labels[LabelGeneration]; l != "" && s.Spec.Labels[LabelTombstone] == "" {
			head.Base[s.Spec.Name] = l
			generation, _ := parseLabel(l)
			head.Generation = max(head.Generation, generation)
		}
	}
	if cmd.Generation != 0 && cmd.Generation < head.Generation {
		return head, superseded(cmd, head.Generation)
	}
	if cmd.Generation == 0 {
		cmd.Generation = head.Generation + 1
	}
	return head.begin(f, cmd), nil
}

// laterHead applies the rules of generations and of group generations to the head that there is.
func (f *Fence) laterHead(at *stored, cmd Command) (Head, error) {
	h := at.head
	mine := h.Command == cmd.ID
	if cmd.Generation == 0 {
		cmd.Generation = h.Generation + 1
		if mine {
			cmd.Generation = h.Generation
		}
	}
	switch {
	case cmd.Generation < h.Generation:
		return h, superseded(cmd, h.Generation)
	case cmd.Generation == h.Generation && !mine:
		return h, failure.New(failure.Conflict, CodeConflict, cmd.Stack, "generation %d of %s belongs to command %s", cmd.Generation, cmd.Stack, h.Command)
	case cmd.GroupGeneration < h.GroupGeneration && f.stoodStill(at) < f.cfg.Standstill:
		return h, failure.New(failure.Unavailable, CodeHeld, cmd.Stack, "agent %s works on stack %s since consumer group generation %d; this agent was assigned in %d",
			h.Owner, cmd.Stack, h.GroupGeneration, cmd.GroupGeneration)
	}
	next := h.clone()
	if cmd.Generation == h.Generation { // taken up again, here or from another owner
		next.Epoch++
		next.Owner, next.GroupGeneration, next.Dead = f.cfg.Owner, cmd.GroupGeneration, false
		return next, nil
	}
	next.PrevOK = h.atRest()
	return next.begin(f, cmd), nil
}

// begin makes the head that of the command's first claim.
func (h Head) begin(f *Fence, cmd Command) Head {
	h.Epoch++
	h.Owner, h.GroupGeneration = f.cfg.Owner, cmd.GroupGeneration
	h.Generation, h.Step, h.Command = cmd.Generation, 1, cmd.ID
	h.Begun, h.Spent = f.deps.Now(), 0
	h.Phase, h.Next, h.Before, h.Removed, h.Rest, h.Dead = Applying, nil, nil, time.Time{}, false, false
	if cmd.Manifest != nil {
		h.Manifest, h.ManifestDigest = cmd.Manifest.name(cmd.Stack, cmd.Generation), cmd.Manifest.digest
		h.Manifests = append(h.Manifests, h.Manifest)
		h.Manifests = h.Manifests[max(0, len(h.Manifests)-KeepManifests):]
	}
	return h
}

// end decides the command's outcome in the claim itself, so that nothing is written for it from here on. If nothing ever was, the stack is what it was before.
func (h *Head) end(at *stored, cmd Command, status string) *Outcome {
	if at != nil && !begun(at, cmd) {
		h.Rest = at.head.atRest()
		if len(h.Base) == 0 {
			h.Removed = at.head.Removed
		}
	}
	outcome := Outcome{Command: cmd.ID, Generation: h.Generation, Status: status}
	if cmd.Detail != nil {
		outcome.Detail = boundedDetail(cmd.Detail(status, h.Generation))
	}
	h.record(outcome)
	return &outcome
}

func boundedDetail(detail []byte) []byte {
	if len(detail) > MaxDetailBytes {
		return nil
	}
	return detail
}

func superseded(cmd Command, current uint64) error {
	return &Superseded{Current: current, failure: failure.New(failure.Conflict, CodeSuperseded, cmd.Stack,
		"generation %d of %s is superseded by %d", cmd.Generation, cmd.Stack, current)}
}

// Release ends the work on the stack in this process. The head stays as it is.
func (c *Claim) Release() {
	c.end(nil)
	c.fence.unlock(c.cmd.Stack)
}

// Generation is the generation that the claim is for.
func (c *Claim) Generation() uint64 {
	generation, _ := parseLabel(c.label)
	return generation
}

// Watching says that all is written, so that only the end is waited for.
func (c *Claim) Watching() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at.head.Phase == Applied
}

// Context returns a context that ends with ctx, or when the claim is lost or the command cancelled, with that failure as its cause.
func (c *Claim) Context(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	return c.until(ctx, c.Stopped)
}

// Stopped returns the failure with CodeLost or CodeCancelled once nothing may be written under the claim any more, and nil before.
func (c *Claim) Stopped() error {
	if err := c.Err(); err != nil {
		return err
	}
	if err := c.stopErr.Load(); err != nil {
		return err
	}
	return nil
}

// lose is the latch: whatever is asked of the claim from now on is refused.
func (c *Claim) lose(now *stored) error {
	by := "somebody"
	if now != nil {
		by = now.head.Owner
	}
	return c.shut(failure.New(failure.Conflict, CodeLost, c.cmd.Stack, "the claim on stack %s was lost: agent %s has taken it", c.cmd.Stack, by))
}

// stop is the latch of a cancelled command: from now on the claim only serves to decide that outcome.
func (c *Claim) stop() error {
	err := failure.New(failure.Conflict, CodeCancelled, c.cmd.Stack, "command %s was cancelled", c.cmd.ID)
	if c.stopErr.CompareAndSwap(nil, err) {
		c.end(err)
	}
	return c.Stopped()
}

// change changes the head by compare-and-swap. The claim is lost if the head is another's; a cancelled command changes nothing any more.
func (c *Claim) change(ctx context.Context, f func(*Head)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changeLocked(ctx, f)
}

func (c *Claim) changeLocked(ctx context.Context, f func(*Head)) error {
	return c.swapLocked(ctx, func(h *Head) error {
		if h.isCancelled(c.cmd.ID) {
			return c.stop()
		}
		f(h)
		return nil
	})
}

// swapLocked is a change that f may refuse. Another's change of the same claim's head - a cancellation, or one of the holder's own whose answer was lost - has f
// look at that head.
func (c *Claim) swapLocked(ctx context.Context, f func(*Head) error) error {
	for range swapAttempts {
		if err := c.Err(); err != nil {
			return err
		}
		next := c.at.head.clone()
		next.Spent = c.spent(c.fence.deps.Now())
		if err := f(&next); err != nil {
			return err
		}
		now, err := swap(ctx, c.fence.deps.Client(), c.at, next)
		switch {
		case err == nil:
			c.at, c.renewed = now, c.fence.deps.Now()
			return nil
		case !errors.Is(err, errMoved):
			return err
		case c.anothers(now):
			return c.lose(now)
		}
		c.at = now
	}
	return keepsMoving(c.cmd.Stack)
}

// anothers says whether a head is no longer this claim's.
func (c *Claim) anothers(now *stored) bool {
	return now == nil || now.head.Epoch != c.at.head.Epoch || now.head.Owner != c.at.head.Owner
}

// Keep shows every few seconds that the holder is alive, and looks each second whether the command was cancelled, until ctx ends or the claim is lost.
func (c *Claim) Keep(ctx context.Context) {
	c.keep(ctx, func() {
		c.mu.Lock()
		fresh := c.fence.deps.Now().Sub(c.renewed) < renewEvery-noticeEvery/2
		c.mu.Unlock()
		if fresh {
			c.notice(ctx)
			return
		}
		if err := c.change(ctx, func(*Head) {}); err != nil && ctx.Err() == nil && c.Stopped() == nil {
			c.fence.deps.Log.Warn("a claim cannot be renewed; trying again", "stack", c.cmd.Stack, "error", err)
		}
	})
}

// notice looks at the head. A look proves nothing good, because it may be old; but a newer version says what has become of the claim.
func (c *Claim) notice(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	now, err := read(ctx, c.fence.deps.Client(), c.cmd.Stack)
	if err != nil || now == nil {
		return // the next renewal tells
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case now.version.Index <= c.at.version.Index:
	case c.anothers(now):
		_ = c.lose(now)
	case now.head.isCancelled(c.cmd.ID):
		_ = c.stop()
	}
}

// Applied says that all is written and only the end is waited for. A failure with CodeRepeat asks for another pass: a write was refused that the caller did
// not hear of.
func (c *Claim) Applied(ctx context.Context) error {
	if c.repeat.Load() {
		return failure.New(failure.Conflict, CodeRepeat, c.cmd.Stack, "something of stack %s changed while it was written", c.cmd.Stack)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.head.Phase == Applied {
		return c.Stopped()
	}
	next := c.next()
	if err := c.changeLocked(ctx, func(h *Head) { h.Phase, h.Next = Applied, next }); err != nil {
		return err
	}
	crashpoint.At(crashpoint.Applied)
	return nil
}

// Decide records the command's outcome in the head, and thereby ends the generation. With a failure nothing is decided; with CodeLost somebody else will, with
// CodeCancelled only StatusCancelled can be decided. An outcome that is there already stays.
func (c *Claim) Decide(ctx context.Context, status string, detail []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	outcome := Outcome{Command: c.cmd.ID, Generation: c.Generation(), Status: status, Detail: boundedDetail(detail)}
	api := c.fence.deps.Client()
	old, err := manifests(ctx, api, c.cmd.Stack) // before the change: see prune
	if err != nil {
		return unavailable(c.cmd.Stack, err)
	}
	next := c.at.head.Next
	if next == nil {
		next = c.next()
	}
	if err := c.swapLocked(ctx, func(h *Head) error {
		if _, decided := h.outcome(c.cmd.ID); decided { // by this claim, and the answer was lost
			return nil
		}
		if h.isCancelled(c.cmd.ID) && status != StatusCancelled {
			return c.stop()
		}
		h.decide(outcome, next, c.cmd.Kind, c.fence.deps.Now())
		return nil
	}); err != nil {
		return err
	}
	h := c.at.head
	if err := prune(ctx, api, old, append([]string{h.Manifest, h.Good}, h.Manifests...)); err != nil {
		c.fence.deps.Log.Warn("old manifests are left behind", "stack", c.cmd.Stack, "error", err)
	}
	c.fence.stir()
	return nil
}

func (h *Head) decide(outcome Outcome, next map[string]string, kind Kind, now time.Time) {
	h.record(outcome)
	if outcome.Status != StatusCancelled {
		h.Base = next
	}
	if outcome.Status == StatusSucceeded {
		switch kind {
		case Deploy:
			h.Good = h.Manifest
		case Remove:
			h.Removed = now
		}
	}
}

// record puts an outcome into the head. What the head says of the services stays as it is.
func (h *Head) record(outcome Outcome) {
	h.Phase = Decided
	h.Outcomes = append(h.Outcomes, outcome)
	h.Outcomes = h.Outcomes[max(0, len(h.Outcomes)-KeepOutcomes):]
	h.Cancelled = slices.DeleteFunc(h.Cancelled, func(id string) bool { return id == outcome.Command })
	h.Next, h.Before = nil, nil
}

// next is what the head's base becomes if the generation ends now.
func (c *Claim) next() map[string]string {
	base := maps.Clone(c.at.head.Base)
	if base == nil {
		base = map[string]string{}
	}
	named := map[string]bool{}
	for _, name := range c.cmd.Services {
		named[name] = true
		if _, ok := base[name]; !ok && c.cmd.Kind == Deploy {
			base[name] = ""
		}
	}
	for name := range base {
		if gone := c.removed[name] || c.listed != nil && !c.listed[name]; gone && !named[name] {
			delete(base, name)
		}
	}
	maps.Copy(base, c.written)
	return base
}

// listServices lists the services of a stack.
func listServices(ctx context.Context, api client.APIClient, stack string) ([]swarm.Service, error) {
	services, err := api.ServiceList(ctx, swarm.ServiceListOptions{Filters: filters.NewArgs(filters.Arg("label", labelNamespace+"="+stack))})
	if err != nil {
		return nil, unavailable(stack, err)
	}
	return services, nil
}

// Look tells, without a claim, what the stack's head knows of a command: its outcome, or that it has been begun.
func (f *Fence) Look(ctx context.Context, stack, command string) (outcome *Outcome, begun bool, err error) {
	at, err := read(ctx, f.deps.Client(), stack)
	if err != nil || at == nil {
		return nil, false, err
	}
	if o, ok := at.head.outcome(command); ok {
		return &o, true, nil
	}
	return nil, at.head.Command == command, nil
}

// StackOf returns the stack of a service, or "" if it belongs to none or does not exist.
func (f *Fence) StackOf(ctx context.Context, service string) (string, error) {
	s, _, err := f.deps.Client().ServiceInspectWithRaw(ctx, service, swarm.ServiceInspectOptions{})
	switch {
	case errdefs.IsNotFound(err):
		return "", nil
	case err != nil:
		return "", failure.New(failure.Unavailable, "engine_unavailable", service, "service %s: %w", service, err)
	}
	return s.Spec.Labels[labelNamespace], nil
}

func isLost(err error) bool {
	f := failure.Of(err)
	return f != nil && f.Code == CodeLost
}
