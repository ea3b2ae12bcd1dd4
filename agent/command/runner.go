// Package command takes commands from Kafka through their lives: it reads the envelope, refuses what is unreadable, keeps the order per stack,
// runs what the command asks on the stack engine, tells each step as an event, decides one outcome, and lets the message's offset be committed only
// when Kafka has acknowledged that outcome. It also answers the immediate commands of a session.
package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/agent/journal"
	"github.com/axion/runner-agent/internal/crashpoint"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
)

// Journal is what this package needs of the journal.
type Journal interface {
	Receive(id, typ string) (journal.Record, error)
	Decide(id, kafkaKey string, generation uint64, outcome envelope.Envelope) (envelope.Envelope, error)
	Append(ev envelope.Envelope, key string) error
	Settled(eventID string) <-chan struct{}
}

// Stacks is what this package needs of the stack engine.
type Stacks interface {
	Deploy(ctx context.Context, d stack.Deployment, observe func(stack.Event)) (stack.Result, error)
	Remove(ctx context.Context, name string, timeout time.Duration, observe func(stack.Event)) (stack.Result, error)
	Scale(ctx context.Context, service string, replicas uint64, timeout time.Duration, observe func(stack.Event)) (stack.Result, error)
	Restart(ctx context.Context, service string, timeout time.Duration, observe func(stack.Event)) (stack.Result, error)
	Stacks(ctx context.Context) ([]stack.Summary, error)
	Status(ctx context.Context, name string) (stack.StackStatus, error)
}

// Claim is the right to work on a command: a *fence.Claim on its stack, or a *fence.OnceClaim on a command without a generation.
type Claim interface {
	// Client wraps a Docker client for one attempt: what it writes is the claim's.
	Client(api fence.API) fence.API
	Context(ctx context.Context) (context.Context, context.CancelCauseFunc)
	Generation() uint64
	Left(timeout time.Duration) time.Duration
	Keep(ctx context.Context)
	Applied(ctx context.Context) error
	Decide(ctx context.Context, status string, detail []byte) error
	Err() error
	Stopped() error
}

// Producer writes messages to Kafka and returns when they are acknowledged.
type Producer interface {
	Produce(ctx context.Context, messages []bus.Message) error
}

// Warner takes health warnings.
type Warner interface {
	Set(code string, severity runnerv1.HealthSeverity, title, text string)
	Clear(code string)
}

// Config says whose commands these are and how many may run.
type Config struct {
	// AgentID and ClusterID are the agent's identity.
	AgentID, ClusterID string
	// Kafka names the topics.
	Kafka *runnerv1.KafkaAccess
	// MaxConcurrent is how many commands run at once, 1 to 64.
	MaxConcurrent int
	// MaxMessageBytes is the largest message that is read.
	MaxMessageBytes int
	// WorkDir is a private folder, best on a tmpfs, in which bundles are opened.
	WorkDir string
	// DefaultTimeout is how long a deployment may take that does not say so itself.
	DefaultTimeout time.Duration
}

// Deps are the parts that a Runner works with; all are needed.
type Deps struct {
	Journal Journal
	// Fence gives the claim on a stack under which a command runs.
	Fence *fence.Fence
	// Stacks returns the stack engine for one attempt under a claim: its client is replaced when the Docker engine comes back after an outage.
	Stacks   func(Claim) (Stacks, error)
	Producer Producer
	// Role tells the node's role now.
	Role func() runnerv1.NodeRole
	Warn Warner
	Log  *slog.Logger
	Now  func() time.Time
}

// Runner runs commands. It is safe for concurrent use.
type Runner struct {
	cfg  Config
	deps Deps

	queue *queue
	wg    sync.WaitGroup

	mu       sync.Mutex
	inflight map[delivery]*command
	alive    map[*command]bool // those as well whose place in inflight a later delivery has taken
}

// delivery names a piece of work. A command that is handed on comes back with the same id by the cluster's topic, maybe before handing it on has ended; that
// is another piece of work, and must not be taken for the first.
type delivery struct{ topic, commandID string }

// New returns a Runner; it starts nothing.
func New(cfg Config, deps Deps) (*Runner, error) {
	switch {
	case cfg.AgentID == "" || cfg.ClusterID == "" || cfg.Kafka == nil:
		return nil, errors.New("command: the agent's identity is missing")
	case deps.Fence == nil || cfg.WorkDir == "":
		return nil, errors.New("command: the fence or the work folder is missing")
	case cfg.MaxConcurrent < 1 || cfg.MaxConcurrent > 64:
		return nil, fmt.Errorf("command: max concurrent is %d, 1 to 64 are allowed", cfg.MaxConcurrent)
	case cfg.MaxMessageBytes <= 0 || cfg.DefaultTimeout <= 0:
		return nil, errors.New("command: the message limit and the default timeout must be positive")
	}
	return &Runner{cfg: cfg, deps: deps, queue: newQueue(cfg.MaxConcurrent), inflight: map[delivery]*command{}, alive: map[*command]bool{}}, nil
}

