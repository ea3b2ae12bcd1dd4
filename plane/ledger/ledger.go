// Package ledger is the plane's memory of what was asked and how it ended: the commands with the generations that they were given, and the events that
// agents sent. Everything that must be true together is one transaction: a command and its generation, an event and the offset up to which the topic was
// read, an outcome and the closing of its command. The ledger sends nothing; package dispatch does.
//
// A command's data may hold credentials and secret files. It is kept only while the command is open, because it may have to be sent again, and is erased in
// the transaction that closes the command. What each stack is made of, the last deployment that succeeded and the scalings since, is kept aside until a newer
// one takes its place: when a Swarm comes back from a backup and the heads that managers tell go back, it is submitted again.
package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"github.com/axion/runner-agent/plane/store"
)

// Source is the ce_source of everything that the plane itself writes.
const Source = "/plane"

// Defaults of Config.
const (
	// DefaultMaxEvents is how many events are kept.
	DefaultMaxEvents = 200_000
	// DefaultMaxEventBytes is how much data the kept events hold.
	DefaultMaxEventBytes = 1 << 30
	// DefaultMaxClusterEvents and DefaultMaxClusterEventBytes are the same for one cluster: a quarter, so that a flood in one does not push out the others'.
	DefaultMaxClusterEvents     = DefaultMaxEvents / 4
	DefaultMaxClusterEventBytes = DefaultMaxEventBytes / 4
	// DefaultEventAge is how long events are kept.
	DefaultEventAge = 14 * 24 * time.Hour
	// DefaultCommandAge is how long closed commands are kept. It must be longer than the longest time to live and the retention of the command topics,
	// because a command that is forgotten can no longer be told from one of another cluster.
	DefaultCommandAge = 60 * 24 * time.Hour
	// DefaultMaxOpen is how many commands of one cluster may be open at once.
	DefaultMaxOpen = 1000
	// DefaultMaxOpenBytes is how much data the open commands of one cluster may hold.
	DefaultMaxOpenBytes = 512 << 20
	// DefaultMaxKeptBytes is how much data of last successes is kept for one cluster.
	DefaultMaxKeptBytes = 256 << 20
)

// Config bounds the ledger. A zero value means the default.
type Config struct {
	// MaxEvents is how many events are kept; the oldest go first.
	MaxEvents int
	// MaxEventBytes is how much data the kept events hold; the oldest go first.
	MaxEventBytes int64
	// MaxClusterEvents and MaxClusterEventBytes are the same for one cluster's events; its oldest go first, before those of others.
	MaxClusterEvents     int
	MaxClusterEventBytes int64
	// EventAge is how long events are kept.
	EventAge time.Duration
	// CommandAge is how long closed commands are kept.
	CommandAge time.Duration
	// MaxOpen is how many commands of one cluster may be open at once.
	MaxOpen int
	// MaxOpenBytes is how much data the open commands of one cluster may hold.
	MaxOpenBytes int64
	// MaxKeptBytes is how much data of last successes is kept for one cluster; the oldest are forgotten first.
	MaxKeptBytes int64
	// ForgetBundles keeps no deployment's data after its end. Then nothing is offered again when a Swarm comes back from a backup.
	ForgetBundles bool
}

// Ledger keeps commands, generations and events in the plane's database. It is safe for concurrent use.
type Ledger struct {
	cfg Config
	db  *store.DB
	now func() time.Time

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever an event was stored
	pending chan struct{} // closed and replaced whenever a command was stored
}

// New returns the ledger in that database.
func New(cfg Config, db *store.DB, now func() time.Time) *Ledger {
	if cfg.MaxEvents <= 0 {
		cfg.MaxEvents = DefaultMaxEvents
	}
	if cfg.MaxEventBytes <= 0 {
		cfg.MaxEventBytes = DefaultMaxEventBytes
	}
	if cfg.MaxClusterEvents <= 0 {
		cfg.MaxClusterEvents = DefaultMaxClusterEvents
	}
	if cfg.MaxClusterEventBytes <= 0 {
		cfg.MaxClusterEventBytes = DefaultMaxClusterEventBytes
	}
	if cfg.EventAge <= 0 {
		cfg.EventAge = DefaultEventAge
	}
	if cfg.CommandAge <= 0 {
		cfg.CommandAge = DefaultCommandAge
	}
	if cfg.MaxOpen <= 0 {
		cfg.MaxOpen = DefaultMaxOpen
	}
	if cfg.MaxOpenBytes <= 0 {
		cfg.MaxOpenBytes = DefaultMaxOpenBytes
	}
	if cfg.MaxKeptBytes <= 0 {
		cfg.MaxKeptBytes = DefaultMaxKeptBytes
	}
	return &Ledger{cfg: cfg, db: db, now: now, changed: make(chan struct{}), pending: make(chan struct{})}
}

// EventsChanged returns a channel that is closed when the next event is stored. Take it before reading events, then wait on it: nothing is missed.
func (l *Ledger) EventsChanged() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// CommandsChanged returns a channel that is closed when the next command is stored.
func (l *Ledger) CommandsChanged() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending
}

func (l *Ledger) announceEvents() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Ledger) announceCommands() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.pending)
	l.pending = make(chan struct{})
}

// Prune forgets what is older than the bounds allow: events by age, number and size (of a cluster first, then of all), closed commands by age. Open commands and generations stay.
func (l *Ledger) Prune(ctx context.Context) error {
	now := l.now()
	return l.db.Tx(ctx, func(tx *sql.Tx) error {
		if l.cfg.ForgetBundles {
			if err := l.forgetBundles(ctx, tx); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM events WHERE stored_at < $1`, now.Add(-l.cfg.EventAge).UnixNano()); err != nil {
			return fmt.Errorf("forget old events: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM events WHERE position IN (SELECT position FROM
			(SELECT position, ROW_NUMBER() OVER newest AS number, SUM(LENGTH(data)) OVER newest AS total
				FROM events WINDOW newest AS (PARTITION BY cluster_id ORDER BY position DESC)) AS counted
			WHERE number > $1 OR total > $2)`, l.cfg.MaxClusterEvents, l.cfg.MaxClusterEventBytes); err != nil {
			return fmt.Errorf("forget surplus events of clusters: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM events WHERE position <= (SELECT COALESCE(MAX(position), 0) FROM
			(SELECT position, ROW_NUMBER() OVER newest AS number, SUM(LENGTH(data)) OVER newest AS total
				FROM events WINDOW newest AS (ORDER BY position DESC)) AS counted
			WHERE number > $1 OR total > $2)`, l.cfg.MaxEvents, l.cfg.MaxEventBytes); err != nil {
			return fmt.Errorf("forget surplus events: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM commands WHERE closed_at < $1`, now.Add(-l.cfg.CommandAge).UnixNano()); err != nil {
			return fmt.Errorf("forget old commands: %w", err)
		}
		return nil
	})
}

// unixNano is a time as the database keeps it; the zero time is 0.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// fromUnixNano is unixNano's inverse, in UTC.
func fromUnixNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}
