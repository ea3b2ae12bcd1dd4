package journal

import (
	"time"

	"github.com/axion/runner-agent/proto/envelope"
)

// Failing is a Store whose every operation fails with Err, for tests of what a component does when its journal does not work.
type Failing struct {
	// Err is returned by everything.
	Err error
}

// Receive fails.
func (f *Failing) Receive(string, string) (Record, error) { return Record{}, f.Err }

// Decide fails.
func (f *Failing) Decide(string, string, uint64, envelope.Envelope) (envelope.Envelope, error) {
	return envelope.Envelope{}, f.Err
}

// Expire fails.
func (f *Failing) Expire(time.Time) error { return f.Err }

// Append fails.
func (f *Failing) Append(envelope.Envelope, string) error { return f.Err }

// Settled returns a channel that is never closed.
func (f *Failing) Settled(string) <-chan struct{} { return make(chan struct{}) }

// Peek fails.
func (f *Failing) Peek(int, int64) ([]Entry, error) { return nil, f.Err }

// Acked fails.
func (f *Failing) Acked(...uint64) error { return f.Err }

// Pending returns a channel that never receives.
func (f *Failing) Pending() <-chan struct{} { return make(chan struct{}) }

// Len is zero.
func (f *Failing) Len() int { return 0 }

// Bytes is zero.
func (f *Failing) Bytes() int64 { return 0 }

// Dropped is zero.
func (f *Failing) Dropped() uint64 { return 0 }

// ExpireProgress fails.
func (f *Failing) ExpireProgress(time.Time) error { return f.Err }

// Close fails.
func (f *Failing) Close() error { return f.Err }