// command is one command on its way.
type command struct {
	envelope envelope.Envelope
	message  bus.Message
	payload  proto.Message
	log      *slog.Logger

	// agent is the context that was given to Handle.
	agent context.Context
	// group is the newest consumer group generation in which the message was delivered.
	group   atomic.Int32
	done    chan struct{}           // closed when the offset may be committed
	run     context.Context         // of the work itself: ends with the agent's, or when an operator cancels the command
	cancel  context.CancelCauseFunc // ends run
	running bool                    // guarded by Runner.mu
	pulse   pulse
}

// ErrNoQuorum is the cause of a context given to Handle that ended because the Swarm's managers have no leader; commands that run then say so.
var ErrNoQuorum = failure.New(failure.Unavailable, "no_swarm_leader", "", "the swarm has no leader that this manager can reach")

// Handle takes a message and returns at once. The channel is closed when the message is settled: its outcome is acknowledged by Kafka, or it was handed on,
// or it is in the dead-letter topic. It stays open when ctx, the agent's own, ends before; then the message is delivered again.
// The same command delivered again while it runs attaches to the one that runs.
func (r *Runner) Handle(ctx context.Context, m bus.Message) <-chan struct{} {
	e, err := envelope.Parse(m.Headers, m.Value, r.cfg.MaxMessageBytes)
	log := r.deps.Log.With("command_id", e.ID, "correlation_id", correlation(e), "type", e.Type)

	key := delivery{m.Topic, e.ID}

	r.mu.Lock()
	if running, ok := r.inflight[key]; ok && err == nil && !running.interrupted() {
		r.mu.Unlock()
		running.group.Store(max(running.group.Load(), m.GroupGeneration))
		log.Info("command delivered again while it runs")
		return running.done
	}
	c := &command{envelope: e, message: m, log: log, agent: ctx, done: make(chan struct{})}
	c.group.Store(m.GroupGeneration)
	c.run, c.cancel = context.WithCancelCause(ctx)
	r.alive[c] = true
	if err == nil {
		r.inflight[key] = c
		c.payload, err = e.Message()
	}
	r.mu.Unlock()

	r.wg.Add(1)
	life := func() {
		defer r.wg.Done()
		defer c.cancel(nil)
		labelled(ctx, e.ID, func() {
			if r.live(ctx, c, err) {
				close(c.done)
			}
		})
		r.mu.Lock()
		delete(r.alive, c)
		if r.inflight[key] == c {
			delete(r.inflight, key)
		}
		r.mu.Unlock()
	}
	if err != nil {
		go life() // nothing to order: it is refused whatever else runs
	} else {
		r.queue.add(orderKey(c.payload), life)
	}
	return c.done
}

// interrupted says that the work is being ended without an outcome: who delivers the command again has it run again.
func (c *command) interrupted() bool { return c.agent.Err() != nil }

// live leads one message to its end and reports whether it is settled.
func (r *Runner) live(ctx context.Context, c *command, err error) bool {
	crashpoint.At(crashpoint.Received)
	if err == nil && !supported(c.payload) {
		err = failure.New(failure.Invalid, "unsupported_command", c.envelope.Type, "message %s: this agent cannot do %s", c.envelope.ID, c.envelope.Type).
			WithHint("update the agent")
	}
	if err != nil {
		return r.reject(ctx, c, err)
	}
	if c.message.Topic == r.cfg.Kafka.GetAgentTopic() {
		if r.deps.Role() == runnerv1.NodeRole_NODE_ROLE_MANAGER {
			return r.handOn(ctx, c)
		}
		return r.conclude(ctx, c, &runnerv1.CommandOutcome{
			Status: runnerv1.OutcomeStatus_OUTCOME_STATUS_REJECTED,
			Failure: failureOf(failure.New(failure.Conflict, "wrong_node", r.cfg.AgentID, "agent %s is on a worker node: only managers can do %s",
				r.cfg.AgentID, c.envelope.Type).WithHint("send the command to the cluster")),
		})
	}
	return r.process(ctx, c)
}

// handOn gives a stack command of the agent's own topic to the cluster's topic, unchanged and with its id, so that one order governs a stack.
func (r *Runner) handOn(ctx context.Context, c *command) bool {
	m := c.message
	m.Topic, m.Partition, m.Offset = r.cfg.Kafka.GetClusterTopic(), 0, 0
	c.log.Info("command handed on to the cluster's topic", "topic", m.Topic)
	return r.patiently(ctx, c, "hand the command on", func() error { return r.deps.Producer.Produce(ctx, []bus.Message{m}) }) == nil
}

