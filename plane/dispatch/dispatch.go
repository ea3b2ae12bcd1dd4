// Package dispatch is the plane's hand on Kafka: it sends the commands that package ledger keeps and reads the events that agents write.
//
// A command is sent at once and then again and again, with the same id and the same bytes, until its outcome is stored: a topic can lose a message, an agent
// recognises one that it has seen. A command whose time is over is closed with an outcome of the plane's own.
//
// An event counts only if the agent that its source names has signed it with a key that the plane has certified: the broker cannot keep one agent from writing
// with another's name. How far the topic was read is kept in the transaction that stores the events, so that a restart neither loses nor doubles one.
package dispatch

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/axion/runner-agent/plane/ledger"
	"github.com/axion/runner-agent/plane/offset"
	"github.com/axion/runner-agent/plane/tail"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

// Defaults of Config.
const (
	// DefaultResendFirst is the time until a command is sent a second time. An agent that takes it answers sooner; one that was away needs no repetition,
	// because the topic keeps it: only a message that was lost does.
	DefaultResendFirst = time.Minute
	// DefaultResendMax bounds the time between two sends, which doubles each time.
	DefaultResendMax = 10 * time.Minute
	// DefaultRetry is the time until a send is tried again that Kafka did not take; it doubles up to DefaultResendFirst.
	DefaultRetry = 5 * time.Second
	// DefaultGrace is how long after a command's deadline it is closed: an event that says that an agent began it in time may still be on its way.
	DefaultGrace = 30 * time.Second
	// DefaultPruneInterval is how often the ledger forgets what is too old.
	DefaultPruneInterval = 10 * time.Minute
	// DefaultPruneEvents and DefaultPruneBytes are after how many new events, and how much of their data, it does so at once: a flood cannot fill the disk in between.
	DefaultPruneEvents = 20_000
	DefaultPruneBytes  = 64 << 20
	// DefaultAgentRate is how many events a second of one agent are kept in the long run, and DefaultAgentBurst how many at once: what has piled up while the plane
	// or the broker was away must fit. What the plane waits for, that a command was begun and how it ended, does not count and is always kept.
	DefaultAgentRate  = 100
	DefaultAgentBurst = 20_000
)

// Config says how dispatch works. A zero duration means the default.
type Config struct {
	// EventsTopic is the topic of all events.
	EventsTopic string
	// MaxEventBytes bounds an event's data; 0 means envelope.DefaultMaxData.
	MaxEventBytes int
	// ResendFirst, ResendMax, Retry, Grace and PruneInterval are described at their defaults.
	ResendFirst, ResendMax, Retry, Grace, PruneInterval time.Duration
	// PruneEvents, PruneBytes, AgentRate and AgentBurst are described at their defaults; 0 means the default.
	PruneEvents, PruneBytes, AgentRate, AgentBurst int
}

// Ledger is what dispatch needs of the plane's memory; package ledger has it.
type Ledger interface {
	CommandsChanged() <-chan struct{}
	Due(ctx context.Context, limit int) ([]string, error)
	Next(ctx context.Context) (send, overdue time.Time, err error)
	Record(ctx context.Context, id string) (ledger.Record, bool, error)
	Sent(ctx context.Context, id string, next time.Time) error
	Postpone(ctx context.Context, id string, next time.Time) error
	Overdue(ctx context.Context, before time.Time, limit int) ([]ledger.Command, error)
	Expire(ctx context.Context, c ledger.Command, outcome *runnerv1.CommandOutcome) (bool, error)
	Command(ctx context.Context, id string) (ledger.Command, error)
	Store(ctx context.Context, events []ledger.NewEvent, offsets []offset.Offset) (ledger.Counts, error)
	Offsets(ctx context.Context, topic, topicID string) ([]offset.Offset, error)
	Prune(ctx context.Context) error
}

// Signers knows who may sign events.
type Signers interface {
	// Signer returns the cluster of an agent and the public keys that were certified for it; no keys if there is no such agent or it was removed.
	Signer(ctx context.Context, agentID string) (clusterID string, keys []*ecdsa.PublicKey, err error)
}

