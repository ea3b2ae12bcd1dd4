// Package deadletters keeps what agents could not read, so that an operator can look at it, have it tried again, or drop it. It reads the dead-letter topic
// into the plane's database.
//
// Dead letters are not signed: any agent can write any. What one says about where it came from is a claim that is only checked for sense: the topic must be
// the agent's own or its cluster's; otherwise the letter is marked as unverified.
//
// The value of a letter may hold credentials and secret files. It is deleted when the letter is dropped or too old; the topic forgets it by its own retention.
package deadletters

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/axion/runner-agent/plane/offset"
	"github.com/axion/runner-agent/plane/store"
	"github.com/axion/runner-agent/plane/tail"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

// Defaults of Config.
const (
	// DefaultMaxLetters is how many letters are kept.
	DefaultMaxLetters = 10_000
	// DefaultMaxBytes is how much the kept letters hold.
	DefaultMaxBytes = 512 << 20
	// DefaultAge is how long a letter is kept after it was last given up: as long as its topic keeps it.
	DefaultAge = 7 * 24 * time.Hour
	// DefaultPruneInterval is how often letters that are too old are looked for.
	DefaultPruneInterval = 10 * time.Minute
)

// Config bounds the letters. A zero value means the default.
type Config struct {
	// Topic is the dead-letter topic; required.
	Topic string
	// MaxLetters is how many letters are kept; the oldest go first.
	MaxLetters int
	// MaxBytes is how much keys, headers and values may hold together; the oldest go first.
	MaxBytes int64
	// Age is how long a letter is kept after it was last given up.
	Age time.Duration
	// PruneInterval is how often letters that are too old are looked for.
	PruneInterval time.Duration
}

// Directory knows agents and topics.
type Directory interface {
	// Owner returns whose commands a topic carries: a cluster's, or, with an agentID, an agent's. ok is false if it is no command topic of anybody who is here.
	Owner(ctx context.Context, topic string) (clusterID, agentID string, ok bool, err error)
	// Cluster returns an agent's cluster; ok is false if there is no such agent or it was removed.
	Cluster(ctx context.Context, agentID string) (clusterID string, ok bool, err error)
}

// Deps are what Letters need; all are required.
type Deps struct {
	// DB is the plane's database.
	DB *store.DB
	// Directory knows agents and topics.
	Directory Directory
	// ClientOpts returns the options of a Kafka client of the plane: brokers, TLS, SASL.
	ClientOpts func() []kgo.Opt
	// Log receives what is read and done.
	Log *slog.Logger
	// Now is the clock.
	Now func() time.Time
}

// Letter is a message that an agent could not read.
type Letter struct {
	// ID grows with each letter and is never used twice.
	ID uint64
	// AgentID is who gave it up, as it says; may be empty. ClusterID is that agent's cluster; empty if there is no such agent.
	AgentID, ClusterID string
	// Verified is whether the topic is the agent's own or its cluster's.
	Verified bool
	// Topic, Partition and Offset are where it was; a number that was not told is -1.
	Topic     string
	Partition int32
	Offset    int64
	// Type and CommandID are of its envelope, as far as it has them.
	Type, CommandID string
	// Class, Code and Reason say why, in the agent's words.
	Class, Code, Reason string
	// Attempts is how often it was given up.
	Attempts uint64
	// FirstAt and LastAt are when it was read first and last; ReplayedAt is zero if it was not replayed.
	FirstAt, LastAt, ReplayedAt time.Time
	// ValueSize is the size of its value, in bytes.
	ValueSize int64
	// Key, Headers and Value are the original ones. Only Get fills them.
	Key, Value []byte
	Headers    []envelope.Header
}

// Letters reads and keeps dead letters. Its methods may be called from any goroutine, whether Run runs or not.
type Letters struct {
	cfg  Config
	deps Deps
	tail *tail.Tail
}

// New checks the configuration.
func New(cfg Config, deps Deps) (*Letters, error) {
	if deps.DB == nil || deps.Directory == nil || deps.ClientOpts == nil || deps.Log == nil || deps.Now == nil {
		return nil, errors.New("deadletters: a dependency is missing")
	}
	if cfg.MaxLetters <= 0 {
		cfg.MaxLetters = DefaultMaxLetters
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.Age <= 0 {
		cfg.Age = DefaultAge
	}
	if cfg.PruneInterval <= 0 {
		cfg.PruneInterval = DefaultPruneInterval
	}
	l := &Letters{cfg: cfg, deps: deps}
	var err error
	l.tail, err = tail.New(cfg.Topic, tail.Deps{
		ClientOpts: deps.ClientOpts, Log: deps.Log, Store: l.take,
		Offsets: func(ctx context.Context, topic, topicID string) ([]offset.Offset, error) {
			return offset.Load(ctx, deps.DB, topic, topicID)
		},
	})
	return l, err
}

// Run reads the topic until ctx ends; then it returns nil. A broker or a database that is away is waited for.
func (l *Letters) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.tail.Run(ctx) })
	g.Go(func() error { return l.prune(ctx) })
	return g.Wait()
}

func (l *Letters) prune(ctx context.Context) error {
	t := time.NewTicker(l.cfg.PruneInterval)
	defer t.Stop()
	for {
		if err := l.Prune(ctx); err != nil && ctx.Err() == nil {
			l.deps.Log.Error("old dead letters could not be erased", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func noLetter(id uint64) error {
	return failure.New(failure.Invalid, "no_such_letter", "", "there is no dead letter %d", id).WithHint("axionctl dlq list")
}