// process runs a command and decides its outcome.
func (r *Runner) process(ctx context.Context, c *command) bool {
	var record journal.Record
	if r.patiently(ctx, c, "write the journal", func() (err error) {
		record, err = r.deps.Journal.Receive(c.envelope.ID, c.envelope.Type)
		return err
	}) != nil {
		return false
	}
	crashpoint.At(crashpoint.Journaled)
	if record.Decided {
		c.log.Info("command is decided already", "attempts", record.Attempts)
		return r.settle(ctx, c, record.Outcome, record.Generation)
	}
	started := r.deps.Now()
	r.emit(c, &runnerv1.CommandReceived{Type: c.envelope.Type, Attempt: record.Attempts})
	r.setRunning(c, true)
	defer r.setRunning(c, false)
	c.log.Info("command begins", "attempt", record.Attempts)
	outcome, err := r.execute(ctx, c)
	if err != nil { // the agent stops, or is no manager with a leader any more, or the journal is away: no outcome was decided, the message comes again
		c.log.Warn("command interrupted; it is taken up again when it is delivered again", "error", err)
		return false
	}
	if outcome.StartedAt == nil {
		outcome.StartedAt = timestamp(started)
	}
	return r.conclude(ctx, c, outcome)
}

// complete fills in what every outcome says.
func (r *Runner) complete(c *command, outcome *runnerv1.CommandOutcome) {
	outcome.Type = c.envelope.Type
	if outcome.EndedAt == nil {
		outcome.EndedAt = timestamp(r.deps.Now())
	}
	if outcome.StartedAt == nil {
		outcome.StartedAt = outcome.EndedAt
	}
	if outcome.Stack == "" {
		outcome.Stack = stackOf(c.payload)
	}
	if outcome.Generation == 0 {
		outcome.Generation = c.envelope.Generation
	}
}

// conclude decides the outcome, and waits until Kafka has it.
func (r *Runner) conclude(ctx context.Context, c *command, outcome *runnerv1.CommandOutcome) bool {
	// The decision is not undone by a cancel that comes now, nor by the agent's end: it is written or the command is run again.
	r.complete(c, outcome)
	ev, err := r.event(c, outcome)
	if err != nil {
		c.log.Error("outcome cannot be encoded", "error", err)
		return false
	}
	ev.ID = envelope.OutcomeID(c.envelope.ID)
	return r.settle(ctx, c, ev, outcome.GetGeneration())
}

// settle records the outcome, or finds the one that was recorded before, and waits until Kafka has it. An operator's cancel that comes now is too late.
func (r *Runner) settle(ctx context.Context, c *command, ev envelope.Envelope, generation uint64) bool {
	var decided envelope.Envelope
	if r.patiently(ctx, c, "write the outcome to the journal", func() (err error) {
		decided, err = r.deps.Journal.Decide(c.envelope.ID, r.cfg.ClusterID, generation, ev)
		return err
	}) != nil {
		return false
	}
	crashpoint.At(crashpoint.Recorded)
	select {
	case <-r.deps.Journal.Settled(decided.ID):
		crashpoint.At(crashpoint.Settled)
		c.log.Info("command ended; its outcome is acknowledged")
		return true
	case <-ctx.Done():
		return false
	}
}

// Running lists the ids of the commands that run now, at most 64.
func (r *Runner) Running() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for d, c := range r.inflight {
		if c.running && len(ids) < 64 {
			ids = append(ids, d.commandID)
		}
	}
	sort.Strings(ids)
	return ids
}

func (r *Runner) setRunning(c *command, running bool) {
	r.mu.Lock()
	c.running = running
	r.mu.Unlock()
}

// Wait returns when nothing that Handle began is alive any more; call it after the context given to Handle has ended.
func (r *Runner) Wait() { r.wg.Wait() }

// Waits between attempts at what must not be given up: from the first to the longest, with full jitter.
const (
	firstRetry   = 100 * time.Millisecond
	longestRetry = 5 * time.Second
)

// patiently repeats f until it succeeds or ctx ends. Each attempt is a step of the command.
func (r *Runner) patiently(ctx context.Context, c *command, what string, f func() error) error {
	const code = "commands_stalled"
	defer c.pulse.rest()
	for wait := firstRetry; ; wait = min(2*wait, longestRetry) {
		c.pulse.expect(what, r.deps.Now().Add(stepTime))
		err := f()
		if err == nil {
			r.deps.Warn.Clear(code)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.log.Warn("cannot "+what+"; trying again", "error", err)
		r.deps.Warn.Set(code, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "Commands are stalled", "cannot "+what+": "+err.Error()+"; nothing is lost, it is tried again")
		select {
		case <-time.After(rand.N(wait)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