// Deps is what dispatch works with.
type Deps struct {
	// Ledger keeps commands and events.
	Ledger Ledger
	// Signers knows the agents' keys.
	Signers Signers
	// ClientOpts returns the options of a Kafka client of the plane: brokers, TLS, SASL.
	ClientOpts func() []kgo.Opt
	// Log receives what goes wrong.
	Log *slog.Logger
	// Now is the clock.
	Now func() time.Time
}

// Dispatch sends commands and reads events.
type Dispatch struct {
	cfg  Config
	deps Deps

	events *tail.Tail
	drops  *drops
	failed map[string]int // by command id: sends that Kafka did not take since the last that it took; the sender's own
	// The reader's own: what agents may still tell, and what was stored since the ledger last forgot.
	budgets             *budgets
	newEvents, newBytes int
	// current says that every event that was in the topic when it was last opened is stored. Before that no command is closed as expired: its outcome may
	// be among the events that were not read yet.
	current atomic.Bool
	kick    chan struct{} // wakes the sender when current becomes true
}

// New checks the configuration.
func New(cfg Config, deps Deps) (*Dispatch, error) {
	if cfg.EventsTopic == "" {
		return nil, errors.New("dispatch: the topic of events has no name")
	}
	if deps.Ledger == nil || deps.Signers == nil || deps.ClientOpts == nil || deps.Log == nil || deps.Now == nil {
		return nil, errors.New("dispatch: a dependency is missing")
	}
	if cfg.MaxEventBytes <= 0 {
		cfg.MaxEventBytes = envelope.DefaultMaxData
	}
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&cfg.ResendFirst, DefaultResendFirst},
		{&cfg.ResendMax, DefaultResendMax},
		{&cfg.Retry, DefaultRetry},
		{&cfg.Grace, DefaultGrace},
		{&cfg.PruneInterval, DefaultPruneInterval},
	} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	for _, n := range []struct {
		value    *int
		fallback int
	}{
		{&cfg.PruneEvents, DefaultPruneEvents},
		{&cfg.PruneBytes, DefaultPruneBytes},
		{&cfg.AgentRate, DefaultAgentRate},
		{&cfg.AgentBurst, DefaultAgentBurst},
	} {
		if *n.value <= 0 {
			*n.value = n.fallback
		}
	}
	d := &Dispatch{cfg: cfg, budgets: newBudgets(cfg.AgentRate, cfg.AgentBurst, deps.Now), deps: deps, drops: newDrops(deps.Log, deps.Now), failed: map[string]int{}, kick: make(chan struct{}, 1)}
	var err error
	d.events, err = tail.New(cfg.EventsTopic, tail.Deps{
		ClientOpts: deps.ClientOpts, Offsets: deps.Ledger.Offsets, Store: d.store, Current: d.setCurrent, Log: deps.Log,
	})
	return d, err
}

// Run sends and reads until ctx ends; then it returns nil. A broker or a database that is away is waited for.
func (d *Dispatch) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.send(ctx) })
	g.Go(func() error { return d.events.Run(ctx) })
	g.Go(func() error { return d.prune(ctx) })
	return g.Wait()
}

// Dropped returns how many messages on the topic of events were not believed, by reason: "unreadable", "bad_source", "unknown_agent", "bad_signature",
// "unknown_type", "bad_outcome", "foreign_command", "too_many".
func (d *Dispatch) Dropped() map[string]uint64 { return d.drops.counts() }

func (d *Dispatch) prune(ctx context.Context) error {
	for {
		d.pruneNow(ctx)
		if !sleep(ctx, d.cfg.PruneInterval) {
			return nil
		}
	}
}

func (d *Dispatch) pruneNow(ctx context.Context) {
	if err := d.deps.Ledger.Prune(ctx); err != nil && ctx.Err() == nil {
		d.deps.Log.Error("the ledger could not forget what is too old", "error", err)
	}
}

// client makes a Kafka client of the plane's.
func (d *Dispatch) client(more ...kgo.Opt) (*kgo.Client, error) {
	cl, err := kgo.NewClient(append(d.deps.ClientOpts(), more...)...)
	if err != nil {
		return nil, fmt.Errorf("make Kafka client: %w", err)
	}
	return cl, nil
}

// sleep waits and returns false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
