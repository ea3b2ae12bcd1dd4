// Package journal is the agent's memory on disk: which commands it has seen, how each ended, and the events that Kafka has not
// acknowledged yet (the outbox).
//
// It makes two promises. A command has one outcome: the first Decide wins, for good, and puts the outcome into the outbox in the same transaction. And events
// leave in the order in which they came. Losing the journal loses no command: the broker delivers again, and the Swarm itself holds what was applied.
package journal

import (
	"errors"
	"time"

	"github.com/axion/runner-agent/proto/envelope"
)

// Bounds and defaults.
const (
	// DefaultMaxOutboxBytes is the size of the outbox above which progress events are dropped.
	DefaultMaxOutboxBytes int64 = 256 << 20
	// MaxEventBytes is the size of one event with its attributes; a topic of events takes a little more.
	MaxEventBytes = 12 << 20
	// MaxKeyBytes is the length of a Kafka key, a stack's name or a command's id.
	MaxKeyBytes = 1024
)

// ErrFull says that the outbox is over its bound and a progress event was dropped. Outcomes are never dropped.
var ErrFull = errors.New("the outbox is full, a progress event was dropped")

// Record is what the journal knows of a command.
type Record struct {
	// ID is the command's id.
	ID string
	// Type is the command's type, for example "axion.runner.v1.StackDeploy".
	Type string
	// Key is the Kafka key of its outcome; empty until decided.
	Key string
	// Generation is the stack's generation that it stood for; 0 if it has none.
	Generation uint64
	// Attempts is how often the command was received, this time included.
	Attempts uint32
	// Decided says whether there is an outcome.
	Decided bool
	// Outcome is the terminal event, if decided.
	Outcome envelope.Envelope
	// FirstSeen and LastSeen are the times of the first and the latest delivery.
	FirstSeen, LastSeen time.Time
}

// Entry is an event that waits in the outbox.
type Entry struct {
	// Seq orders the entries. It names an entry as long as this journal is open, not longer.
	Seq uint64
	// Key is the Kafka key.
	Key string
	// Outcome says whether the event ends a command; otherwise it is progress.
	Outcome bool
	// Envelope is the event, not yet signed.
	Envelope envelope.Envelope
}

// Commands remembers commands and their outcomes.
type Commands interface {
	// Receive notes a delivery of a command and returns its record, with the number of deliveries in Attempts. The note is on disk when Receive returns, and
	// there is room for more: on a full disk it fails, with code "disk_full", and the command must not be begun.
	Receive(id, typ string) (Record, error)
	// Decide records the outcome of a command and puts it into the outbox, in one transaction that is on disk when Decide returns. The key is the event's
	// Kafka key; it may be empty.
	// The first decision of a command wins and is returned; if it already left the outbox it is put there again.
	Decide(id, key string, generation uint64, outcome envelope.Envelope) (envelope.Envelope, error)
	// Expire forgets commands that were decided and not seen since before, unless their outcome still waits in the outbox.
	Expire(before time.Time) error
}

// Events takes events and tells when Kafka has them.
type Events interface {
	// Append puts a progress event into the outbox. ErrFull says that it was dropped. It does not wait for the disk.
	Append(ev envelope.Envelope, key string) error
	// Settled returns a channel that is closed when Kafka has acknowledged that event. Outcomes are remembered as long as their command, across restarts;
	// of other events the last thousand.
	Settled(eventID string) <-chan struct{}
}

// Outbox is the side of the journal from which events are sent.
type Outbox interface {
	// Peek returns the oldest entries, at most max and at most maxBytes of encoded events, but at least one if there is any.
	Peek(max int, maxBytes int64) ([]Entry, error)
	// Acked removes entries that Kafka has acknowledged and closes their Settled channels. Unknown ones are ignored.
	Acked(seqs ...uint64) error
	// Pending receives a value when there is something new to send.
	Pending() <-chan struct{}
	// Len is the number of entries.
	Len() int
	// Bytes is their encoded size.
	Bytes() int64
	// Dropped is the number of progress events that were dropped since the journal was opened.
	Dropped() uint64
	// ExpireProgress drops progress events that were made before that time. Outcomes are never dropped.
	ExpireProgress(before time.Time) error
}

// Store is the whole journal. Bolt is the real one; Failing fails.
type Store interface {
	Commands
	Events
	Outbox
	// Close writes what is still in memory and gives the file free.
	Close() error
}

var (
	_ Store = (*Bolt)(nil)
	_ Store = (*Failing)(nil)
)
